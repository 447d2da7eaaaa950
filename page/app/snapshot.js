// A picture that was saved: `curl …/moe/stats > file`, dropped on the page. A file may hold anything, so it is looked at
// before it is shown.

const UNITS_MAX = 1 << 18;

function expect(isRight, what) {
	if (!isRight) throw new Error(`not a saved picture of conclave: ${what}`);
}

function isCount(value) {
	return typeof value === "number" && value >= 0 && Number.isFinite(value);
}

// Throws where the page would stumble. `model: null` and an empty cluster are fine.
function check(value) {
	expect(value?.schema === 1, `schema: expected 1, found ${JSON.stringify(value?.schema) ?? "nothing"}`);
	for (const name of ["cluster", "serving", "bounds", "admin"]) {
		expect(value[name] !== null && typeof value[name] === "object", `${name}: expected an object`);
	}
	expect(isCount(value.seq) && isCount(value.time), "seq, time: expected numbers");
	for (const name of ["workers", "frontends", "rows", "weights", "probabilities", "events", "incidents"]) {
		expect(Array.isArray(value[name]), `${name}: expected a list`);
	}
	const layers = value.model?.layers ?? [];
	expect(Array.isArray(layers) && layers.every((entry) => Number.isInteger(entry?.layer) && entry.experts > 0 &&
		Number.isInteger(entry.experts)), "model.layers: expected entries {layer, experts}");
	const units = layers.reduce((sum, entry) => sum + entry.experts, 0);
	expect(units <= UNITS_MAX, `model.layers: ${units} experts; expected at most ${UNITS_MAX}`);
	for (const [name, per] of [["rows", 8], ["weights", 2], ["probabilities", 1]]) {
		expect(value[name].length === units * per && value[name].every(isCount), `${name}: expected ${units * per} numbers from 0 up`);
	}
	expect(value.workers.every((worker) => Number.isInteger(worker?.id) && Array.isArray(worker.call_seconds)),
		"workers: expected entries with id and call_seconds");
	for (const name of ["call_seconds", "ttft", "itl", "recovery"]) expect(Array.isArray(value.bounds[name]), `bounds.${name}: expected a list`);
	expect(!value.placement || (value.placement.experts ?? [null]).every(Array.isArray), "placement.experts: expected lists of worker ids");
	for (const kind of value.pathways ? ["text", "image"] : []) {
		expect(value.pathways[kind]?.top?.every?.((path) => Array.isArray(path?.experts) && isCount(path.rows)),
			`pathways.${kind}.top: expected entries {experts, rows}`);
	}
}

export async function readSnapshot(file) {
	try {
		const value = JSON.parse(await file.text());
		check(value);
		return value;
	} catch (error) {
		throw new Error(`${file.name}: ${error instanceof SyntaxError ? "not JSON; expected what moe/stats answers" : error.message}`);
	}
}
