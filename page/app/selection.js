// Which rows the views look at: the chosen window, now or at a moment of the history. One answer per change, shared by all.

import {loadsOf, ratiosOf, slotsOf} from "./figures.js";
import {duration, time} from "./format.js";

export class Selection {
	constructor(store, history, view) {
		this.store = store;
		this.history = history;
		this.view = view;
		this.key = null;
		this.cache = new Map();
	}

	// {rows, what, isLive}: `what` is the window in words, as it really is.
	current() {
		const {store, history, view} = this;
		const key = [store.version, history.version, view.window, view.at].join();
		if (key !== this.key) {
			this.key = key;
			this.cache.clear();
			this.value = view.at === null || history.why !== null ? this.#now() : this.#then();
		}
		return this.value;
	}

	// Rows per expert that a filter takes, and the same as multiples of the fair share.
	loads(modality = this.view.modality, phase = this.view.phase) {
		const {rows} = this.current();
		return this.#cached(`loads ${modality} ${phase}`, () =>
			loadsOf(rows, slotsOf(modality, phase), new Float64Array(this.store.numUnits)));
	}

	ratios(modality = this.view.modality, phase = this.view.phase) {
		const loads = this.loads(modality, phase);
		return this.#cached(`ratios ${modality} ${phase}`, () =>
			ratiosOf(loads, this.store.layers, new Float64Array(this.store.numUnits)));
	}

	#cached(key, make) {
		if (!this.cache.has(key)) this.cache.set(key, make());
		return this.cache.get(key);
	}

	#now() {
		const {store, view} = this;
		if (view.window === "start" || !store.isLive) {
			return {rows: store.rows, what: "since the start", isLive: true};
		}
		const seconds = Number(view.window);
		const seen = (store.picture?.time ?? 0) - (store.recent.since ?? 0);
		const part = seen < seconds ? ` (this page has seen ${duration(Math.max(0, seen))} of them)` : "";
		return {rows: store.recent.sums(seconds), what: `in the last ${seconds} s${part}`, isLive: true};
	}

	#then() {
		const {history, view} = this;
		const index = history.indexAt(view.at);
		const at = history.times[index];
		if (view.window === "start") {
			return {rows: history.rowsAt(index).slice(), what: `since the start, as of ${time(at)}`, isLive: false};
		}
		const from = Math.min(history.indexAt(at - Number(view.window)), Math.max(0, index - 1));
		const before = history.rowsAt(from).slice();
		const rows = history.rowsAt(index).map((value, i) => value - before[i]);
		const span = Math.round(at - history.times[from]);
		return {rows, what: `in the ${span} s before ${time(at)}`, isLive: false};
	}
}
