// Figures as text: always with their unit, "–" where there is none.

const whole = new Intl.NumberFormat("en-US", {maximumFractionDigits: 0});

export const NONE = "–";

export function count(value) {
	return Number.isFinite(value) ? whole.format(value) : NONE;
}

export function plural(value, noun) {
	return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

export function fixed(value, digits = 2) {
	return Number.isFinite(value) ? value.toFixed(digits) : NONE;
}

export function percent(share, digits = 0) {
	return Number.isFinite(share) ? `${(100 * share).toFixed(digits)} %` : NONE;
}

// Three significant digits, never an exponent.
function short(value) {
	const digits = value >= 100 || value === 0 ? 0 : value >= 10 ? 1 : 2;
	return value.toFixed(digits);
}

export function rate(value) {
	if (!Number.isFinite(value)) return NONE;
	return value >= 1000 ? `${whole.format(value)} /s` : `${short(value)} /s`;
}

export function duration(seconds) {
	if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return NONE;
	if (seconds === Infinity) return "∞";
	if (seconds < 0.001) return `${short(seconds * 1e6)} µs`;
	if (seconds < 1) return `${short(seconds * 1e3)} ms`;
	if (seconds < 120) return `${short(seconds)} s`;
	if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
	return `${short(seconds / 3600)} h`;
}

export function bytes(value) {
	if (!Number.isFinite(value)) return NONE;
	const units = ["B", "KiB", "MiB", "GiB", "TiB"];
	let step = 0;
	while (value >= 1024 && step + 1 < units.length) {
		value /= 1024;
		step += 1;
	}
	return `${step === 0 ? whole.format(value) : short(value)} ${units[step]}`;
}

// A quantile of a histogram; `beyond` says that it lies above the last bound, which is all that is known.
export function quantileText({value, beyond}) {
	return Number.isNaN(value) ? NONE : `${beyond ? "> " : ""}${duration(value)}`;
}

const clock = new Intl.DateTimeFormat("en-GB", {hour: "2-digit", minute: "2-digit", second: "2-digit"});
const full = new Intl.DateTimeFormat("en-GB", {dateStyle: "full", timeStyle: "long"});

// `time`: seconds since 1970, of the server's clock. Shown in the reader's zone; dateTitle names it.
export function time(seconds) {
	return Number.isFinite(seconds) ? clock.format(new Date(seconds * 1000)) : NONE;
}

export function dateTitle(seconds) {
	return Number.isFinite(seconds) ? full.format(new Date(seconds * 1000)) : "";
}

export function expertName(layer, expert) {
	return `L${layer} expert ${expert}`;
}
