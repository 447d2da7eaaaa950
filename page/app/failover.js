// What happened to whom: a lane per worker with its states over time, marks for calls that were sent again or twice, lines for
// epochs, and a table of losses with what each of them cost.

import {choice, el, setAttr, setText, show, svg, table} from "./dom.js";
import {quantileOf} from "./figures.js";
import {count, dateTitle, duration, NONE, plural, quantileText, time} from "./format.js";
import {panel} from "./panel.js";
import {store, view} from "./state.js";

const LABEL = 88;
const LANE = 32;
const AXIS = 24;
const TICK_STEPS = [10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400];
// The state that an event leads to, and what the worker was if nothing older is known.
const AFTER = {joined: "joining", live: "live", suspect: "suspect", recovered: "live", draining: "draining", undrained: "live",
	drained: "drained", left: "left", dead: "dead"};
const BEFORE = {joined: null, live: "joining", suspect: "live", recovered: "suspect", draining: "live", undrained: "draining",
	drained: "draining", left: "drained", dead: "live"};
const MARKS = {resent: "▲", hedged: "◆", rescued: "■", failed: "✕"};

// [{state, from, to}] of one worker between two times.
function lanesOf(events, worker, from, to) {
	const own = events.filter((event) => event.worker === worker.id && AFTER[event.kind] !== undefined);
	const pieces = [];
	let state = own.length ? BEFORE[own[0].kind] : worker.state;
	let since = from;
	for (const event of own) {
		const at = Math.max(from, event.time);
		if (state && at > since) pieces.push({state, from: since, to: at});
		since = Math.max(since, at);
		state = AFTER[event.kind];
	}
	if (state && to > since) pieces.push({state, from: since, to});
	return pieces;
}

let incidentKey;
const range = choice("Time shown", [["5", "5 min"], ["15", "15 min"], ["all", "all"]], (lanes) => view.set({lanes}));
const drawing = svg("svg.lanes", {role: "img", "aria-label": "States of the workers over time"});
const box = el("div.lanes-box", drawing);
const legend = el("p.note", Object.entries(MARKS).map(([kind, mark]) => el("span.legend", `${mark} ${kind}`)),
	el("span.legend", "┆ epoch"));
const empty = el("p.empty", "No worker has joined yet, so there is nothing to lose.");
const lanePanel = panel({name: "lanes", title: "Workers over time", tools: [range.element],
	picture: el("div", empty, box, legend), makeTable: () => laneTable()});
const none = el("p.empty", "No worker was lost. To see what happens: ", el("code", "kill -9"),
	" one of them while somebody asks.");
const incidentBox = el("div.table-box", {tabindex: "0", role: "region", "aria-label": "Incidents"});
const incidentPanel = panel({title: "Incidents", picture: el("div", none, incidentBox)});
export const element = el("div.column", lanePanel.element, incidentPanel.element);
new ResizeObserver(() => draw()).observe(box);

export function update() {
	range.update(view.lanes);
	show(empty, store.workers.size === 0);
	show(box, store.workers.size > 0);
	if (lanePanel.update(store.version)) draw();
	updateIncidents();
}

function span() {
	const to = store.picture.time;
	// No emptier than it must be: nothing is known of the time before the first event.
	const oldest = Math.min(to - 60, ...store.picture.events.map((event) => event.time - 1));
	return {from: view.lanes === "all" ? oldest : Math.max(oldest, to - 60 * Number(view.lanes)), to};
}

// Workers of the list, and those that only the events remember.
function workersShown() {
	const workers = new Map(store.workers);
	for (const event of store.picture.events) {
		if (event.worker >= 0 && AFTER[event.kind] && !workers.has(event.worker)) {
			workers.set(event.worker, {id: event.worker, name: event.name, state: "left"});
		}
	}
	return [...workers.values()].sort((a, b) => a.id - b.id);
}

function draw() {
	const width = box.clientWidth;
	if (!store.picture || width === 0) return;
	const {from, to} = span();
	const workers = workersShown();
	const height = workers.length * LANE + AXIS;
	const x = (at) => LABEL + ((width - LABEL) * (Math.min(to, at) - from)) / (to - from);
	setAttr(drawing, "width", width);
	setAttr(drawing, "height", height);
	const events = store.picture.events.filter((event) => event.time >= from);
	drawing.replaceChildren(axis(from, to, x, workers.length * LANE, width), ...epochs(events, x, workers.length * LANE),
		...workers.map((worker, row) => lane(worker, row, from, to, x)), ...marksOf(events, workers, x));
}

