// What would happen if …: drain, kill, replicate, rebalance. Each shows its plan first and asks once. The admin key stays in the
// field: it is sent with the one request that needs it and kept nowhere.

import {button, el, selectBox, setText, show, uniqueId} from "./dom.js";
import {spreadOf, workerLoadsOf} from "./figures.js";
import {bytes, count, expertName, fixed, plural} from "./format.js";
import {store, view, selection} from "./state.js";

async function ask(method, path, body, key) {
  const headers = key ? {Authorization: `Bearer ${key}`} : {};
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {method, headers, body: body && JSON.stringify(body)});
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error?.message ?? `the server answered ${response.status}`);
  return answer;
}

let chosenExpert, chosenLayer, confirm, lastPin;
const plan = null;
const workerBox = selectBox("Worker", () => forget());
const expertBox = selectBox("Expert", () => forget());
const layerBox = selectBox("Layer", () => forget());
const replicasInput = el("input", {type: "number", min: 1, max: 99, value: 2, id: uniqueId("replicas"), oninput: () => forget()});
const keyInput = el("input", {type: "password", id: uniqueId("key"), autocomplete: "off", spellcheck: "false",
  oninput: () => update()});
const reason = el("p.note");
const output = el("div.plan", {role: "status"});
const reading = [button("Safe to kill?", () => proposeKill()), button("Rebalance …", () => proposeRebalance())];
const changing = [button("Drain …", () => proposeDrain()), button("Undrain …", () => proposeUndrain()),
  button("Replicate …", () => proposeReplicate())];
const [kill, rebalance] = reading;
const [drain, undrain, replicate] = changing;
const heading = el("h2", {id: uniqueId("whatif")}, "What if …");
export const element = el("section", {class: "panel whatif", "aria-labelledby": heading.id}, heading,
  el("p.note", "Every button shows its plan first; nothing happens before you confirm it."),
  el("div.whatif-row", workerBox.element, kill, drain, undrain),
  el("div.whatif-row", layerBox.element, expertBox.element,
    el("div.field", el("label", {for: replicasInput.id}, "Replicas"), replicasInput), replicate),
  el("div.whatif-row", rebalance),
  el("div.whatif-row", el("div", {class: "field wide"}, el("label", {for: keyInput.id}, "Admin key"), keyInput)),
  reason, output);

export function update() {
  const here = [...store.workers.values()].filter((worker) => !["dead", "left"].includes(worker.state));
  const names = here.map((worker) => [worker.name, `${worker.name} (${worker.state})`]);
  workerBox.update(names, names.some(([name]) => name === workerBox.select.value) ? workerBox.select.value : names[0]?.[0]);
  chooseExpert();
  const why = whyNot();
  for (const button of changing) button.disabled = why.change !== null || here.length === 0;
  for (const button of reading) button.disabled = why.read !== null;
  reading[0].disabled ||= here.length === 0;
  keyInput.disabled = why.change !== null;
  setText(reason, why.change ?? (keyInput.value === "" ? "To carry out a plan, type the admin key. It is kept in this field only." : ""));
  if (confirm) confirm.disabled = why.change !== null || keyInput.value === "";
}

// The pinned expert is the first choice.
function chooseExpert() {
  const pin = view.pin && store.unitOf(view.pin.layer, view.pin.expert) >= 0 ? view.pin : null;
  const pinKey = pin ? `${pin.layer}:${pin.expert}` : "";
  if (pin && lastPin !== pinKey) {
    chosenLayer = pin.layer;
    chosenExpert = pin.expert;
  } else {
    chosenLayer = Number(layerBox.select.value || store.layers[0]?.layer);
    chosenExpert = Number(expertBox.select.value || 0);
  }
  lastPin = pinKey;
  layerBox.update(store.layers.map(({layer}) => [String(layer), `L${layer}`]), chosenLayer);
  const experts = store.layerOf(chosenLayer)?.experts ?? 0;
  expertBox.update(Array.from({length: experts}, (_, expert) => [String(expert), String(expert)]),
    Math.min(chosenExpert, Math.max(0, experts - 1)));
}

function whyNot() {
  if (!store.isLive) return {read: "saved", change: "Nothing can be asked of a saved picture."};
  const {admin} = store.picture;
  return {read: null, change: admin.is_enabled ? null : `Changes are off: ${admin.reason || "the server does not allow them"}.`};
}

function forget() {
  confirm = null;
  output.replaceChildren();
}

// lines: what the plan says; `act`: what confirming does, or null when there is nothing to confirm.
function propose(title, lines, label, act) {
  confirm = act && button(label, () => carryOut(title, act), ".strong");
  output.replaceChildren(el("h3", title), el("ul", lines.map((line) => el("li", line))),
    el("div.controls", confirm, button(act ? "Leave it" : "Close", () => forget())));
  update();
}

async function carryOut(title, act) {
  confirm.disabled = true;
  try {
    const done = await act();
    confirm = null;
    output.replaceChildren(el("p.done", `${title}: ${done}`));
  } catch (error) {
    fail(error);
  }
}

function fail(error) {
  confirm = null;
  output.replaceChildren(el("p.warn", `▲ Not done: ${error.message}`));
}

async function attempt(work) {
  try {
    await work();
  } catch (error) {
    fail(error);
  }
}

function send(path, body) {
  return ask("POST", path, body, keyInput.value);
}

// Rows per worker, max ÷ mean, with `placement` instead of the present one.
function imbalance(placement) {
  const ids = [...store.workers.values()].filter((worker) => ["live", "suspect"].includes(worker.state)).map((worker) => worker.id)
    .filter((id) => id !== placement.without);
  return spreadOf([...workerLoadsOf(selection.loads("all", "both"), placement.experts, ids).values()]);
}

