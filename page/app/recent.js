// Rows of the last seconds. Every delta leaves its increments here; sums over each span are kept up to date by adding what
// comes and subtracting what grows old, so that a tick costs what changed and not what there is. Counts are whole numbers
// below 2^53: adding and subtracting them is exact.

export class Recent {
	constructor(size, spans) {
		this.spans = new Map(spans.map((span) => [span, {sums: new Float64Array(size), first: 0}]));
		this.longest = Math.max(...spans);
		this.ticks = [];  // {time, indices, increments}
		this.since = null;  // of the server's clock: rows before are in no span
	}

	// Nothing before `time` has been seen.
	begin(time) {
		this.since = time;
	}

	add(time, indices, increments) {
		this.ticks.push({time, indices, increments});
		for (const [seconds, span] of this.spans) {
			const {sums} = span;
			for (let i = 0; i < indices.length; ++i) sums[indices[i]] += increments[i];
			while (this.ticks[span.first].time <= time - seconds) {
				const old = this.ticks[span.first++];
				for (let i = 0; i < old.indices.length; ++i) sums[old.indices[i]] -= old.increments[i];
			}
		}
		this.#forget();
	}

	sums(seconds) {
		return this.spans.get(seconds).sums;
	}

	#forget() {
		const unused = Math.min(...[...this.spans.values()].map((span) => span.first));
		if (unused < 32) return;
		this.ticks.splice(0, unused);
		for (const span of this.spans.values()) span.first -= unused;
	}
}

// Whole counters (serving, workers) as they stood at recent ticks: what a span added is a difference of two of them.
export class Samples {
	constructor(longest) {
		this.longest = longest;
		this.list = [];  // {time, serving, workers: Map}
	}

	add(sample) {
		this.list.push(sample);
		// One sample at or before the start of the longest span stays.
		while (this.list.length > 2 && this.list[1].time <= sample.time - this.longest) this.list.shift();
	}

	// The newest sample at least `seconds` old, or the oldest there is.
	before(seconds) {
		if (this.list.length === 0) return null;
		const newest = this.list[this.list.length - 1].time;
		let found = this.list[0];
		for (const sample of this.list) {
			if (sample.time > newest - seconds) break;
			found = sample;
		}
		return found;
	}
}
