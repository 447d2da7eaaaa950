// What would happen if …: drain, kill, replicate, rebalance. Each shows its plan first and asks once. The admin key stays in the
// field: it is sent with the one request that needs it and kept nowhere.

import {ask} from "./api.js";
import {button, el, selectBox, setText, show, uniqueId} from "./dom.js";
import {spreadOf, workerLoadsOf} from "./figures.js";
import {bytes, count, expertName, fixed, plural} from "./format.js";
import {selection, store, view} from "./state.js";

let confirm = null;  // the button that carries out the plan that shows
let lastPin = null;
const workerBox = selectBox("Worker", forget);
const layerBox = selectBox("Layer", forget);
const expertBox = selectBox("Expert", forget);
const replicasInput = el("input", {type: "number", min: 1, max: 99, value: 2, id: uniqueId("replicas"), oninput: forget});
const keyInput = el("input", {type: "password", id: uniqueId("key"), autocomplete: "off", oninput: () => update()});
const reason = el("p.note");
const output = el("div.plan", {role: "status"});
const kill = button("Safe to kill?", () => attempt(planKill));
const rebalance = button("Rebalance …", () => attempt(planRebalance));
const changing = [button("Drain …", () => attempt(planDrain)), button("Undrain …", () => attempt(planUndrain)),
	button("Replicate …", () => attempt(planReplicate))];
const heading = el("h2", {id: uniqueId("whatif")}, "What if …");
const field = (label, input, kind = "") => el(`div.field${kind}`, el("label", {for: input.id}, label), input);
export const element = el("section.panel.whatif", {"aria-labelledby": heading.id}, heading,
	el("p.note", "Every button shows its plan first; nothing happens before you confirm it."),
	el("div.whatif-row", workerBox.element), el("div.whatif-row", kill, changing.slice(0, 2)),
	el("div.whatif-row", layerBox.element, expertBox.element, field("Replicas", replicasInput), changing[2]),
	el("div.whatif-row", rebalance), el("form.whatif-row", {onsubmit: (event) => event.preventDefault()}, field("Admin key", keyInput, ".wide")),
	reason, output);

export function update() {
	const names = store.present.map((worker) => [worker.name, `${worker.name} (${worker.state})`]);
	workerBox.update(names, names.some(([name]) => name === workerBox.select.value) ? workerBox.select.value : names[0]?.[0]);
	chooseExpert();
	const {admin} = store.picture;
	const why = !store.isLive ? "Nothing can be asked of a saved picture."
		: admin.is_enabled ? null : `Changes are off: ${admin.reason || "the server does not allow them"}.`;
	for (const one of changing) one.disabled = why !== null || names.length === 0;
	rebalance.disabled = !store.isLive;
	kill.disabled = !store.isLive || names.length === 0;
	keyInput.disabled = why !== null;
	setText(reason, why ?? (keyInput.value ? "" : "To carry out a plan, type the admin key. It is kept in this field only."));
	if (confirm) confirm.disabled = why !== null || keyInput.value === "";
}

// The pinned expert, until another is chosen.
function chooseExpert() {
	let layer = Number(layerBox.select.value || store.layers[0]?.layer);
	let expert = Number(expertBox.select.value || 0);
	const {pin} = view;
	if (pin && pin !== lastPin && store.unitOf(pin.layer, pin.expert) >= 0) ({layer, expert} = pin);
	lastPin = pin;
	const experts = store.layerOf(layer)?.experts ?? 0;
	layerBox.update(store.layers.map((entry) => [String(entry.layer), `L${entry.layer}`]), layer);
	expertBox.update(Array.from({length: experts}, (_, index) => [String(index), String(index)]), Math.min(expert, Math.max(0, experts - 1)));
}

function forget() {
	confirm = null;
	output.replaceChildren();
}

async function attempt(work) {
	try {
		await work();
	} catch (error) {
		confirm = null;
		output.replaceChildren(el("p.warn", `▲ Not done: ${error.message}`));
	}
}

// `lines`: what the plan says; `act`: what confirming does, or null when there is nothing to confirm.
function propose(title, lines, label, act) {
	confirm = act && button(label, () => attempt(async () => {
		confirm.disabled = true;
		const done = await act();
		confirm = null;
		output.replaceChildren(el("p", `${title}: ${done}`));
	}), ".strong");
	output.replaceChildren(el("h3", title), el("ul", lines.map((line) => el("li", line))),
		el("div.controls", confirm, button(act ? "Leave it" : "Close", forget)));
	update();
}

function send(path, body) {
	return ask(path, {body, key: keyInput.value});
}

function placed() {
	return store.picture.placement?.experts ?? [];
}

// Rows per worker, max ÷ mean, if `experts` were the placement.
function spread(experts, without) {
	const ids = store.present.filter((worker) => worker.id !== without && ["live", "suspect"].includes(worker.state)).map((worker) => worker.id);
	return fixed(spreadOf([...workerLoadsOf(selection.loads("all", "both"), experts, ids).values()]));
}