function axis(from, to, x, bottom, width) {
	const wanted = (to - from) / Math.max(2, (width - LABEL) / 110);
	const step = TICK_STEPS.find((seconds) => seconds >= wanted) ?? TICK_STEPS.at(-1);
	const ticks = svg("g");
	for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
		ticks.append(svg("line.rule", {x1: x(at), x2: x(at), y1: 0, y2: bottom}));
		if (x(at) > LABEL + 28 && x(at) < width - 28) {
			ticks.append(svg("text.label.small", {x: x(at), y: bottom + 16, "text-anchor": "middle"}, time(at)));
		}
	}
	return ticks;
}

function epochs(events, x, bottom) {
	return events.filter((event) => event.kind === "epoch").map((event) =>
		svg("line.epoch", {x1: x(event.time), x2: x(event.time), y1: 0, y2: bottom},
			svg("title", `${time(event.time)} ${event.text}`)));
}

function lane(worker, row, from, to, x) {
	const unit = view.pin ? store.unitOf(view.pin.layer, view.pin.expert) : -1;
	const isDim = unit >= 0 && !(store.picture.placement?.experts[unit] ?? []).includes(worker.id);
	const y = row * LANE + 4;
	const pieces = lanesOf(store.picture.events, worker, from, to).map((piece) => {
		const left = x(piece.from);
		const width = Math.max(2, x(piece.to) - left);
		const words = `${worker.name} ${piece.state} for ${duration(piece.to - piece.from)}, from ${time(piece.from)}`;
		return svg("g", {"data-state": piece.state, class: "piece"},
			svg("rect", {x: left, y, width, height: LANE - 8}, svg("title", words)),
			width > 56 ? svg("text", {x: left + 6, y: y + 12, "dominant-baseline": "central"}, piece.state) : null);
	});
	return svg("g", {"data-dim": isDim}, svg("text.name", {x: 0, y: y + 12, "dominant-baseline": "central"}, worker.name),
			pieces);
}

function marksOf(events, workers, x) {
	const marks = [];
	for (const event of events) {
		if (!MARKS[event.kind]) continue;
		const row = workers.findIndex((worker) => worker.id === event.worker);
		const y = (row < 0 ? 0 : row * LANE) + LANE / 2;
		marks.push(svg("text.event-mark", {x: x(event.time), y, "text-anchor": "middle", "dominant-baseline": "central"},
			MARKS[event.kind], svg("title", `${time(event.time)} ${event.text}`)));
	}
	return marks;
}

function laneTable() {
	const {from, to} = span();
	return table("States of the workers", ["worker", "state", "from", "for"], workersShown().flatMap((worker) =>
		lanesOf(store.picture.events, worker, from, to).map((piece) =>
			[worker.name, piece.state, time(piece.from), duration(piece.to - piece.from)])));
}

function updateIncidents() {
	const {incidents, bounds} = store.picture;
	show(none, incidents.length === 0);
	show(incidentBox, incidents.length > 0);
	incidentPanel.update(0);
	const key = JSON.stringify(incidents);
	if (key === incidentKey) return;
	incidentKey = key;
	const head = ["worker", "what", "last sign of life", "detected after", "resent", "requests touched", "requests failed",
			"stall p50",
		"stall p99", "restored after", "epoch"];
	setText(incidentPanel.heading, incidents.length ? `Incidents (${incidents.length})` : "Incidents");
	incidentBox.replaceChildren(table("One line per loss or hang of a worker, newest first", head,
		[...incidents].reverse().map((incident) => [
			incident.name, incident.kind === "dead" ? "lost" : "hung",
			el("time", {title: dateTitle(incident.begin)}, time(incident.begin)), duration(incident.detected_after),
			`${plural(incident.rows_resent, "row")} in ${plural(incident.calls_resent, "call")}`, count(incident.requests_touched),
			el("span", {class: incident.requests_failed > 0 ? "warn" : ""}, count(incident.requests_failed)),
			...[0.5, 0.99].map((q) => quantileText(quantileOf(incident.recovery, bounds.recovery, q))),
			incident.restored_after === null ? "not yet" : duration(incident.restored_after),
			`${incident.epoch_before} → ${incident.epoch_after ?? NONE}`]), {class: "cards"}));
}
