// Which worker holds which expert: workers as columns, layers as rows, one chip per replica, coloured by the expert's load. When
// an epoch comes, chips that move glide to their new worker and leave a line behind, until the next epoch.

import {diverging, ratioPosition} from "./colour.js";
import {button, el, prefersStill, setAttr, setText, show, svg, table} from "./dom.js";
import {spreadOf, sumOf, workerLoadsOf} from "./figures.js";
import {bytes, count, dateTitle, expertName, fixed, percent, plural, time} from "./format.js";
import {panel} from "./panel.js";
import {selection, store, view} from "./state.js";
import * as whatIf from "./whatif.js";

const CHIPS_MAX = 1200;  // more are shown by pages of layers
const CHIP = {width: 28, height: 20, gap: 4};
const HEAD = 64;
const LABEL = 40;
const COLUMN_MIN = 104;
const COLUMN_MAX = 220;

let drawnEpoch, pageKey;
const drawing = svg("svg.placement", {role: "img", "aria-label": "Workers as columns, layers as rows, replicas as chips"});
const frame = svg("g");
const traces = svg("g.traces");
const chipGroup = svg("g");
drawing.append(frame, traces, chipGroup);
const chipNodes = new Map();  // "unit:worker" -> {element, x, y}
const slider = el("input", {type: "range", min: 0, max: 0, step: 1, "aria-label": "Epoch",
	oninput: () => seek(Number(slider.value))});
const moment = el("span.moment");
const live = button("Live", () => view.set({epoch: null}));
const pager = el("div.controls");
const note = el("p.note");
const empty = el("p.empty", "Nothing is placed yet: the first epoch comes when a worker has joined. Start one: ",
	el("code", "conclave worker --router HOST:PORT"));
const frameBox = el("div.placement-box", drawing);
const placementPanel = panel({name: "placement", title: "Placement", makeTable: () => replicaTable(),
	picture: el("div", empty, note, pager, frameBox)});
placementPanel.element.append(el("div.history", slider, live, moment));
export const element = el("div.columns", el("div.column", placementPanel.element),
	el("div.column", whatIf.element));
new ResizeObserver(() => draw(false)).observe(frameBox);

export function update() {
	const shown = shownEpoch();
	updateScrubber(shown);
	show(empty, !shown);
	show(frameBox, Boolean(shown));
	setText(note, shown ? summary(shown) : "");
	if (placementPanel.update(store.version)) draw(!prefersStill());
	whatIf.update();
}

// The chosen epoch, or the newest.
function shownEpoch() {
	const found = store.epochs.find((entry) => entry.epoch === view.epoch);
	return found ?? store.epochs[store.epochs.length - 1] ?? null;
}

function workersOf(shown) {
	const ids = new Set(shown.experts.flat());
	for (const worker of store.present) ids.add(worker.id);
	return [...ids].sort((a, b) => a - b);
}

function summary(shown) {
	const {cluster} = store.picture;
	const loads = workerLoadsOf(selection.loads(), shown.experts, workersOf(shown));
	return `Rows per worker, max ÷ mean: ${fixed(spreadOf([...loads.values()]))} by the rows ${selection.current().what}` +
		` (seen by the server ${fixed(cluster.imbalance_seen)}, planned ${fixed(cluster.imbalance_planned)}). ` +
		`Replicas: ${cluster.replicas_wanted} wanted, ${cluster.replicas_lowest} at least. Chip colour: load of the expert ÷ fair share.`;
}

function updateScrubber(shown) {
	const index = shown ? store.epochs.indexOf(shown) : 0;
	setAttr(slider, "max", Math.max(0, store.epochs.length - 1));
	slider.disabled = store.epochs.length < 2;
	live.disabled = view.epoch === null;
	if (Number(slider.value) !== index) slider.value = String(index);
	setAttr(slider, "aria-valuetext", shown ? `epoch ${shown.epoch}` : "none");
	const seen = `${plural(store.epochs.length, "epoch")} seen by this page`;
	setText(moment, shown ? `epoch ${shown.epoch} of ${time(shown.time)}; ${seen}` : seen);
	setAttr(moment, "title", dateTitle(shown?.time));
}

function seek(index) {
	view.set({epoch: index >= store.epochs.length - 1 ? null : store.epochs[index].epoch});
}

