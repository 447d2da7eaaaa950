// The one state behind all views: a snapshot, kept current by deltas (docs/live.md). The matrices are typed arrays, all else
// stays as the server said it. Views read; only load() and apply() write.

import {differenceOf, Recent, Samples} from "./recent.js";

export const SPANS = [10, 60];
const EVENTS_MAX = 500;
const EPOCHS_MAX = 60;
// What a delta may replace as a whole.
const WHOLE = ["cluster", "frontends", "serving", "pathways", "placement", "model", "admin"];

export class Store {
	constructor() {
		this.picture = null;  // the snapshot but its matrices
		this.source = "none";  // "live" or the name of a file
		this.version = 0;  // grows with every change
		this.epochs = [];  // placements seen: {epoch, time, experts}
		this.#shape(null);
	}

	get isLive() {
		return this.source === "live";
	}

	get hasRows() {
		return this.rows.some((rows) => rows > 0);
	}

	// Workers that have not gone.
	get present() {
		return [...this.workers.values()].filter((worker) => !["dead", "left"].includes(worker.state));
	}

	workerName(id) {
		return this.workers.get(id)?.name ?? `worker ${id}`;
	}

	layerOf(number) {
		return this.layers.find((layer) => layer.layer === number);
	}

	// Index of an expert in the order of experts; -1: there is none.
	unitOf(layerNumber, expert) {
		const layer = this.layerOf(layerNumber);
		return layer && expert >= 0 && expert < layer.experts ? layer.first + expert : -1;
	}

	load(snapshot, source) {
		const old = this.picture;
		// After a lost stream the counters went on: what they gained meanwhile is one long tick.
		const goesOn = old !== null && source === "live" && this.isLive && old.started === snapshot.started &&
			JSON.stringify(old.model) === JSON.stringify(snapshot.model);
		const before = goesOn ? this.rows.slice() : null;
		const {rows, weights, probabilities, ...rest} = snapshot;
		this.picture = rest;
		this.source = source;
		this.workers = new Map(snapshot.workers.map((worker) => [worker.id, worker]));
		if (!goesOn) {
			this.#shape(snapshot.model);
			this.epochs = [];
		}
		this.rows.set(rows);
		this.weights.set(weights);
		this.probabilities.set(probabilities);
		if (before && !this.#caughtUp(before, snapshot.time)) this.#shape(snapshot.model, this.#matrices());
		if (this.recent.since === null) this.recent.begin(snapshot.time);
		this.#seen();
		this.version += 1;
	}

	// False: a delta is missing, and the store is as it was.
	apply(delta) {
		if (this.picture === null || delta.seq !== this.picture.seq + 1) return false;
		this.picture.seq = delta.seq;
		this.picture.time = delta.time;
		for (const key of WHOLE) if (delta[key] !== undefined) this.picture[key] = delta[key];
		if (delta.model !== undefined) {
			this.#shape(delta.model);
			this.recent.begin(delta.time);
		}
		for (const worker of delta.workers ?? []) this.workers.set(worker.id, worker);
		for (const id of delta.workers_gone ?? []) this.workers.delete(id);
		if (delta.events) this.picture.events = [...this.picture.events, ...delta.events].slice(-EVENTS_MAX);
		if (delta.incidents) this.#incidents(delta.incidents);
		assign(this.weights, delta.weights);
		assign(this.probabilities, delta.probabilities);
		this.#count(delta.time, delta.rows ?? []);
		this.#seen();
		this.version += 1;
		return true;
	}

	#matrices() {
		return {rows: this.rows, weights: this.weights, probabilities: this.probabilities};
	}

	#shape(model, matrices = null) {
		this.layers = [];
		let units = 0;
		for (const {layer, experts} of model?.layers ?? []) {
			this.layers.push({layer, experts, first: units, units: Array.from({length: experts}, (_, i) => units + i)});
			units += experts;
		}
		this.numUnits = units;
		this.rows = matrices?.rows ?? new Float64Array(units * 8);
		this.weights = matrices?.weights ?? new Float64Array(units * 2);
		this.probabilities = matrices?.probabilities ?? new Float64Array(units);
		this.recent = new Recent(units * 8, SPANS);
		this.samples = new Samples(Math.max(...SPANS));
	}

	#count(time, pairs) {
		const n = pairs.length / 2;
		const indices = new Uint32Array(n);
		const increments = new Float64Array(n);
		for (let i = 0; i < n; ++i) {
			const index = pairs[2 * i];
			const value = pairs[2 * i + 1];
			indices[i] = index;
			increments[i] = value - this.rows[index];
			this.rows[index] = value;
		}
		this.recent.add(time, indices, increments);
	}

	// Whether the counters only grew; otherwise the server has begun anew.
	#caughtUp(before, time) {
		const {indices, increments} = differenceOf(before, this.rows);
		if (increments.some((gained) => gained < 0)) return false;
		this.recent.add(time, indices, increments);
		return true;
	}

	#incidents(changed) {
		const byId = new Map(this.picture.incidents.map((incident) => [incident.id, incident]));
		for (const incident of changed) byId.set(incident.id, incident);
		this.picture.incidents = [...byId.values()];
	}

	#seen() {
		const {picture} = this;
		this.samples.add({time: picture.time, serving: picture.serving, workers: new Map(this.workers)});
		const placement = picture.placement;
		if (!placement || this.epochs[this.epochs.length - 1]?.epoch === placement.epoch) return;
		this.epochs.push({epoch: placement.epoch, time: picture.cluster?.placed_at ?? picture.time,
			experts: placement.experts});
		if (this.epochs.length > EPOCHS_MAX) this.epochs.shift();
	}
}

function assign(array, pairs = []) {
	for (let i = 0; i + 1 < pairs.length; i += 2) array[pairs[i]] = pairs[i + 1];
}