function presentPlacement() {
  return store.picture.placement ?? {experts: []};
}

function riskLines(name, answer) {
  if (answer.is_safe) return [`Every expert stays served without ${name}.`];
  const named = answer.at_risk.slice(0, 8).map(([layer, expert]) => expertName(layer, expert)).join(", ");
  const more = answer.at_risk.length > 8 ? ` and ${answer.at_risk.length - 8} more` : "";
  return [`Not safe: ${plural(answer.at_risk.length, "expert")} would have no replica: ${named}${more}.`];
}

function proposeKill() {
  const name = workerBox.select.value;
  return attempt(async () => {
    const answer = await ask("GET", `moe/kill-safe?worker=${encodeURIComponent(name)}`);
    propose(`If ${name} died now`, riskLines(name, answer), "", null);
  });
}

function proposeDrain() {
  const name = workerBox.select.value;
  const worker = [...store.workers.values()].find((entry) => entry.name === name);
  return attempt(async () => {
    const answer = await ask("GET", `moe/kill-safe?worker=${encodeURIComponent(name)}`);
    const present = presentPlacement();
    const without = {experts: present.experts.map((holders) => holders.filter((id) => id !== worker.id)), without: worker.id};
    const bytesEach = worker.experts > 0 ? worker.memory_used / worker.experts : 0;
    const lines = [
      `${plural(worker.experts, "replica")} leave ${name}; ${answer.is_safe ? "none" : count(answer.at_risk.length)} of them ` +
        `must be loaded elsewhere first${answer.is_safe ? "" : `, about ${bytes(bytesEach * answer.at_risk.length)}`}.`,
      `Rows per worker, max ÷ mean: ${fixed(imbalance(present))} now, ${fixed(imbalance(without))} if the other replicas ` +
        "share its rows evenly.", ...riskLines(name, answer)];
    propose(`Drain ${name}`, lines, `Drain ${name}`, async () =>
      (await send("moe/drain", {worker: name})).is_drained ? "it is drained." : "it finishes what is in flight.");
  });
}

function proposeUndrain() {
  const name = workerBox.select.value;
  propose(`Undrain ${name}`, [`${name} takes calls again, and the planner may place replicas on it.`], `Undrain ${name}`,
    async () => (await send("moe/undrain", {worker: name})).is_drained ? "it is still drained." : "it takes part again.");
}

function proposeReplicate() {
  const layer = Number(layerBox.select.value);
  const expert = Number(expertBox.select.value);
  const replicas = Number(replicasInput.value);
  const unit = store.unitOf(layer, expert);
  const holders = presentPlacement().experts[unit] ?? [];
  const name = expertName(layer, expert);
  if (!Number.isInteger(replicas) || replicas < 1) {
    fail(new Error("replicas: expected a whole number from 1 up"));
    return;
  }
  const moves = Math.max(0, replicas - holders.length);
  const sample = [...store.workers.values()].find((worker) => worker.experts > 0);
  const each = sample ? sample.memory_used / sample.experts : 0;
  const lines = [`${plural(holders.length, "replica")} now (${holders.map((id) => store.workerName(id)).join(", ") || "nobody"}), ${count(replicas)} wanted: ` +
    `${plural(moves, "load")}${moves ? `, about ${bytes(moves * each)}` : ""}.`, replicateForecast(unit, holders, replicas)];
  propose(`Replicate ${name}`, lines, `Keep ${plural(replicas, "replica")}`, async () =>
    `epoch ${(await send("moe/replicate", {layer, expert, replicas})).epoch}.`);
}

// New replicas go to the least loaded workers, surplus ones leave the most loaded; the planner may choose otherwise.
function replicateForecast(unit, holders, replicas) {
  const present = presentPlacement();
  const ids = [...store.workers.values()].filter((worker) => worker.state === "live").map((worker) => worker.id);
  const loads = workerLoadsOf(selection.loads("all", "both"), present.experts, ids);
  const others = ids.filter((id) => !holders.includes(id)).sort((a, b) => loads.get(a) - loads.get(b));
  const kept = [...holders].sort((a, b) => (loads.get(a) ?? 0) - (loads.get(b) ?? 0)).slice(0, replicas);
  const experts = [...present.experts];
  experts[unit] = [...kept, ...others.slice(0, Math.max(0, replicas - kept.length))];
  return `Rows per worker, max ÷ mean: ${fixed(imbalance(present))} now, about ${fixed(imbalance({experts}))} after.`;
}

function proposeRebalance() {
  return attempt(async () => {
    const plan = await ask("POST", "moe/rebalance", {dry_run: true, full: false});
    const nameOf = (id) => (id >= 0 ? store.workerName(id) : "a file");
    const lines = [`${plural(plan.moves.length, "move")}, ${bytes(plan.bytes)}.`,
      `Imbalance ${fixed(plan.imbalance_before)} before, ${fixed(plan.imbalance_after)} after, as the planner predicts.`,
      ...plan.moves.slice(0, 8).map((move) => `${expertName(move.layer, move.expert)}: ${nameOf(move.from)} → ${nameOf(move.to)}`)];
    if (plan.moves.length > 8) lines.push(`and ${plan.moves.length - 8} more`);
    const act = plan.moves.length === 0 ? null : async () =>
      `${plural((await send("moe/rebalance", {dry_run: false, full: false})).moves.length, "move")} begun.`;
    propose("Rebalance", lines, "Rebalance", act);
  });
}
