// The one state of the page, which every view reads: what the server said, what came before, what the reader looks at.

import {History} from "./history.js";
import {Selection} from "./selection.js";
import {Store} from "./store.js";
import {View} from "./url.js";

export const store = new Store();
export const past = new History(store);
export const view = new View(() => requestRender());
export const selection = new Selection(store, past, view);

let render = null;
let isRequested = false;

export function onRender(draw) {
	render = draw;
}

// Between two frames many things may change; they are drawn once. What that costs can be read from the browser's timeline.
export function requestRender() {
	if (isRequested) return;
	isRequested = true;
	requestAnimationFrame(() => {
		isRequested = false;
		measure("conclave.render", render);
	});
}

export function measure(name, work) {
	const start = performance.now();
	work();
	performance.clearMeasures(name);
	performance.measure(name, {start, end: performance.now()});
}
