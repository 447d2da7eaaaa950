// Who does the work: how busy, how late. A straggler is a worker whose p99 is more than twice the median of all.

import {el, setAttr, setText, show, table} from "./dom.js";
import {medianOf, quantileOf} from "./figures.js";
import {count, duration, NONE, percent, plural, quantileText} from "./format.js";
import {panel} from "./panel.js";
import {store, view} from "./state.js";

const STRAGGLER_FACTOR = 2;

const list = el("ul.workers", {tabindex: "0", "aria-label": "Workers"});
const empty = el("p.empty", "No worker has joined yet. Start one: ",
	el("code", "conclave worker --router HOST:PORT"));
const note = el("p.note");
const rows = new Map();  // id -> nodes
const workersPanel = panel({name: "workers", title: "Workers",
	picture: el("div", list, empty, note), makeTable: () => workerTable()});
export const element = workersPanel.element;

export function update() {
	if (!workersPanel.update(store.version)) return;
	const figures = figuresOf();
	show(empty, figures.length === 0);
	const unit = view.pin ? store.unitOf(view.pin.layer, view.pin.expert) : -1;
	const holders = unit >= 0 ? store.picture.placement?.experts[unit] ?? [] : null;
	for (const [id, row] of rows) {
		if (!store.workers.has(id)) {
			row.element.remove();
			rows.delete(id);
		}
	}
	for (const figure of figures) {
		if (!rows.has(figure.worker.id)) rows.set(figure.worker.id, newRow());
		const row = rows.get(figure.worker.id);
		if (row.element.parentNode !== list) list.append(row.element);
		fillRow(row, figure, holders);
	}
	setText(note, figures.length === 0 ? "" : `p99: round trips of calls ${windowNow().text}, seen from the frontends.`);
}

// One entry per worker: {worker, p99, isStraggler}.
export function figuresOf() {
	const bounds = store.picture?.bounds.call_seconds ?? [];
	const {sample} = windowNow();
	const figures = [...store.workers.values()].sort((a, b) => a.id - b.id).map((worker) => {
		const before = sample?.workers.get(worker.id)?.call_seconds;
		const counts = worker.call_seconds.map((n, i) => n - (before?.[i] ?? 0));
		return {worker, p99: quantileOf(counts, bounds, 0.99)};
	});
	const known = figures.map((figure) => figure.p99.value).filter((value) => !Number.isNaN(value));
	const median = medianOf(known);
	for (const figure of figures) {
		figure.isStraggler = known.length > 2 && figure.p99.value > STRAGGLER_FACTOR * median;
	}
	return figures;
}

function windowNow() {
	if (!store.isLive || view.window === "start") return {sample: null, text: "since the start"};
	return {sample: store.samples.before(Number(view.window)), text: `in the last ${view.window} s`};
}

function newRow() {
	const parts = {name: el("span.worker-name"), state: el("span.state"), bar: el("span.bar-fill"),
		busy: el("span"), queue: el("span"), p99: el("span"), straggler: el("span.warn", {hidden: true}, "▲ straggler")};
	parts.element = el("li", parts.name, parts.state, el("span.bar", {"aria-hidden": "true"}, parts.bar),
		el("span.worker-figures", parts.busy, parts.queue, parts.p99, parts.straggler));
	return parts;
}

function fillRow(row, {worker, p99, isStraggler}, holders) {
	setText(row.name, worker.name);
	setText(row.state, worker.state + (worker.is_distrusted ? ", distrusted" : "") + (holders?.includes(worker.id) ? ", holds the pinned expert" : ""));
	setAttr(row.state, "data-state", worker.state);
	const isHere = !["dead", "left"].includes(worker.state);
	row.bar.style.width = `${100 * Math.max(0, Math.min(1, isHere ? worker.busy : 0))}%`;
	setText(row.busy, isHere ? `${percent(worker.busy)} busy` : `gone, heard ${duration(worker.heartbeat_age_ms / 1000)} ago`);
	setText(row.queue, isHere ? `queue ${count(worker.queue)}` : "");
	setText(row.p99, isHere ? `p99 ${quantileText(p99)}` : "");
	show(row.straggler, isStraggler && isHere);
	setAttr(row.element, "data-dim", holders !== null && !holders.includes(worker.id));
	setAttr(row.element, "title", `${worker.host}: ${plural(worker.experts, "replica")}, ${plural(worker.calls, "call")}, ` +
		`${plural(worker.rows, "row")}; heard ${duration(worker.heartbeat_age_ms / 1000)} ago`);
}

function workerTable() {
	const head = ["worker", "state", "busy", "queue", `p99 ${windowNow().text}`, "replicas", "rows /s", "calls", "rows", "rows resent",
		"hedges", "timeouts", "links lost"];
	return table("Workers", head, figuresOf().map(({worker, p99, isStraggler}) => [
		worker.name, worker.state, percent(worker.busy), count(worker.queue), quantileText(p99) + (isStraggler ? " (straggler)" : ""),
		count(worker.experts), Number.isFinite(worker.rows_per_second) ? worker.rows_per_second.toFixed(1) : NONE, count(worker.calls),
		count(worker.rows), count(worker.rows_resent), count(worker.hedges), count(worker.timeouts), count(worker.links_lost)]));
}
