// Colours of cells: a diverging scale, blue – neutral – orange, and colours of experts. Figures stand on them in one ink per
// theme, so both ends stop where that ink still has a contrast of 7 to 1. Blue and orange differ to every kind of eye.

const SCALES = {
	light: {ink: "#191917", stops: ["#6fadec", "#ececea", "#f2963e"]},
	dark: {ink: "#ffffff", stops: ["#1a579b", "#333431", "#8a4300"]},
};
const STEPS = 128;  // on each side of the middle
const tables = {};

export function theme() {
	const chosen = document.documentElement.dataset.theme;
	return chosen || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

export function ink() {
	return SCALES[theme()].ink;
}

function channels(hex) {
	return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

// Mixed as light, not as code values: the steps then look even enough.
function mix(a, b, t) {
	return a.map((value, i) => Math.round(Math.sqrt(value * value * (1 - t) + b[i] * b[i] * t)));
}

function scale() {
	const name = theme();
	if (!tables[name]) {
		const [low, middle, high] = SCALES[name].stops.map(channels);
		tables[name] = [];
		for (let i = -STEPS; i <= STEPS; ++i) {
			tables[name].push(mix(middle, i < 0 ? low : high, Math.abs(i) / STEPS));
		}
	}
	return tables[name];
}

// `position`: -1 blue … 0 neutral … 1 orange; beyond is cut.
export function divergingChannels(position) {
	const cut = position < -1 ? -1 : position > 1 ? 1 : position;
	return scale()[STEPS + Math.round(cut * STEPS)];
}

export function diverging(position) {
	return Number.isNaN(position) ? "transparent" : `rgb(${divergingChannels(position).join(" ")})`;
}

// Share ÷ fair share: a quarter of it is all blue, four times it all orange. Steep in the middle, where most experts are.
export function ratioPosition(ratio) {
	const octaves = Math.log2(ratio) / 2;
	return Math.sign(octaves) * Math.sqrt(Math.abs(octaves));
}

// Expert colours of one layer: the hue is turned from layer to layer, as the same number in another layer is another expert.
export function expertColour(layerIndex, expert, experts) {
	const hue = (360 * (expert / experts) + 47 * layerIndex + 25) % 360;
	return theme() === "dark" ? `hsl(${hue} 45% 25%)` : `hsl(${hue} 70% 80%)`;
}
