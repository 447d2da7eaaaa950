// Where the load is, and whether it is text or image: maps of layer × expert, how uneven every layer is, the pinned expert, the
// workers and the rates.

import {button, choice, el, prefersStill, rowsOf, setAttr, setText, show, svg, table} from "./dom.js";
import {imbalanceOf, loadsOf, slotsOf, totalOf} from "./figures.js";
import {count, dateTitle, expertName, fixed, percent, plural, time} from "./format.js";
import {diverging, ratioPosition, theme} from "./colour.js";
import {Heatmap} from "./heatmap.js";
import * as pinned from "./pinned.js";
import * as rates from "./rates.js";
import * as workers from "./workers.js";
import {panel} from "./panel.js";
import {accumulate} from "./recent.js";
import {past, requestRender, selection, store, view} from "./state.js";

const LAYERS_SHOWN = 12;  // the least balanced ones, if there are more
// What the colours tell apart: share ÷ fair share, and differences of two of them.
const RATIOS = [0, 4, ratioPosition];
const DIFFERENCES = [-2, 2, (value) => Math.sign(value) * Math.sqrt(Math.abs(value) / 2)];
const PLAY_MS = 250;
const LARGE_TABLE_MS = 5000;  // a table of many thousand cells is not built every second

let playing, knownKey, known;
const modalityChoice = choice("Rows of which kind", [["all", "all"], ["image", "image"], ["text", "text"]],
	(modality) => view.set({modality}));
const phaseChoice = choice("Rows of which phase", [["both", "both"], ["prefill", "prefill"], ["decode", "decode"]],
	(phase) => view.set({phase}));
const windowChoice = choice("Window", [["start", "since start"], ["60", "last 60 s"], ["10", "last 10 s"]],
	(window) => view.set({window}));
const compareChoice = choice("Compare image with text", [["off", "one map"], ["on", "image | text"]], (compare) => view.set({compare}));
const slider = el("input", {type: "range", min: 0, max: 0, step: 1, "aria-label": "Moment of the last 15 minutes",
	oninput: () => seek(Number(slider.value))});
const moment = el("span.moment");
const playButton = button("Replay", () => togglePlay());
const liveButton = button("Live", () => goLive());
const historyBox = el("div.history", playButton, slider, liveButton, moment);
const controls = el("div.controls", modalityChoice.element, phaseChoice.element, windowChoice.element,
	compareChoice.element);
const describe = (mapOf) => (unit, layer, expert) => describeCell(unit, layer, expert, mapOf);
const map = (title, mapOf) => new Heatmap({title, describe: describe(mapOf),
	onPick: (layer, expert) => view.togglePin(layer, expert)});
const singleMap = map("Share ÷ fair share", () => view.modality);
const imageMap = map("Image rows: share ÷ fair share", () => "image");
const textMap = map("Text rows: share ÷ fair share", () => "text");
const differenceMap = map("Image − text: blue more text, orange more image", () => null);
const what = el("p.note", {"aria-live": "polite"});
const empty = el("p.empty", "No traffic yet. Ask something: ",
	el("code", "conclave ask models/demo/samples/two.jpg \"How many objects are there?\""), ", or use the tab Chat.");
const noModel = el("p.empty", "No member has said yet what the model is. Start a worker: ",
	el("code", "conclave worker --router HOST:PORT"));
const keyBox = el("div.key", {role: "img",
	"aria-label": "Colours: blue a quarter of the fair share or less, neutral the fair share, orange four times it or more"},
	[0.25, 0.5, 1, 2, 4].map((ratio) => el("span.key-stop", {"data-ratio": ratio},
		{0.25: "¼", 0.5: "½", 1: "1 = fair share", 2: "2", 4: "4 ×"}[ratio])));
