// Colours of cells: a diverging scale, blue – neutral – orange, and colours of experts. Figures stand on them in one ink per
// theme, so both ends stop where that ink still has a contrast of 7 to 1. Blue and orange differ to every kind of eye.

const SCALES = {
	light: {ink: "#191917", stops: ["#6fadec", "#ececea", "#f2963e"]},
	dark: {ink: "#ffffff", stops: ["#1a579b", "#333431", "#8a4300"]},
};
const isDark = matchMedia("(prefers-color-scheme: dark)");

export function theme() {
	return document.documentElement.dataset.theme || (isDark.matches ? "dark" : "light");
}

export function ink() {
	return SCALES[theme()].ink;
}

// `position`: -1 blue … 0 neutral … 1 orange; beyond is cut. Mixed as light, not as code values: the steps then look even enough.
function mixed(position) {
	const [low, middle, high] = SCALES[theme()].stops.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
	const end = position < 0 ? low : high;
	const t = Math.min(1, Math.abs(position));
	return middle.map((value, i) => Math.round(Math.sqrt(value * value * (1 - t) + end[i] * end[i] * t)));
}

export function diverging(position) {
	return `rgb(${mixed(position).join(" ")})`;
}

// Colours of many values at once, as pixels (little-endian RGBA): a map of 15,616 cells has no time for logarithms.
export function palette(low, high, positionOf) {
	const steps = 1024;
	const pixels = Uint32Array.from({length: steps + 1}, (_, i) => {
		const [red, green, blue] = mixed(positionOf(low + ((high - low) * i) / steps));
		return (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
	});
	const scale = steps / (high - low);
	return (value) => pixels[Math.round((Math.min(high, Math.max(low, value)) - low) * scale)];
}

// Share ÷ fair share: a quarter of it is all blue, four times it all orange. Steep in the middle, where most experts are.
export function ratioPosition(ratio) {
	const octaves = Math.log2(ratio) / 2;
	return Math.sign(octaves) * Math.sqrt(Math.abs(octaves));
}

// Expert colours of one layer: the hue is turned from layer to layer, as the same number in another layer is another expert.
export function expertColour(layerIndex, expert, experts) {
	const hue = (360 * (expert / experts) + 47 * layerIndex + 25) % 360;
	return theme() === "dark" ? `hsl(${hue} 50% 21%)` : `hsl(${hue} 70% 80%)`;
}
