// Who does the work: how busy, how late. A straggler is a worker whose p99 is more than twice the median of all.

import {el, rowsOf, setAttr, setText, show, table} from "./dom.js";
import {medianOf, quantileOf} from "./figures.js";
import {count, duration, NONE, percent, plural, quantileText} from "./format.js";
import {panel} from "./panel.js";
import {store, view} from "./state.js";

const STRAGGLER_FACTOR = 2;

const list = el("ul.workers", {tabindex: "0", "aria-label": "Workers"});
const empty = el("p.empty", "No worker has joined yet. Start one: ",
	el("code", "conclave worker --router HOST:PORT"));
const note = el("p.note");
const workersPanel = panel({name: "workers", title: "Workers",
	picture: el("div", list, empty, note), makeTable: () => workerTable()});
export const element = workersPanel.element;

export function update() {
	if (!workersPanel.update(store.version)) return;
	const figures = figuresOf();
	show(empty, figures.length === 0);
	const unit = view.pin ? store.unitOf(view.pin.layer, view.pin.expert) : -1;
	const holders = unit >= 0 ? store.picture.placement?.experts[unit] ?? [] : null;
	const items = rowsOf(list, figures.length, newRow);
	figures.forEach((figure, index) => fillRow(items[index], figure, holders));
	setText(note, figures.length === 0 ? "" : `p99: round trips of calls ${windowNow().text}, seen from the frontends.`);
}

// One entry per worker: {worker, p99, isStraggler}.
function figuresOf() {
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
	return el("li", el("span.worker-name"), el("span.state"), el("span.bar", {"aria-hidden": "true"}, el("span.bar-fill")),
		el("span.worker-figures", el("span"), el("span"), el("span"), el("span.warn", "▲ straggler")));
}

function fillRow(item, {worker, p99, isStraggler}, holders) {
	const [name, state, bar, figures] = item.children;
	const [busy, queue, late, straggler] = figures.children;
	const isHere = !["dead", "left"].includes(worker.state);
	setText(name, worker.name);
	setText(state, worker.state + (worker.is_distrusted ? ", distrusted" : "") +
			(holders?.includes(worker.id) ? ", holds the pinned expert" : ""));
	setAttr(state, "data-state", worker.state);
	bar.firstChild.style.width = `${100 * Math.max(0, Math.min(1, isHere ? worker.busy : 0))}%`;
	setText(busy, isHere ? `${percent(worker.busy)} busy` : "gone");
	setText(queue, isHere ? `queue ${count(worker.queue)}` : "");
	setText(late, isHere ? `p99 ${quantileText(p99)}` : "");
	show(straggler, isStraggler && isHere);
	setAttr(item, "data-dim", holders !== null && !holders.includes(worker.id));
	setAttr(item, "title", `${worker.host}: ${plural(worker.experts, "replica")}, ${plural(worker.calls, "call")}, ` +
		`${plural(worker.rows, "row")}; heard ${duration(worker.heartbeat_age_ms / 1000)} ago`);
}

function workerTable() {
	const head = ["worker", "state", "busy", "queue", `p99 ${windowNow().text}`, "replicas", "rows /s", "calls", "rows",
			"rows resent",
		"hedges", "timeouts", "links lost"];
	return table("Workers", head, figuresOf().map(({worker, p99, isStraggler}) => [
		worker.name, worker.state, percent(worker.busy), count(worker.queue),
				quantileText(p99) + (isStraggler ? " (straggler)" : ""),
		count(worker.experts), Number.isFinite(worker.rows_per_second) ? worker.rows_per_second.toFixed(1) : NONE,
				count(worker.calls),
		count(worker.rows), count(worker.rows_resent), count(worker.hedges), count(worker.timeouts), count(worker.links_lost)]));
}
