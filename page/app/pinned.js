// All about the pinned expert, in figures.

import {button, el, setText, show} from "./dom.js";
import {balanceLossOf, preferenceOf, sumOf, totalOf} from "./figures.js";
import {count, expertName, fixed, percent} from "./format.js";
import {panel} from "./panel.js";
import {selection, store, view} from "./state.js";

// `all`, `image`, `text`: rows per expert, by the filters.
const part = (rows, total) => `${percent(rows / total, 1)} (${count(rows)} of ${count(total)})`;
const FACTS = [
	["Share of its layer's rows", ({unit, layer, all}) => part(all[unit], totalOf(all, layer))],
	["Share ÷ fair share", ({unit}) => fixed(selection.ratios()[unit])],
	["Image rows among its rows", ({unit, image, text}) => part(image[unit], image[unit] + text[unit])],
	["Modality preference (0 text, 1 image)", ({unit, layer, image, text}) =>
		fixed(preferenceOf(image[unit], totalOf(image, layer), text[unit], totalOf(text, layer)))],
	["Mean gate weight, text and image", ({unit}) => `${meanWeight(unit, 0)}, ${meanWeight(unit, 1)}, since the start`],
	["Balance loss of its layer (1 is balanced)", ({layer}) =>
		`${fixed(balanceLossOf(store.rows, store.probabilities, layer), 3)}, since the start`],
	["Replicas", ({unit}) => store.picture.placement?.experts[unit]?.map((id) => store.workerName(id)).join(", ") || "none: it is not served"],
];

const values = FACTS.map(() => el("dd"));
const facts = el("dl.facts-list", FACTS.map(([label], index) => el("div", el("dt", label), values[index])));
const empty = el("p.empty",
	"No expert is pinned. Click a cell, or walk to it with the arrow keys and press Enter: the other views then show that expert alone.");
const unpin = button("Unpin", () => view.set({pin: null}), ".quiet");
const box = panel({name: "pinned", title: "Pinned expert", picture: el("div", facts, empty), tools: [unpin]});
export const element = box.element;

export function update() {
	const unit = view.pin ? store.unitOf(view.pin.layer, view.pin.expert) : -1;
	show(facts, unit >= 0);
	show(empty, unit < 0);
	show(unpin, unit >= 0);
	setText(box.heading, unit >= 0 ? `Pinned: ${expertName(view.pin.layer, view.pin.expert)}` : "Pinned expert");
	if (unit < 0) return;
	const found = {unit, layer: store.layerOf(view.pin.layer), all: selection.loads(), image: selection.loads("image"), text: selection.loads("text")};
	FACTS.forEach(([, text], index) => setText(values[index], text(found)));
}

function meanWeight(unit, modality) {
	return fixed(store.weights[unit * 2 + modality] / sumOf([0, 2, 4, 6], (slot) => store.rows[unit * 8 + slot + modality]), 3);
}
