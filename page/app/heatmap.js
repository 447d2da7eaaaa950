// A map of layers × experts on a canvas: one pixel per cell, scaled up, so that 61 × 256 cells cost as little as 2 × 4. Mouse
// and arrow keys move a cursor, Enter or a click pins a cell, and a line below says in figures what the colour means.

import {ink, palette, theme} from "./colour.js";
import {el, setText, uniqueId} from "./dom.js";

const GUTTER = 36;  // layer numbers
const TOP = 20;  // expert numbers
const CELL_WIDTH_MAX = 160;
const FIGURES_WIDTH_MIN = 34;
const FIGURES_HEIGHT_MIN = 16;

export class Heatmap {
	// `onPick(layer, expert)`; `describe(unit, layer, expert)` says all about a cell in words.
	constructor({title, onPick, describe}) {
		this.describe = describe;
		this.onPick = onPick;
		this.cursor = {row: 0, column: 0};
		this.readout = el("output.readout", {id: uniqueId("readout"), "aria-live": "polite"});
		this.canvas = el("canvas", {
			tabindex: "0", role: "application", "aria-describedby": this.readout.id,
			"aria-label": `${title}: arrow keys walk the cells, Enter pins one`,
			onkeydown: (event) => this.#key(event),
			onpointermove: (event) => this.#point(event, false),
			onpointerleave: () => this.#leave(),
			onclick: (event) => this.#point(event, true),
			onfocus: () => this.#say(),
			onblur: () => this.#leave(),
		});
		this.cursorBox = el("div.cell-cursor", {hidden: true});
		this.pinBox = el("div.cell-pin", {hidden: true});
		this.scroll = el("div.heat-scroll",
			el("div.heat-area", this.canvas, this.pinBox, this.cursorBox));
		this.element = el("div.heat", el("h3", title), this.scroll, this.readout);
		this.cells = document.createElement("canvas");
		new ResizeObserver(() => this.#draw()).observe(this.scroll);
	}

	// `values[unit]` with NaN for "no rows"; `scale`: [low, high, position of a value between them]; `figure(value)` as text.
	update({layers, values, scale, figure, pin}) {
		if (this.scale !== scale || this.theme !== theme()) this.pixelOf = palette(...scale);
		Object.assign(this, {layers, values, scale, figure, pin, theme: theme()});
		this.columns = layers.reduce((most, layer) => Math.max(most, layer.experts), 0);
		this.#draw();
	}

	#draw() {
		const width = this.scroll.clientWidth;
		if (!this.layers?.length || width === 0) return;
		this.#measure(width);
		this.#paintCells();
		const {canvas} = this;
		const scale = devicePixelRatio || 1;
		const height = TOP + this.cellHeight * this.layers.length;
		const total = GUTTER + this.cellWidth * this.columns;
		if (canvas.width !== Math.round(total * scale) || canvas.height !== Math.round(height * scale)) {
			canvas.width = Math.round(total * scale);
			canvas.height = Math.round(height * scale);
			Object.assign(canvas.style, {width: `${total}px`, height: `${height}px`});
		}
		const pen = canvas.getContext("2d");
		pen.setTransform(scale, 0, 0, scale, 0, 0);
		pen.clearRect(0, 0, total, height);
		pen.imageSmoothingEnabled = false;
		pen.drawImage(this.cells, GUTTER, TOP, this.cellWidth * this.columns, this.cellHeight * this.layers.length);
		this.#gaps(pen);
		this.#labels(pen);
		this.#place(this.pinBox, this.pin && this.#cellOf(this.pin));
		if (!this.cursorBox.hidden) this.#say();
		else setText(this.readout, "");
	}

