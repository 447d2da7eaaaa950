// A picture with its patch grid: every patch coloured by the expert that its row chose first, in the layer that the reader picks.

import {el, selectBox, setText, uniqueId} from "./dom.js";
import {expertColour, ink} from "./colour.js";
import {expertName, fixed, percent, plural} from "./format.js";

const SIZE = 288;
const FIGURE_MIN = 18;

export class Patches {
	// routes: {shape, values} of routed_experts; probabilities: the same of gate_probabilities, or null; rows: [first, count].
	constructor({picture, routes, probabilities, rows, grid, layers, chosenLayer}) {
		Object.assign(this, {picture, routes, probabilities, rows, grid, layers});
		this.layer = Math.max(0, layers.findIndex((layer) => layer.layer === chosenLayer));
		this.cursor = null;
		this.readout = el("output.readout", {id: uniqueId("patch"), "aria-live": "polite"});
		this.legend = el("p.patch-legend");
		this.select = selectBox("Layer", (value) => {
			this.layer = Number(value);
			this.draw();
		});
		this.select.update(layers.map(({layer}, index) => [String(index), `L${layer}`]), this.layer);
		this.canvas = el("canvas", {width: 2 * SIZE, height: 2 * SIZE, tabindex: "0", role: "application", "aria-roledescription": "patch grid",
			"aria-label": "Patches of the picture; arrow keys walk them", "aria-describedby": this.readout.id,
			onpointermove: (event) => this.#point(event), onpointerleave: () => this.#leave(), onblur: () => this.#leave(),
			onfocus: () => this.#move(0, 0), onkeydown: (event) => this.#key(event)});
		this.element = el("div.patches", this.canvas,
			el("div.patch-side", this.select.element, this.legend, this.readout,
				picture.width === picture.height ? null : el("p.note", "The picture is drawn as if padded to a square, as MoE-LLaVA does.")));
		this.draw();
	}

	// Whether any of its rows was computed for this answer.
	get isComputed() {
		return Array.from({length: this.rows[1]}, (_, patch) => this.#first(patch)).some((expert) => expert >= 0);
	}

	draw() {
		const pen = this.canvas.getContext("2d");
		pen.setTransform(2, 0, 0, 2, 0, 0);
		pen.fillStyle = "#7a7a7a";
		pen.fillRect(0, 0, SIZE, SIZE);
		this.#drawPicture(pen);
		this.#drawExperts(pen);
		this.#drawCursor(pen);
		this.#drawLegend();
	}

	// As the model sees it: the long side fills the square, the rest is padding.
	#drawPicture(pen) {
		const {width, height} = this.picture;
		const scale = SIZE / Math.max(width, height);
		pen.drawImage(this.picture, (SIZE - width * scale) / 2, (SIZE - height * scale) / 2, width * scale, height * scale);
	}

	#drawExperts(pen) {
		const {rows, columns} = this.grid;
		const width = SIZE / columns;
		const height = SIZE / rows;
		const {experts} = this.layers[this.layer];
		pen.textAlign = "center";
		pen.textBaseline = "middle";
		pen.font = `600 12px ${getComputedStyle(document.body).fontFamily}`;
		for (let patch = 0; patch < rows * columns; ++patch) {
			const expert = this.#first(patch);
			const x = (patch % columns) * width;
			const y = Math.floor(patch / columns) * height;
			if (expert < 0) continue;
			pen.globalAlpha = 0.45;
			pen.fillStyle = expertColour(this.layer, expert, experts);
			pen.fillRect(x + 0.5, y + 0.5, width - 1, height - 1);
			pen.globalAlpha = 1;
			if (Math.min(width, height) < FIGURE_MIN) continue;
			// On a plate of its own colour, so that it can be read on any picture.
			pen.fillRect(x + width / 2 - 8, y + height / 2 - 8, 16, 16);
			pen.fillStyle = ink();
			pen.fillText(String(expert), x + width / 2, y + height / 2);
		}
	}

	#drawCursor(pen) {
		if (this.cursor === null) return;
		const {rows, columns} = this.grid;
		pen.strokeStyle = ink();
		pen.lineWidth = 2;
		pen.strokeRect((this.cursor % columns) * (SIZE / columns), Math.floor(this.cursor / columns) * (SIZE / rows), SIZE / columns, SIZE / rows);
	}

	#drawLegend() {
		const {layer, experts} = this.layers[this.layer];
		const counts = new Map();
		for (let patch = 0; patch < this.grid.rows * this.grid.columns; ++patch) {
			const expert = this.#first(patch);
			counts.set(expert, (counts.get(expert) ?? 0) + 1);
		}
		const known = [...counts].filter(([expert]) => expert >= 0).sort((a, b) => b[1] - a[1]);
		const kept = counts.get(-1) ?? 0;
		this.legend.replaceChildren(el("span.legend-title", `First choices in L${layer}; these colours are of this layer alone.`),
			...known.map(([expert, patches]) => el("span.legend",
				el("span.swatch", {style: {background: expertColour(this.layer, expert, experts)}}), `expert ${expert}: ${plural(patches, "row")}`)),
			kept ? el("span.legend", `${kept} not computed: the prefix cache had them`) : "");
	}

	#first(patch) {
		const [, numLayers, topK] = this.routes.shape;
		return this.routes.values[((this.rows[0] + patch) * numLayers + this.layer) * topK] ?? -1;
	}

	#point(event) {
		const {rows, columns} = this.grid;
		const box = this.canvas.getBoundingClientRect();
		const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
		const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
		this.#go(Math.max(0, Math.min(rows - 1, row)), Math.max(0, Math.min(columns - 1, column)));
	}

	#move(down, right) {
		const {columns, rows} = this.grid;
		const now = this.cursor ?? 0;
		this.#go(Math.max(0, Math.min(rows - 1, Math.floor(now / columns) + down)), Math.max(0, Math.min(columns - 1, (now % columns) + right)));
	}

	#go(row, column) {
		this.cursor = row * this.grid.columns + column;
		setText(this.readout, `Patch row ${row}, column ${column}: ${this.#describe(this.cursor)}`);
		this.draw();
	}

	#leave() {
		if (document.activeElement === this.canvas) return;
		this.cursor = null;
		setText(this.readout, "");
		this.draw();
	}

	#describe(patch) {
		const {layer, experts} = this.layers[this.layer];
		const first = this.#first(patch);
		if (first < 0) return "not computed, the prefix cache had it";
		if (!this.probabilities) return expertName(layer, first);
		const [, numLayers, most] = this.probabilities.shape;
		const at = ((this.rows[0] + patch) * numLayers + this.layer) * most;
		const all = Array.from({length: experts}, (_, expert) => [expert, this.probabilities.values[at + expert]])
			.sort((a, b) => b[1] - a[1]).slice(0, 8);
		return all.map(([expert, p]) => `expert ${expert} ${Number.isNaN(p) ? fixed(p) : percent(p, 1)}`).join(", ") +
			(experts > 8 ? ", …" : "");
	}

	#key(event) {
		const moves = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
		if (!moves[event.key]) return;
		this.#move(...moves[event.key]);
		event.preventDefault();
	}
}