// Layers that are drawn now: all, or a page of them.
function pageOf(shown) {
	const chips = sumOf(shown.experts, (holders) => holders.length);
	const perLayer = Math.max(1, chips / Math.max(1, store.layers.length));
	const size = Math.max(1, Math.floor(CHIPS_MAX / perLayer));
	const pages = Math.ceil(store.layers.length / size);
	const first = Math.min(view.rows, Math.max(0, store.layers.length - 1));
	const start = size * Math.floor(first / size);
	const key = [size, pages, start].join();
	if (pageKey !== key) {
		pageKey = key;
		pager.replaceChildren(...(pages < 2 ? [] : pagerParts(start, size)));
	}
	return store.layers.slice(start, start + size);
}

function pagerParts(start, size) {
	const last = Math.min(store.layers.length, start + size) - 1;
	const to = (text, rows, isOff) => el("button", {type: "button", disabled: isOff, onclick: () => view.set({rows})}, text);
	return [to("Layers before", Math.max(0, start - size), start === 0),
		to("Layers after", start + size, last === store.layers.length - 1),
		el("span.moment", `L${store.layers[start].layer} to L${store.layers[last].layer} of ${plural(store.layers.length, "layer")}`)];
}

function draw(mayGlide) {
	const shown = store.picture && shownEpoch();
	const width = frameBox.clientWidth;
	if (!shown || width === 0) return;
	const ids = workersOf(shown);
	const layers = pageOf(shown);
	const layout = layoutOf(shown, ids, layers, width);
	setAttr(drawing, "width", width);
	setAttr(drawing, "height", layout.height);
	setAttr(drawing, "viewBox", `0 0 ${width} ${layout.height}`);
	drawFrame(layout, layers);
	drawChips(shown, layers, layout, mayGlide && drawnEpoch !== shown.epoch && drawnEpoch !== undefined);
	drawnEpoch = shown.epoch;
}

// Columns that do not fit beside one another go into a further band below, so nothing scrolls sideways.
function layoutOf(shown, ids, layers, width) {
	const perBand = Math.max(1, Math.min(ids.length, Math.floor((width - LABEL) / COLUMN_MIN)));
	const columnWidth = Math.min(COLUMN_MAX, (width - LABEL) / perBand);
	const perRow = Math.max(1, Math.floor((columnWidth - 12) / (CHIP.width + CHIP.gap)));
	const rows = layers.map((layer) => {
		const counts = new Map();
		for (const id of layer.units.flatMap((u) => shown.experts[u] ?? [])) counts.set(id, (counts.get(id) ?? 0) + 1);
		const most = Math.max(1, ...counts.values());
		return {layer, height: Math.ceil(most / perRow) * (CHIP.height + CHIP.gap) + 12};
	});
	let y = HEAD;
	for (const row of rows) {
		row.y = y;
		y += row.height;
	}
	const bandHeight = y + 12;
	const columns = new Map(ids.map((id, index) => [id, {
		x: LABEL + (index % perBand) * columnWidth, band: Math.floor(index / perBand) * bandHeight}]));
	const bands = Math.max(1, Math.ceil(ids.length / perBand));
	return {columns, rows, columnWidth, perRow, perBand, bandHeight, height: bands * bandHeight, bands};
}

function drawFrame({columns, rows, columnWidth, bands, bandHeight, perBand}) {
	const parts = [];
	const right = LABEL + columnWidth * Math.min(perBand, columns.size);
	for (let band = 0; band < bands; ++band) {
		for (const row of rows) {
			const y = band * bandHeight + row.y;
			parts.push(svg("line.rule", {x1: 0, x2: right, y1: y - 1, y2: y - 1}),
				svg("text.label", {x: 0, y: y + 6 + CHIP.height / 2, "dominant-baseline": "middle"}, `L${row.layer.layer}`));
		}
	}
	for (const [id, {x, band}] of columns) parts.push(columnHead(id, x, band, columnWidth));
	frame.replaceChildren(...parts);
}

function columnHead(id, x, y, width) {
	const worker = store.workers.get(id);
	const share = worker && worker.memory > 0 ? worker.memory_used / worker.memory : NaN;
	const bar = width - 16;
	const state = worker ? worker.state : "gone";
	return svg("g", {transform: `translate(${x} ${y})`},
		svg("text.name", {x: 0, y: 14}, store.workerName(id)),
		svg("text.label", {x: 0, y: 30}, worker?.loading ? `${state}, ${worker.loading} loading` : state),
		svg("rect.bar-back", {x: 0, y: 38, width: bar, height: 4}),
		svg("rect.bar-front", {x: 0, y: 38, width: bar * Math.max(0, Math.min(1, share || 0)), height: 4}),
		svg("text.label.small", {x: 0, y: 55}, worker ? `${bytes(worker.memory_used)}, ${percent(share)}` : ""));
}

