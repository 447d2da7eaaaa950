// The event stream: a snapshot, then a delta every second. Whatever goes wrong (no server, a gap in the numbers, silence) ends
// in the same place: connect again, which brings a whole snapshot.

import {measure} from "./state.js";

const SILENCE_MS = 6000;  // the server sends every second, also when nothing changed
const RETRY_MS = [1000, 2000, 4000, 8000];

export class Stream {
	// `onChange` is told after every picture, and when the state changed.
	constructor(store, onChange) {
		this.store = store;
		this.onChange = onChange;
		this.state = "connecting";  // "live", "lost", "off"
		this.lostAt = null;  // Date.now() of the last sign of life
		this.retryAt = null;
		this.failures = 0;
	}

	start() {
		this.stop();
		this.state = this.lostAt === null ? "connecting" : "lost";
		this.source = new EventSource("moe/events");
		this.source.addEventListener("snapshot", (event) => measure("conclave.apply", () => this.#snapshot(event.data)));
		this.source.addEventListener("delta", (event) => measure("conclave.apply", () => this.#delta(event.data)));
		this.source.onerror = () => this.#lost();
		const start = Date.now();
		this.silence = setInterval(() => {
			if (Date.now() - Math.max(start, this.lastSign ?? 0) > SILENCE_MS) this.#lost();
		}, 1000);
		this.onChange();
	}

	stop() {
		this.source?.close();
		this.source = null;
		clearInterval(this.silence);
		clearTimeout(this.retry);
		this.retryAt = null;
		this.state = "off";
	}

	#snapshot(text) {
		this.store.load(JSON.parse(text), "live");
		this.#alive();
	}

	#delta(text) {
		if (this.store.apply(JSON.parse(text))) this.#alive();
		else this.start();
	}

	#alive() {
		this.state = "live";
		this.lostAt = null;
		this.failures = 0;
		this.lastSign = Date.now();
		this.onChange();
	}

	#lost() {
		const since = this.lostAt ?? this.lastSign ?? Date.now();
		this.stop();
		this.state = "lost";
		this.lostAt = since;
		const wait = RETRY_MS[Math.min(this.failures, RETRY_MS.length - 1)];
		this.failures += 1;
		this.retryAt = Date.now() + wait;
		this.retry = setTimeout(() => this.start(), wait);
		this.onChange();
	}
}