// Bytes of a replica, by what a worker holds.
function replicaBytes(worker = store.present.find((one) => one.experts > 0)) {
	return worker?.experts > 0 ? worker.memory_used / worker.experts : NaN;
}

function riskText(name, {is_safe: isSafe, at_risk: atRisk}) {
	if (isSafe) return `Every expert stays served without ${name}.`;
	const named = atRisk.slice(0, 8).map(([layer, expert]) => expertName(layer, expert)).join(", ");
	return `Not safe: ${plural(atRisk.length, "expert")} would have no replica: ${named}${atRisk.length > 8 ? ", …" : ""}.`;
}

function askKillSafe(name) {
	return ask(`moe/kill-safe?worker=${encodeURIComponent(name)}`);
}

async function planKill() {
	const name = workerBox.select.value;
	propose(`If ${name} died now`, [riskText(name, await askKillSafe(name))], "", null);
}

async function planDrain() {
	const name = workerBox.select.value;
	const answer = await askKillSafe(name);
	const worker = store.present.find((entry) => entry.name === name);
	const without = placed().map((holders) => holders.filter((id) => id !== worker.id));
	const moves = answer.is_safe ? 0 : answer.at_risk.length;
	propose(`Drain ${name}`, [
		`${plural(worker.experts, "replica")} leave ${name}; ${moves ? count(moves) : "none"} of them must be loaded elsewhere first` +
			`${moves ? `, about ${bytes(moves * replicaBytes(worker))}` : ""}.`,
		`Rows per worker, max ÷ mean: ${spread(placed())} now, ${spread(without, worker.id)} if the other replicas share its rows evenly.`,
		riskText(name, answer)], `Drain ${name}`, async () =>
		(await send("moe/drain", {worker: name})).is_drained ? "it is drained." : "it finishes what is in flight.");
}

function planUndrain() {
	const name = workerBox.select.value;
	propose(`Undrain ${name}`, [`${name} takes calls again, and the planner may place replicas on it.`], `Undrain ${name}`, async () =>
		(await send("moe/undrain", {worker: name})).is_drained ? "it is still drained." : "it takes part again.");
}

function planReplicate() {
	const layer = Number(layerBox.select.value);
	const expert = Number(expertBox.select.value);
	const replicas = Number(replicasInput.value);
	if (!Number.isInteger(replicas) || replicas < 1) throw new Error("replicas: expected a whole number from 1 up");
	const unit = store.unitOf(layer, expert);
	const holders = placed()[unit] ?? [];
	const moves = Math.max(0, replicas - holders.length);
	const after = [...placed()];
	after[unit] = likelyHolders(holders, replicas);
	propose(`Replicate ${expertName(layer, expert)}`, [
		`${plural(holders.length, "replica")} now (${holders.map((id) => store.workerName(id)).join(", ") || "nobody"}), ${count(replicas)} wanted: ` +
			`${plural(moves, "load")}${moves ? `, about ${bytes(moves * replicaBytes())}` : ""}.`,
		`Rows per worker, max ÷ mean: ${spread(placed())} now, about ${spread(after)} after.`], `Keep ${plural(replicas, "replica")}`, async () =>
		`epoch ${(await send("moe/replicate", {layer, expert, replicas})).epoch}.`);
}

// New replicas go to the least loaded workers, surplus ones leave the most loaded; the planner may choose otherwise.
function likelyHolders(holders, replicas) {
	const ids = store.present.filter((worker) => worker.state === "live").map((worker) => worker.id);
	const loads = workerLoadsOf(selection.loads("all", "both"), placed(), ids);
	const byLoad = (list) => [...list].sort((a, b) => (loads.get(a) ?? 0) - (loads.get(b) ?? 0));
	return [...byLoad(holders), ...byLoad(ids.filter((id) => !holders.includes(id)))].slice(0, replicas);
}

async function planRebalance() {
	const plan = await ask("moe/rebalance", {body: {dry_run: true, full: false}});
	const nameOf = (id) => (id >= 0 ? store.workerName(id) : "a file");
	const lines = [`${plural(plan.moves.length, "move")}, ${bytes(plan.bytes)}.`,
		`Imbalance ${fixed(plan.imbalance_before)} before, ${fixed(plan.imbalance_after)} after, as the planner predicts.`,
		...plan.moves.slice(0, 8).map((move) => `${expertName(move.layer, move.expert)}: ${nameOf(move.from)} → ${nameOf(move.to)}`)];
	if (plan.moves.length > 8) lines.push(`and ${plan.moves.length - 8} more`);
	propose("Rebalance", lines, "Rebalance", plan.moves.length === 0 ? null : async () =>
		`${plural((await send("moe/rebalance", {dry_run: false, full: false})).moves.length, "move")} begun.`);
}