const compareBox = el("div.heat-compare", imageMap.element, textMap.element, differenceMap.element);
const mapBox = el("div", singleMap.element, compareBox, keyBox);
const picture = el("div", empty, noModel, mapBox);
const mapPanel = panel({name: "heat", title: "Layer × expert", picture, makeTable: () => mapTable()});
mapPanel.element.insertBefore(controls, picture);
mapPanel.element.insertBefore(what, picture);
mapPanel.element.append(historyBox);
const imbalanceList = el("ul.imbalance");
const imbalanceNote = el("p.note");
const imbalancePanel = panel({name: "imbalance", title: "Imbalance per layer, max ÷ mean", picture: el("div", imbalanceList, imbalanceNote)});
export const element = el("div.columns",
	el("div.column", mapPanel.element, pinned.element, imbalancePanel.element),
	el("div.column", workers.element, rates.element));

export function update() {
	const now = selection.current();
	modalityChoice.update(view.modality);
	phaseChoice.update(view.phase);
	windowChoice.update(view.window);
	compareChoice.update(view.compare);
	updateHistory();
	setText(what, `${filterText()}, ${now.what}`);
	const isLarge = store.numUnits > 2048;
	const version = isLarge ? Math.floor(performance.now() / LARGE_TABLE_MS) : store.version;
	if (mapPanel.update([version, location.hash].join())) updateMaps();
	updateImbalance();
	pinned.update();
	workers.update();
	rates.update();
}

export function refreshColours() {
	keyBox.dataset.theme = theme();
	for (const stop of keyBox.querySelectorAll("[data-ratio]")) {
		stop.style.background = diverging(ratioPosition(Number(stop.dataset.ratio)));
	}
}

function updateMaps() {
	const isCompare = view.compare === "on";
	show(noModel, store.numUnits === 0);
	show(empty, store.numUnits > 0 && !store.hasRows);
	show(mapBox, store.numUnits > 0);
	show(singleMap.element, !isCompare);
	show(compareBox, isCompare);
	if (keyBox.dataset.theme !== theme()) refreshColours();
	const shared = {layers: store.layers, pin: view.pin};
	const ratio = {...shared, scale: RATIOS, figure: fixed};
	if (!isCompare) {
		singleMap.update({...ratio, values: selection.ratios()});
		return;
	}
	const image = selection.ratios("image");
	const text = selection.ratios("text");
	imageMap.update({...ratio, values: image});
	textMap.update({...ratio, values: text});
	differenceMap.update({...shared, values: image.map((value, unit) => value - text[unit]), scale: DIFFERENCES,
		figure: (value) => (value > 0 ? "+" : "") + fixed(value)});
}

function describeCell(unit, layer, expert, mapOf) {
	const name = expertName(layer.layer, expert);
	const modality = mapOf();
	if (modality === null) {
		const [image, text] = ["image", "text"].map((kind) => selection.ratios(kind)[unit]);
		return `${name}: image ${fixed(image)} − text ${fixed(text)} = ${fixed(image - text)} fair shares`;
	}
	const loads = selection.loads(modality);
	const total = totalOf(loads, layer);
	return `${name}: ${fixed(selection.ratios(modality)[unit])} × fair share, ${percent(loads[unit] / total, 1)} of ` +
		`${plural(total, "row")}, ${count(loads[unit])}`;
}

function filterText() {
	const {modality, phase, compare} = view;
	const kind = compare === "on" || modality === "all" ? "All rows" : modality === "image" ? "Image rows" : "Text rows";
	return phase === "both" ? kind : `${kind} of ${phase}`;
}

function mapTable() {
	const ratios = selection.ratios();
	const loads = selection.loads();
	const columns = store.layers.reduce((most, layer) => Math.max(most, layer.experts), 0);
	return table(`Rows and share ÷ fair share. ${what.textContent}`,
		["layer", ...Array.from({length: columns}, (_, expert) => `expert ${expert}`)],
		store.layers.map((layer) => [`L${layer.layer}`, ...layer.units.map((u) => `${count(loads[u])} (${fixed(ratios[u])})`)]));
}