	#measure(width) {
		const narrowest = this.columns > 64 ? 4 : 24;
		const fitting = Math.floor((width - GUTTER) / this.columns);
		this.cellWidth = Math.max(narrowest, Math.min(CELL_WIDTH_MAX, fitting));
		this.cellHeight = Math.max(8, Math.min(40, Math.floor(400 / this.layers.length)));
	}

	#paintCells() {
		const {cells, columns, layers, values} = this;
		cells.width = columns;
		cells.height = layers.length;
		const pen = cells.getContext("2d");
		const image = pen.createImageData(columns, layers.length);
		const pixels = new Uint32Array(image.data.buffer);
		for (let row = 0; row < layers.length; ++row) {
			const {first, experts} = layers[row];
			for (let column = 0; column < experts; ++column) {
				const value = values[first + column];
				if (!Number.isNaN(value)) pixels[row * columns + column] = this.pixelOf(value);
			}
		}
		pen.putImageData(image, 0, 0);
	}

	// Cut out again what separates large cells.
	#gaps(pen) {
		if (this.cellWidth < 8) return;
		const right = GUTTER + this.cellWidth * this.columns;
		const bottom = TOP + this.cellHeight * this.layers.length;
		for (let x = GUTTER; x <= right; x += this.cellWidth) pen.clearRect(x - 1, TOP, 2, bottom - TOP);
		for (let y = TOP; y <= bottom; y += this.cellHeight) pen.clearRect(GUTTER, y - 1, right - GUTTER, 2);
	}

	#labels(pen) {
		const style = getComputedStyle(this.canvas);
		pen.font = `12px ${style.fontFamily}`;
		pen.fillStyle = style.color;
		pen.textBaseline = "middle";
		pen.textAlign = "right";
		const everyRow = Math.ceil(14 / this.cellHeight);
		this.layers.forEach(({layer}, row) => {
			if (row % everyRow === 0) pen.fillText(`L${layer}`, GUTTER - 8, TOP + (row + 0.5) * this.cellHeight);
		});
		pen.textAlign = "center";
		const everyColumn = [1, 2, 4, 8, 16, 32].find((step) => step * this.cellWidth >= 22) ?? 64;
		for (let column = 0; column < this.columns; column += everyColumn) {
			pen.fillText(String(column), GUTTER + (column + 0.5) * this.cellWidth, TOP / 2);
		}
		if (this.cellWidth < FIGURES_WIDTH_MIN || this.cellHeight < FIGURES_HEIGHT_MIN) return;
		this.layers.forEach(({first, experts}, row) => {
			for (let column = 0; column < experts; ++column) {
				const value = this.values[first + column];
				pen.fillStyle = Number.isNaN(value) ? style.color : ink();
				pen.fillText(this.figure(value), GUTTER + (column + 0.5) * this.cellWidth, TOP + (row + 0.5) * this.cellHeight);
			}
		});
	}

	#cellOf({layer, expert}) {
		const row = this.layers.findIndex((entry) => entry.layer === layer);
		return row >= 0 && expert < this.layers[row].experts ? {row, column: expert} : null;
	}

	#place(box, cell) {
		box.hidden = !cell;
		if (!cell) return;
		Object.assign(box.style, {
			left: `${GUTTER + cell.column * this.cellWidth}px`, top: `${TOP + cell.row * this.cellHeight}px`,
			width: `${this.cellWidth}px`, height: `${this.cellHeight}px`,
		});
	}

	#say() {
		const {row, column} = this.cursor;
		const layer = this.layers?.[row];
		if (!layer || column >= layer.experts) return;
		this.#place(this.cursorBox, this.cursor);
		setText(this.readout, this.describe(layer.first + column, layer, column));
	}

	#leave() {
		if (document.activeElement === this.canvas) return;
		this.cursorBox.hidden = true;
		setText(this.readout, "");
	}

	#point(event, isClick) {
		if (!this.layers) return;
		const row = Math.floor((event.offsetY - TOP) / this.cellHeight);
		const column = Math.floor((event.offsetX - GUTTER) / this.cellWidth);
		if (row < 0 || column < 0 || row >= this.layers.length || column >= this.layers[row].experts) return;
		this.cursor = {row, column};
		this.#say();
		if (isClick) this.#pick();
	}

	#pick() {
		this.onPick(this.layers[this.cursor.row].layer, this.cursor.column);
	}

	#key(event) {
		const moves = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
			Home: [0, -Infinity], End: [0, Infinity]};
		if (!this.layers) return;
		if (event.key === "Enter" || event.key === " ") {
			this.#pick();
		} else if (moves[event.key]) {
			const [down, right] = moves[event.key];
			const row = Math.max(0, Math.min(this.layers.length - 1, this.cursor.row + down));
			const column = Math.max(0, Math.min(this.layers[row].experts - 1, this.cursor.column + right));
			this.cursor = {row, column};
			this.#say();
			this.cursorBox.scrollIntoView({block: "nearest", inline: "nearest"});
		} else {
			return;
		}
		event.preventDefault();
	}
}
