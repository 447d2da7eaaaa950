// A small canvas to draw a picture on: a brush and two shapes, by mouse, pen or keys (arrow keys move, Space puts).

import {button, choice, el} from "./dom.js";

const SIZE = 288;
const COLOURS = [["#d62828", "red"], ["#f77f00", "orange"], ["#f2c500", "yellow"], ["#2a9d3f", "green"], ["#1d5fd1", "blue"],
	["#7b2cbf", "purple"], ["#111111", "black"], ["#ffffff", "white"]];
const STEP = 12;

export class Drawing {
	// `onDone(file)` gets the picture as a PNG.
	constructor(onDone) {
		this.onDone = onDone;
		this.tool = "brush";
		this.colour = COLOURS[0][0];
		this.at = {x: SIZE / 2, y: SIZE / 2};
		this.canvas = el("canvas", {width: SIZE, height: SIZE, tabindex: "0", role: "application", "aria-roledescription": "drawing",
			"aria-label": "Drawing: arrow keys move, Space puts the chosen tool's shape",
			onpointerdown: (event) => this.#down(event), onpointermove: (event) => this.#drag(event), onpointerup: () => this.#up(),
			onpointercancel: () => this.#up(), onkeydown: (event) => this.#key(event)});
		this.tools = choice("Tool", [["brush", "brush"], ["circle", "circle"], ["square", "square"]], (tool) => {
			this.tool = tool;
			this.tools.update(tool);
		});
		this.colours = el("div.choice.swatches", {role: "group", "aria-label": "Colour"}, COLOURS.map(([value, name]) => el("button", {
			type: "button", title: name, "aria-label": name, "data-colour": value, onclick: () => this.#choose(value)},
		el("span.swatch", {style: {background: value}}))));
		this.element = el("div.drawing", this.canvas, el("div.drawing-side", this.tools.element, this.colours,
			el("div.controls", button("Empty it", () => this.clear()),
				button("Use this picture", () => this.#done(), ".strong"))));
		this.tools.update(this.tool);
		this.#choose(this.colour);
		this.clear();
	}

	clear() {
		this.pen = this.canvas.getContext("2d");
		this.pen.fillStyle = "#ffffff";
		this.pen.fillRect(0, 0, SIZE, SIZE);
	}

	#choose(value) {
		this.colour = value;
		for (const button of this.colours.children) button.setAttribute("aria-pressed", button.dataset.colour === value);
	}

	#where(event) {
		const box = this.canvas.getBoundingClientRect();
		return {x: ((event.clientX - box.left) * SIZE) / box.width, y: ((event.clientY - box.top) * SIZE) / box.height};
	}

	#down(event) {
		this.canvas.setPointerCapture(event.pointerId);
		this.at = this.#where(event);
		this.isDown = true;
		this.#put();
	}

	#drag(event) {
		if (!this.isDown || this.tool !== "brush") return;
		const to = this.#where(event);
		this.pen.strokeStyle = this.colour;
		this.pen.lineWidth = 16;
		this.pen.lineCap = "round";
		this.pen.beginPath();
		this.pen.moveTo(this.at.x, this.at.y);
		this.pen.lineTo(to.x, to.y);
		this.pen.stroke();
		this.at = to;
	}

	#up() {
		this.isDown = false;
	}

	#put() {
		const {pen, at} = this;
		pen.fillStyle = this.colour;
		pen.beginPath();
		if (this.tool === "square") pen.rect(at.x - 36, at.y - 36, 72, 72);
		else pen.arc(at.x, at.y, this.tool === "circle" ? 40 : 8, 0, 2 * Math.PI);
		pen.fill();
	}

	#key(event) {
		const moves = {ArrowUp: [0, -STEP], ArrowDown: [0, STEP], ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0]};
		if (moves[event.key]) {
			const [right, down] = moves[event.key];
			this.at = {x: Math.max(0, Math.min(SIZE, this.at.x + right)), y: Math.max(0, Math.min(SIZE, this.at.y + down))};
		} else if (event.key === " ") {
			this.#put();
		} else {
			return;
		}
		event.preventDefault();
	}

	#done() {
		this.canvas.toBlob((blob) => this.onDone(new File([blob], "drawing.png", {type: "image/png"})), "image/png");
	}
}
