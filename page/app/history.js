// The rows of the last 15 minutes, in steps: fetched once, then continued from what the store sees.

import {ask} from "./api.js";
import {accumulate, differenceOf} from "./recent.js";

const KEPT_SECONDS = 15 * 60;

export class History {
	constructor(store) {
		this.store = store;
		this.clear("the history has not been read yet");
	}

	clear(why) {
		this.why = why;  // why there is none; null: there is
		this.times = [];
		this.steps = [];  // steps[i]: what times[i + 1] added, {indices, increments}
		this.base = null;  // rows at times[0]
		this.last = null;  // rows at the last time
		this.step = 10;
		this.version = 0;
		this.cache = {index: 0, rows: null};
	}

	async fetch() {
		this.clear("the history is being read");
		let answer;
		try {
			answer = await ask("moe/history");
		} catch (error) {
			this.clear(error.message);
			return;
		}
		if (answer.rows.length !== this.store.rows.length || answer.times.length === 0) {
			this.clear("the server has no history yet");
			if (answer.times.length === 0) this.#begin();
			return;
		}
		this.why = null;
		this.step = answer.step;
		this.times = answer.times;
		this.base = Float64Array.from(answer.rows);
		this.last = this.base.slice();
		this.steps = answer.steps.map((pairs) => ({indices: Uint32Array.from(pairs.filter((_, i) => i % 2 === 0)),
			increments: Float64Array.from(pairs.filter((_, i) => i % 2 === 1))}));
		for (const step of this.steps) accumulate(this.last, step, 1);
		this.cache = {index: 0, rows: this.base.slice()};
		this.version += 1;
	}

	// After a tick: closes a step when its time is over.
	extend() {
		const {store} = this;
		if (this.base === null || store.rows.length !== this.base.length) return;
		const time = store.picture.time;
		if (time < this.times[this.times.length - 1] + this.step) return;
		this.times.push(time);
		this.steps.push(differenceOf(this.last, store.rows));
		this.last.set(store.rows);
		while (this.times.length > 2 && this.times[1] < time - KEPT_SECONDS) this.#forgetFirst();
		this.version += 1;
	}

	// Index of the last step at or before `time`.
	indexAt(time) {
		let index = this.times.length - 1;
		while (index > 0 && this.times[index] > time) --index;
		return index;
	}

	// Rows as they stood at times[index]. The array is reused by the next call.
	rowsAt(index) {
		const {cache} = this;
		while (cache.index < index) accumulate(cache.rows, this.steps[cache.index++], 1);
		while (cache.index > index) accumulate(cache.rows, this.steps[--cache.index], -1);
		return cache.rows;
	}

	#begin() {
		this.why = null;
		this.times = [this.store.picture.time];
		this.base = this.store.rows.slice();
		this.last = this.base.slice();
		this.cache = {index: 0, rows: this.base.slice()};
	}

	#forgetFirst() {
		this.rowsAt(Math.max(1, this.cache.index));
		accumulate(this.base, this.steps[0], 1);
		this.times.shift();
		this.steps.shift();
		this.cache.index -= 1;
	}
}
