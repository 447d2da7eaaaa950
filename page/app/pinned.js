// All about the pinned expert, in figures.

import {button, el, setText, show} from "./dom.js";
import {balanceLossOf, preferenceOf, totalOf} from "./figures.js";
import {count, expertName, fixed, percent} from "./format.js";
import {panel} from "./panel.js";
import {store, view, selection} from "./state.js";

const FACTS = [
	["share", "Share of its layer's rows"], ["ratio", "Share ÷ fair share"], ["image", "Image rows among its rows"],
	["preference", "Modality preference (0 text, 1 image)"], ["weight", "Mean gate weight, text and image"],
	["loss", "Balance loss of its layer (1 is balanced)"], ["replicas", "Replicas"],
];

const values = new Map(FACTS.map(([name]) => [name, el("dd")]));
const facts = el("dl.facts-list",
	FACTS.map(([name, label]) => el("div", el("dt", label), values.get(name))));
const empty = el("p.empty",
	"No expert is pinned. Click a cell, or walk to it with the arrow keys and press Enter: the other views then show that expert alone.");
const unpin = button("Unpin", () => view.set({pin: null}), ".quiet");
const pinnedPanel = panel({name: "pinned", title: "Pinned expert", picture: el("div", facts, empty),
	tools: [unpin]});
export const element = pinnedPanel.element;

export function update() {
	const unit = view.pin ? store.unitOf(view.pin.layer, view.pin.expert) : -1;
	pinnedPanel.update(0);
	show(facts, unit >= 0);
	show(empty, unit < 0);
	show(unpin, unit >= 0);
	setText(pinnedPanel.heading, unit >= 0 ? `Pinned: ${expertName(view.pin.layer, view.pin.expert)}` : "Pinned expert");
	if (unit >= 0) fill(unit, store.layerOf(view.pin.layer));
}

function fill(unit, layer) {
	const loads = selection.loads();
	const total = totalOf(loads, layer);
	const image = selection.loads("image");
	const text = selection.loads("text");
	const rows = image[unit] + text[unit];
	setFact("share", `${percent(loads[unit] / total, 1)} (${count(loads[unit])} of ${count(total)})`);
	setFact("ratio", fixed(selection.ratios()[unit]));
	setFact("image", `${percent(image[unit] / rows, 1)} (${count(image[unit])} of ${count(rows)})`);
	setFact("preference", fixed(preferenceOf(image[unit], totalOf(image, layer), text[unit], totalOf(text, layer))));
	setFact("weight", [0, 1].map((modality) => fixed(meanWeight(unit, modality), 3)).join(", ") + ", since the start");
	setFact("loss", `${fixed(balanceLossOf(store.rows, store.probabilities, layer), 3)}, since the start`);
	const holders = store.picture.placement?.experts[unit] ?? [];
	setFact("replicas", holders.length ? holders.map((id) => store.workerName(id)).join(", ") : "none: it is not served");
}

function meanWeight(unit, modality) {
	let rows = 0;
	for (let slot = modality; slot < 8; slot += 2) rows += store.rows[unit * 8 + slot];
	return rows > 0 ? store.weights[unit * 2 + modality] / rows : NaN;
}

function setFact(name, value) {
	setText(values.get(name), value);
}
