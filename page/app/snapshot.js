// A picture that was saved: `curl …/moe/stats > file`, dropped on the page. A file may hold anything, so it is looked at
// before it is shown.

const FIELDS = {seq: "number", time: "number", cluster: "object", serving: "object", bounds: "object", admin: "object"};
const LISTS = ["workers", "frontends", "rows", "weights", "probabilities", "events", "incidents"];
const UNITS_MAX = 1 << 18;

function isCount(value) {
  return typeof value === "number" && value >= 0 && Number.isFinite(value);
}

function layersProblem(model) {
  if (!Array.isArray(model.layers)) return "model.layers: expected a list";
  let units = 0;
  for (const entry of model.layers) {
    if (!Number.isInteger(entry?.layer) || !Number.isInteger(entry.experts) || entry.experts < 1) {
      return "model.layers: expected entries {\"layer\": number, \"experts\": number above 0}";
    }
    units += entry.experts;
  }
  return units > UNITS_MAX ? `model.layers: ${units} experts; expected at most ${UNITS_MAX}` : units;
}

// What is wrong with it, or null. `model: null` and an empty cluster are fine.
export function snapshotProblem(value) {
  if (value === null || typeof value !== "object") return "not a JSON object";
  if (value.schema !== 1) return `schema: expected 1, found ${JSON.stringify(value.schema) ?? "nothing"}`;
  for (const [name, type] of Object.entries(FIELDS)) {
    if (typeof value[name] !== type || value[name] === null) return `${name}: expected ${type}`;
  }
  for (const name of LISTS) if (!Array.isArray(value[name])) return `${name}: expected a list`;
  const units = value.model ? layersProblem(value.model) : 0;
  if (typeof units === "string") return units;
  for (const [name, per] of [["rows", 8], ["weights", 2], ["probabilities", 1]]) {
    if (value[name].length !== units * per) {
      return `${name}: expected ${units * per} numbers for ${units} experts, found ${value[name].length}`;
    }
    if (!value[name].every(isCount)) return `${name}: expected numbers from 0 up`;
  }
  for (const worker of value.workers) {
    if (!Number.isInteger(worker?.id) || typeof worker.name !== "string" || !Array.isArray(worker.call_seconds)) {
      return "workers: expected entries with id, name and call_seconds";
    }
  }
  for (const name of ["call_seconds", "ttft", "itl", "recovery"]) {
    if (!Array.isArray(value.bounds[name])) return `bounds.${name}: expected a list`;
  }
  const experts = value.placement?.experts;
  if (value.placement && (!Array.isArray(experts) || !experts.every(Array.isArray))) {
    return "placement.experts: expected a list of lists of worker ids";
  }
  return pathwaysProblem(value.pathways);
}

function pathwaysProblem(pathways) {
  if (!pathways) return null;
  for (const modality of ["text", "image"]) {
    const top = pathways[modality]?.top;
    if (!Array.isArray(top) || !top.every((path) => path && Array.isArray(path.experts) && isCount(path.rows))) {
      return `pathways.${modality}.top: expected a list of {"experts": […], "rows": number}`;
    }
  }
  return null;
}

export async function readSnapshot(file) {
  let value;
  try {
    value = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name}: not JSON; expected what moe/stats answers`);
  }
  const problem = snapshotProblem(value);
  if (problem) throw new Error(`${file.name}: not a saved picture of conclave: ${problem}`);
  return value;
}
