// What clients get: rows and tokens per second and how long they wait, in the last seconds and since the start.

import {el, setAttr, setText} from "./dom.js";
import {quantileOf} from "./figures.js";
import {count, NONE, percent, quantileText, rate} from "./format.js";
import {panel} from "./panel.js";
import {store, view} from "./state.js";

const RATES = [["Prompt rows, image", "prompt_image", "image"], ["Prompt rows, text", "prompt_text", "text"], ["Generated tokens", "generated"],
	["Requests finished", "requests"]];
const QUANTILES = [["Time to first token", "ttft"], ["Between two tokens", "itl"]];

function counterOf(serving, name) {
	if (!serving) return NaN;
	if (name === "requests") return Object.values(serving.finished ?? {}).reduce((sum, n) => sum + n, 0);
	return serving[name] ?? NaN;
}

const recentHead = el("th", {scope: "col"});
const cellsOf = new Map();  // name -> [recent, since start]
const row = (label, name, kind) => {
	const cells = [el("td"), el("td")];
	cellsOf.set(name, cells);
	return el("tr", {"data-kind": kind}, el("th", {scope: "row"}, label), cells);
};
const table = el("table.rates", el("caption.hidden", "Rates"),
	el("thead", el("tr", el("th", {scope: "col"}, el("span.hidden", "figure")), recentHead,
		el("th", {scope: "col"}, "since the start"))),
	el("tbody", RATES.map(([label, name, kind]) => row(label, name, kind)),
		QUANTILES.flatMap(([label, name]) => [row(`${label}, p50`, `${name}50`), row(`${label}, p99`, `${name}99`)]),
		row("Prompt rows from the cache", "cached"), row("Images from the cache", "image_hits")));
const nowNote = el("p.note");
const ratesPanel = panel({name: "rates", title: "Rates", picture: el("div", table, nowNote)});
export const element = ratesPanel.element;

export function update() {
	ratesPanel.update(store.version);
	const seconds = view.window === "60" ? 60 : 10;
	const before = store.isLive ? store.samples.before(seconds) : null;
	const now = store.picture.serving;
	const elapsed = before ? store.picture.time - before.time : 0;
	setText(recentHead, `last ${seconds} s`);
	setAttr(recentHead, "title", elapsed < seconds ? `this page has seen ${elapsed.toFixed(0)} s of them` : "");
	for (const [, name] of RATES) {
		const gained = counterOf(now, name) - counterOf(before?.serving, name);
		setCells(name, elapsed > 0 ? rate(gained / elapsed) : NONE, count(counterOf(now, name)));
	}
	for (const [, name] of QUANTILES) {
		const total = now[name] ?? [];
		const gained = total.map((n, i) => n - (before?.serving?.[name]?.[i] ?? 0));
		for (const q of [50, 99]) {
			const bounds = store.picture.bounds[name];
			setCells(`${name}${q}`, elapsed > 0 ? quantileText(quantileOf(gained, bounds, q / 100)) : NONE,
				quantileText(quantileOf(total, bounds, q / 100)));
		}
	}
	setShare("cached", (serving) => [serving.cached, serving.prompt_text + serving.prompt_image], before, elapsed);
	setShare("image_hits", (serving) => [serving.image_hits, serving.images], before, elapsed);
	setText(nowNote, frontendsText());
}

function setShare(name, parts, before, elapsed) {
	const [hits, all] = parts(store.picture.serving);
	const [hitsBefore, allBefore] = before?.serving ? parts(before.serving) : [0, 0];
	setCells(name, elapsed > 0 ? percent((hits - hitsBefore) / (all - allBefore)) : NONE, percent(hits / all));
}

function setCells(name, recent, total) {
	const [first, second] = cellsOf.get(name);
	setText(first, recent);
	setText(second, total);
}

function frontendsText() {
	const {frontends} = store.picture;
	if (frontends.length === 0) return "No frontend is connected.";
	return frontends.map((frontend) => `${frontend.name}: ${count(frontend.running)} running, ${count(frontend.waiting)} waiting, ` +
		`KV cache ${percent(frontend.kv)} full${frontend.is_reporting ? "" : ", not reporting"}`).join("; ");
}