// The imbalance of every step of the history, for the sparklines. Only new steps are computed.
function imbalancePerStep() {
	const key = [view.modality, view.phase, store.numUnits].join();
	if (key !== knownKey) known = new WeakMap();
	knownKey = key;
	return past.steps.map((step) => {
		if (!known.has(step)) {
			const loads = loadsOf(accumulate(new Float64Array(store.rows.length), step, 1), slotsOf(view.modality, view.phase),
				new Float64Array(store.numUnits));
			known.set(step, store.layers.map((layer) => imbalanceOf(loads, layer)));
		}
		return known.get(step);
	});
}

function updateImbalance() {
	const loads = selection.loads();
	const perStep = imbalancePerStep();
	const all = store.layers.map((layer, index) => ({layer, index, value: imbalanceOf(loads, layer)}));
	const shown = all.length <= LAYERS_SHOWN ? all
		: [...all].sort((a, b) => (b.value || 0) - (a.value || 0)).slice(0, LAYERS_SHOWN);
	const items = rowsOf(imbalanceList, shown.length, imbalanceItem);
	shown.forEach(({layer, index, value}, place) => {
		const item = items[place];
		setText(item.children[0], `L${layer.layer}`);
		setText(item.children[1], fixed(value));
		setAttr(item.querySelector("path"), "d", sparkline(perStep.map((step) => step[index])));
	});
	const steps = perStep.length > 1 ? ` The line: every ${Math.round(past.step)} s of the last 15 minutes, from 1 up.` : "";
	setText(imbalanceNote, (shown.length < all.length ? `The ${shown.length} least balanced of ${all.length} layers.` : "") + steps);
}

function shownIndex() {
	return view.at === null ? past.times.length - 1 : past.indexAt(view.at);
}

function updateHistory() {
	const why = past.why ?? (past.times.length < 2 ? `the first step of ${past.step} s is not over yet` : null);
	const last = Math.max(0, past.times.length - 1);
	setAttr(slider, "max", last);
	slider.disabled = playButton.disabled = why !== null;
	liveButton.disabled = view.at === null;
	const index = shownIndex();
	if (Number(slider.value) !== index) slider.value = String(Math.max(0, index));
	const at = past.times[index];
	setAttr(slider, "aria-valuetext", view.at === null ? "now" : time(at));
	setText(moment, why ? `No replay: ${why}.` : view.at === null
		? `now; back to ${time(past.times[0])}` : `map as of ${time(at)}; all else is live`);
	setAttr(moment, "title", dateTitle(at));
	setText(playButton, playing ? "Pause" : "Replay");
}

function seek(index) {
	if (past.why !== null || past.times.length < 2) return;
	const last = past.times.length - 1;
	view.set({at: index >= last ? null : past.times[Math.max(0, index)]});
}

// One step of the history back or forward.
export function step(by) {
	seek(shownIndex() + by);
}

export function goLive() {
	stopPlay();
	view.set({at: null});
}

function togglePlay() {
	if (playing) {
		stopPlay();
	} else {
		if (view.at === null) seek(0);
		playing = setInterval(() => {
			seek(shownIndex() + 1);
			if (view.at === null) stopPlay();
		}, prefersStill() ? 4 * PLAY_MS : PLAY_MS);
	}
	requestRender();
}

function stopPlay() {
	clearInterval(playing);
	playing = null;
}

const SPARK = {width: 120, height: 20};

function imbalanceItem() {
	return el("li", el("span.imbalance-layer"), el("strong"),
		svg("svg", {viewBox: `0 0 ${SPARK.width} ${SPARK.height}`, width: SPARK.width, height: SPARK.height, "aria-hidden": "true"},
			svg("path.spark")));
}

// From 1 (the floor) to the largest value, at least 2, so that a balanced layer looks flat. A step without rows is a gap.
function sparkline(values) {
	const top = Math.max(2, ...values.filter((value) => !Number.isNaN(value)));
	return values.map((value, index) => {
		const x = (SPARK.width * index) / Math.max(1, values.length - 1);
		const y = SPARK.height - 1 - ((value - 1) / (top - 1)) * (SPARK.height - 2);
		return isNaN(value) ? "" : `${isNaN(values[index - 1]) ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
	}).join("") || "M0 0";
}
