// The formulas of docs/page.md. Pure functions of counters; `layers` are {layer, experts, first, units}, where
// `units` are the layer's places in the order of experts (docs/live.md).

const MODALITIES = {all: [0, 1], text: [0], image: [1]};
const PHASES = {both: [0, 1], prefill: [0], decode: [1]};

export function sumOf(list, of = (value) => value) {
	return list.reduce((sum, value) => sum + of(value), 0);
}

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

export function totalOf(loads, {units}) {
	return sumOf(units, (u) => loads[u]);
}

// out[u] = share of u in its layer ÷ fair share; NaN where the layer has no rows.
export function ratiosOf(loads, layers, out) {
	for (const layer of layers) {
		const mean = totalOf(loads, layer) / layer.experts;
		for (const u of layer.units) out[u] = mean > 0 ? loads[u] / mean : NaN;
	}
	return out;
}

// max ÷ mean over the layer's experts; 1 is balanced.
export function imbalanceOf(loads, layer) {
	return spreadOf(layer.units.map((u) => loads[u]));
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
	const bits = sumOf(layer.units, (u) => {
		const p = imageLoads[u] / image;
		const q = textLoads[u] / text;
		return (plogp(p, (p + q) / 2) + plogp(q, (p + q) / 2)) / 2;
	});
	const chance = ((layer.experts - 1) * (1 / image + 1 / text)) / (8 * Math.LN2);
	return {bits, chance: Math.min(1, chance)};
}

// What share of a layer's rows have each of its experts as their first choice. The product along a path is the share that the
// path would have if a row's choices in different layers had nothing to do with each other.
export function firstSharesOf(rows, modality, {units}) {
	const firsts = units.map((u) => sumOf(slotsOf(modality, "both", [0]), (slot) => rows[u * 8 + slot]));
	return firsts.map((n) => n / sumOf(firsts));
}

// E · Σ F·P: F the share of rows whose first choice is the expert, P its mean probability. 1 is balanced.
export function balanceLossOf(rows, probabilities, layer) {
	const shares = firstSharesOf(rows, "all", layer);
	const total = sumOf(layer.units, (u) => sumOf(slotsOf("all", "both", [0]), (slot) => rows[u * 8 + slot]));
	return layer.experts * sumOf(layer.units, (u) => (shares[u - layer.first] * probabilities[u]) / total);
}

// Of a histogram with one more count than bounds: linear within the bucket, as Prometheus does it.
export function quantileOf(counts, bounds, q) {
	const total = sumOf(counts);
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
	const total = sumOf(values);
	return total > 0 ? (Math.max(...values) * values.length) / total : NaN;
}

export function medianOf(values) {
	const ordered = [...values].sort((a, b) => a - b);
	const middle = Math.floor(ordered.length / 2);
	if (ordered.length === 0) return NaN;
	return ordered.length % 2 ? ordered[middle] : (ordered[middle - 1] + ordered[middle]) / 2;
}
