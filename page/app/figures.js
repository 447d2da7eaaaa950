// The formulas of docs/page.md. Pure functions of counters; `layers` are {layer, first, experts}, where `first` is the
// number of the layer's first expert in the order of experts (docs/live.md).

const MODALITIES = {all: [0, 1], text: [0], image: [1]};
const PHASES = {both: [0, 1], prefill: [0], decode: [1]};

// Which of an expert's eight counters a filter adds up.
export function slotsOf(modality, phase, ranks = [0, 1]) {
	return ranks.flatMap((rank) => PHASES[phase].flatMap((p) => MODALITIES[modality].map((m) => rank * 4 + p * 2 + m)));
}

// out[u] = rows of expert u that the filter takes.
export function loadsOf(rows, slots, out) {
	const n = slots.length;
	for (let u = 0, base = 0; u < out.length; ++u, base += 8) {
		let sum = 0;
		for (let i = 0; i < n; ++i) sum += rows[base + slots[i]];
		out[u] = sum;
	}
	return out;
}

export function totalOf(loads, {first, experts}) {
	let total = 0;
	for (let u = first; u < first + experts; ++u) total += loads[u];
	return total;
}

// out[u] = share of u in its layer ÷ fair share; NaN where the layer has no rows.
export function ratiosOf(loads, layers, out) {
	for (const layer of layers) {
		const mean = totalOf(loads, layer) / layer.experts;
		for (let u = layer.first; u < layer.first + layer.experts; ++u) {
			out[u] = mean > 0 ? loads[u] / mean : NaN;
		}
	}
	return out;
}

// max ÷ mean over the layer's experts; 1 is balanced.
export function imbalanceOf(loads, layer) {
	let most = 0;
	for (let u = layer.first; u < layer.first + layer.experts; ++u) most = Math.max(most, loads[u]);
	const total = totalOf(loads, layer);
	return total > 0 ? (most * layer.experts) / total : NaN;
}

// How much an expert prefers images: 0 text only, 0.5 neutral, 1 images only. Normalised by the totals, so that it does not
// matter that a prompt has more image rows than words.
export function preferenceOf(imageRows, imageTotal, textRows, textTotal) {
	const image = imageTotal > 0 ? imageRows / imageTotal : 0;
	const text = textTotal > 0 ? textRows / textTotal : 0;
	return imageTotal > 0 && textTotal > 0 && image + text > 0 ? image / (image + text) : NaN;
}

function plogp(p, m) {
	return p > 0 ? p * Math.log2(p / m) : 0;
}

// Jensen–Shannon divergence of a layer's loads by image rows and by text rows, in bits, and what equal gates would show in
// the mean because the counts are finite: (E − 1) (1/n + 1/m) / (8 ln 2).
export function divergenceOf(imageLoads, textLoads, layer) {
	const image = totalOf(imageLoads, layer);
	const text = totalOf(textLoads, layer);
	if (!(image > 0 && text > 0)) return {bits: NaN, chance: NaN};
	let bits = 0;
	for (let u = layer.first; u < layer.first + layer.experts; ++u) {
		const p = imageLoads[u] / image;
		const q = textLoads[u] / text;
		const m = (p + q) / 2;
		bits += (plogp(p, m) + plogp(q, m)) / 2;
	}
	const chance = ((layer.experts - 1) * (1 / image + 1 / text)) / (8 * Math.LN2);
	return {bits, chance: Math.min(1, chance)};
}

// E · Σ F·P: F the share of rows whose first choice is the expert, P its mean probability. 1 is balanced.
export function balanceLossOf(rows, probabilities, layer) {
	const firsts = slotsOf("all", "both", [0]);
	const chosen = (u) => firsts.reduce((sum, slot) => sum + rows[u * 8 + slot], 0);
	let total = 0;
	for (let u = layer.first; u < layer.first + layer.experts; ++u) total += chosen(u);
	if (!(total > 0)) return NaN;
	let sum = 0;
	for (let u = layer.first; u < layer.first + layer.experts; ++u) sum += (chosen(u) / total) * (probabilities[u] / total);
	return layer.experts * sum;
}

// Of a histogram with one more count than bounds: linear within the bucket, as Prometheus does it.
export function quantileOf(counts, bounds, q) {
	const total = counts.reduce((sum, n) => sum + n, 0);
	if (!(total > 0)) return {value: NaN, beyond: false};
	const rank = q * total;
	let below = 0;
	for (let i = 0; i < bounds.length; ++i) {
		if (below + counts[i] >= rank && counts[i] > 0) {
			const low = i === 0 ? 0 : bounds[i - 1];
			return {value: low + (bounds[i] - low) * ((rank - below) / counts[i]), beyond: false};
		}
		below += counts[i];
	}
	return {value: bounds[bounds.length - 1], beyond: true};
}

// Rows per worker if every expert's rows are shared evenly by its replicas. `placement[u]`: worker ids.
export function workerLoadsOf(loads, placement, ids) {
	const sums = new Map(ids.map((id) => [id, 0]));
	for (let u = 0; u < loads.length; ++u) {
		const holders = (placement[u] ?? []).filter((id) => sums.has(id));
		for (const id of holders) sums.set(id, sums.get(id) + loads[u] / holders.length);
	}
	return sums;
}

// max ÷ mean of any loads.
export function spreadOf(values) {
	const total = values.reduce((sum, value) => sum + value, 0);
	return total > 0 ? (Math.max(...values) * values.length) / total : NaN;
}

export function medianOf(values) {
	const ordered = [...values].sort((a, b) => a - b);
	const middle = Math.floor(ordered.length / 2);
	if (ordered.length === 0) return NaN;
	return ordered.length % 2 ? ordered[middle] : (ordered[middle - 1] + ordered[middle]) / 2;
}

// What share of rows would take `experts` if a row's choices in different layers had nothing to do with each other: the
// product of the first choices' shares. `layers` as in the path, `rows` since the start.
export function independentShareOf(rows, layers, modality, experts) {
	const slots = slotsOf(modality, "both", [0]);
	const chosen = (u) => slots.reduce((sum, slot) => sum + rows[u * 8 + slot], 0);
	return layers.reduce((product, layer, index) => {
		let total = 0;
		for (let u = layer.first; u < layer.first + layer.experts; ++u) total += chosen(u);
		return total > 0 ? (product * chosen(layer.first + experts[index])) / total : NaN;
	}, 1);
}