function drawChips(shown, layers, layout, isGliding) {
	const wanted = placesOf(shown, layers, layout);
	const left = new Map();  // unit -> chips without a place any more
	for (const [key, node] of chipNodes) {
		if (wanted.has(key)) continue;
		chipNodes.delete(key);
		if (!left.has(node.unit)) left.set(node.unit, []);
		left.get(node.unit).push(node);
	}
	if (drawnEpoch !== shown.epoch) traces.replaceChildren();
	for (const [key, place] of wanted) {
		let node = chipNodes.get(key) ?? left.get(place.unit)?.pop();
		if (!node) {
			node = newChip(place.unit);
			chipGroup.append(node.element);
		} else if (isGliding && !chipNodes.has(key)) {
			traces.append(svg("line", {x1: node.x + CHIP.width / 2, y1: node.y + CHIP.height + 2,
				x2: place.x + CHIP.width / 2, y2: place.y + CHIP.height + 2}));
		}
		chipNodes.set(key, node);
		fillChip(node, place, isGliding);
	}
	for (const nodes of left.values()) for (const node of nodes) node.element.remove();
}

function placesOf(shown, layers, {columns, rows, perRow}) {
	const wanted = new Map();
	const taken = new Map();  // "layer:worker" -> chips so far
	layers.forEach((layer, index) => {
		for (const u of layer.units) {
			for (const id of shown.experts[u] ?? []) {
				const cell = `${index}:${id}`;
				const n = taken.get(cell) ?? 0;
				taken.set(cell, n + 1);
				const {x, band} = columns.get(id);
				wanted.set(`${u}:${id}`, {unit: u, layer, expert: u - layer.first, worker: id,
					x: x + (n % perRow) * (CHIP.width + CHIP.gap),
					y: band + rows[index].y + 6 + Math.floor(n / perRow) * (CHIP.height + CHIP.gap)});
			}
		}
	});
	return wanted;
}

function newChip(unit) {
	const title = svg("title");
	const box = svg("rect", {width: CHIP.width, height: CHIP.height, rx: 2});
	const text = svg("text", {x: CHIP.width / 2, y: CHIP.height / 2, "dominant-baseline": "central", "text-anchor": "middle"});
	const element = svg("g.chip", {onclick: () => {
		const {layer, expert} = node.place;
		view.togglePin(layer.layer, expert);
	}}, title, box, text);
	const node = {unit, element, title, box, text, x: 0, y: 0};
	return node;
}

function fillChip(node, place, isGliding) {
	const ratio = selection.ratios()[place.unit];
	node.place = place;
	node.element.classList.toggle("glides", isGliding);
	node.element.style.transform = `translate(${place.x}px, ${place.y}px)`;
	node.x = place.x;
	node.y = place.y;
	const isPinned = view.isPinned(place.layer.layer, place.expert);
	setAttr(node.element, "data-pinned", isPinned);
	setAttr(node.element, "data-dim", view.pin !== null && !isPinned);
	node.box.style.fill = diverging(Number.isNaN(ratio) ? 0 : ratioPosition(ratio));
	setText(node.text, String(place.expert));
	setText(node.title, `${expertName(place.layer.layer, place.expert)} on ${store.workerName(place.worker)}: ` +
		`${fixed(ratio)} × fair share, ${count(selection.loads()[place.unit])} rows`);
}

function replicaTable() {
	const shown = shownEpoch();
	if (!shown) return el("p.empty", "Nothing is placed yet.");
	const ratios = selection.ratios();
	return table(`Replicas in epoch ${shown.epoch}`, ["expert", "replicas", "on", "load ÷ fair share"], pageOf(shown).flatMap((layer) =>
		layer.units.map((u, expert) => {
			const holders = shown.experts[u] ?? [];
			return [expertName(layer.layer, expert), count(holders.length), holders.map((id) => store.workerName(id)).join(", ") || "nobody",
				fixed(ratios[u])];
		})));
}
