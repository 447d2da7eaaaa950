// Rows of the last seconds. Every delta leaves its increments here; the sum over a span is kept by adding what came and
// subtracting what grew old, and only when somebody looks at it. Counts are whole numbers below 2^53: that is exact.

export class Recent {
	constructor(size, spans) {
		this.spans = new Map(spans.map((seconds) => [seconds, {sums: new Float64Array(size), ticks: []}]));
		this.longest = Math.max(...spans);
		this.ticks = [];  // {time, indices, increments}, not older than the longest span
		this.since = null;  // of the server's clock: rows before are in no span
	}

	// Nothing before `time` has been seen.
	begin(time) {
		this.since = time;
	}

	add(time, indices, increments) {
		this.ticks.push({time, indices, increments});
		while (this.ticks[0].time <= time - this.longest) this.ticks.shift();
	}

	sums(seconds) {
		const {sums, ticks} = this.spans.get(seconds);
		const from = (this.ticks[this.ticks.length - 1]?.time ?? 0) - seconds;
		const last = ticks[ticks.length - 1]?.time ?? -Infinity;
		while (ticks.length > 0 && ticks[0].time <= from) accumulate(sums, ticks.shift(), -1);
		for (const tick of this.ticks) {
			if (tick.time <= Math.max(last, from)) continue;
			accumulate(sums, tick, 1);
			ticks.push(tick);
		}
		return sums;
	}
}

// Adds to `sums` what a tick or a step added, or takes it back (`sign` -1).
export function accumulate(sums, {indices, increments}, sign) {
	for (let i = 0; i < indices.length; ++i) sums[indices[i]] += sign * increments[i];
	return sums;
}

// What counters gained: {indices, increments} of those that differ.
export function differenceOf(before, now) {
	const indices = Uint32Array.from(now.keys()).filter((i) => now[i] !== before[i]);
	return {indices, increments: Float64Array.from(indices, (i) => now[i] - before[i])};
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
