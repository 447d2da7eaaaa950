// Is every expert served? And the tabs.

import {theme} from "./colour.js";
import {button, el, setAttr, setText} from "./dom.js";
import {plural} from "./format.js";
import {store, view} from "./state.js";
import {TABS} from "./url.js";

const TITLES = {load: "Load", placement: "Placement", failover: "Failover", pathways: "Pathways", chat: "Chat"};
const THEME_KEY = "conclave.theme";

// Storage may be forbidden; the choice then lasts as long as the page.
function remembered(name) {
	try {
		if (name) localStorage.setItem(THEME_KEY, name);
		return localStorage.getItem(THEME_KEY);
	} catch {
		return name;
	}
}

const model = el("span.fact");
const epoch = el("span.fact");
const workers = light();
const experts = light();
const themeButton = button("", () => nextTheme(), ".quiet");
export const help = el("button.quiet", {type: "button", "aria-label": "Keys", title: "Keys (?)"}, "?");
document.getElementById("header").append(el("h1", "conclave"), el("div.facts", model, epoch, workers, experts), el("div.tools",
	el("a.button.quiet", {href: "moe/stats", download: "conclave-picture.json",
		title: "Save this picture as a file; dropped on this page it is shown again"}, "Save"), themeButton, help));
applyTheme(remembered());

// Tabs as the ARIA pattern has them: one of them in the tab order, arrow keys move.
const tabs = TABS.map((tab) => el("button", {type: "button", role: "tab", id: `tab-${tab}`, "aria-controls": `view-${tab}`,
	onclick: () => view.set({tab}), onkeydown: (event) => moveTab(event, tab)}, TITLES[tab]));
document.getElementById("tabs").append(el("div", {role: "tablist", "aria-label": "Views"}, tabs));

export function nextTheme() {
	applyTheme(remembered(theme() === "dark" ? "light" : "dark"));
	dispatchEvent(new Event("themechange"));
}

export function update() {
	tabs.forEach((tab, index) => {
		const isChosen = TABS[index] === view.tab;
		setAttr(tab, "aria-selected", isChosen);
		setAttr(tab, "tabindex", isChosen ? 0 : -1);
	});
	const {picture} = store;
	document.title = picture?.model ? `${picture.model.name} – conclave` : "conclave";
	setText(model, picture?.model?.name ?? "no model yet");
	setText(epoch, picture ? `epoch ${picture.cluster.epoch}` : "");
	if (!picture) return;
	const known = store.workers.size;
	const live = store.present.filter((worker) => worker.state === "live").length;
	setLight(workers, known ? `${live} of ${plural(known, "worker")}` : "no worker yet", known > 0 && live === known);
	const {experts_served: served, experts_total: total, replicas_lowest: lowest} = picture.cluster;
	setLight(experts, total === 0 ? "no expert known" : `${served === total ? "all" : `${served} of`} ${plural(total, "expert")} served`,
		total > 0 && served === total);
	setAttr(experts, "title", `fewest replicas of an expert: ${lowest}`);
}

function light() {
	return el("span.fact.light", el("span.mark", {"aria-hidden": "true"}), el("span"));
}

function setLight(node, text, isGood) {
	setAttr(node, "data-good", isGood);
	setText(node.firstChild, isGood ? "●" : "▲");
	setText(node.lastChild, text);
}

function applyTheme(name) {
	if (name === "light" || name === "dark") document.documentElement.dataset.theme = name;
	const other = theme() === "dark" ? "light" : "dark";
	setText(themeButton, other === "light" ? "Light" : "Dark");
	setAttr(themeButton, "aria-label", `Switch to the ${other} theme`);
}

function moveTab(event, tab) {
	const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
	if (!step) return;
	const next = (TABS.indexOf(tab) + step + TABS.length) % TABS.length;
	view.set({tab: TABS[next]});
	tabs[next].focus();
	event.preventDefault();
}
