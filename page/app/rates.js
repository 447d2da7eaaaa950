// What clients get: rows and tokens per second and how long they wait, in the last seconds and since the start.

import {el, setAttr, setText} from "./dom.js";
import {quantileOf, sumOf} from "./figures.js";
import {count, NONE, percent, quantileText, rate} from "./format.js";
import {panel} from "./panel.js";
import {store, view} from "./state.js";

// What a row says of counters: `seconds` is how long they took, null since the start.
const amount = (of) => (serving, seconds) => (seconds === null ? count(of(serving)) : rate(of(serving) / seconds));
const quantile = (name, q) => (serving) => quantileText(quantileOf(serving[name], store.picture.bounds[name], q));
const ROWS = [
	["Prompt rows, image", amount((serving) => serving.prompt_image), "image"],
	["Prompt rows, text", amount((serving) => serving.prompt_text), "text"],
	["Generated tokens", amount((serving) => serving.generated)],
	["Requests finished", amount((serving) => sumOf(Object.values(serving.finished)))],
	["Time to first token, p50", quantile("ttft", 0.5)],
	["Time to first token, p99", quantile("ttft", 0.99)],
	["Between two tokens, p50", quantile("itl", 0.5)],
	["Between two tokens, p99", quantile("itl", 0.99)],
	["Prompt rows from the cache", (serving) => percent(serving.cached / (serving.prompt_text + serving.prompt_image))],
	["Images from the cache", (serving) => percent(serving.image_hits / serving.images)],
];

const recentHead = el("th", {scope: "col"});
const rows = ROWS.map(([label, , kind]) => el("tr", {"data-kind": kind}, el("th", {scope: "row"}, label), el("td"), el("td")));
const frontends = el("p.note");
const box = panel({name: "rates", title: "Rates", picture: el("div", el("table.rates", {"aria-label": "Rates"},
	el("thead", el("tr", el("th", {scope: "col"}, el("span.hidden", "figure")), recentHead, el("th", {scope: "col"}, "since the start"))),
	el("tbody", rows)), frontends)});
export const element = box.element;

export function update() {
	const {picture, samples} = store;
	const seconds = view.window === "60" ? 60 : 10;
	const before = store.isLive ? samples.before(seconds) : null;
	const elapsed = before ? picture.time - before.time : 0;
	const gained = elapsed > 0 ? minus(picture.serving, before.serving) : null;
	setText(recentHead, `last ${seconds} s`);
	setAttr(recentHead, "title", elapsed < seconds ? `this page has seen ${elapsed.toFixed(0)} s of them` : "");
	ROWS.forEach(([, text], index) => {
		const [, recent, total] = rows[index].children;
		setText(recent, gained ? text(gained, elapsed) : NONE);
		setText(total, text(picture.serving, null));
	});
	setText(frontends, picture.frontends.map((one) => `${one.name}: ${count(one.running)} running, ${count(one.waiting)} waiting, ` +
		`KV cache ${percent(one.kv)} full${one.is_reporting ? "" : ", not reporting"}`).join("; ") || "No frontend is connected.");
}

// Counters, lists of them and objects of them, less what they were before.
function minus(now, before) {
	if (typeof now === "number") return now - (before ?? 0);
	if (Array.isArray(now)) return now.map((value, i) => minus(value, before?.[i]));
	return Object.fromEntries(Object.entries(now).map(([name, value]) => [name, minus(value, before?.[name])]));
}
