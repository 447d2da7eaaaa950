// Keys that work everywhere but in a field that takes text, and the list of them that '?' shows.

import {el, table} from "./dom.js";
import {help, nextTheme} from "./header.js";
import {goLive, step} from "./load.js";
import {view} from "./state.js";
import {TABS} from "./url.js";

const LIST = [
	["1 … 5", "Load, Placement, Failover, Pathways, Chat"], ["← →", "on a tab: the next one"],
	["↑ ↓ ← → Home End", "in a map or a patch grid: walk the cells"], ["Enter", "in a map: pin the cell, or let it go"],
	["Esc", "let the pinned expert go"], ["[ ]", "one step back or forward in the last 15 minutes"], ["l", "back to now"],
	["i t a", "image rows, text rows, all rows"], ["c", "compare image with text"], ["d", "dark or light"], ["?", "this list"],
];

const dialog = el("dialog", {"aria-label": "Keys"}, table("Keys", ["key", "what it does"], LIST),
	el("form", {method: "dialog"}, el("button.strong", "Close")));
document.body.append(dialog);
help.addEventListener("click", () => dialog.showModal());

const ACTIONS = {
	"?": () => dialog.showModal(), d: nextTheme, l: goLive, "[": () => step(-1), "]": () => step(1),
	Escape: () => view.set({pin: null}), i: () => view.set({modality: "image"}), t: () => view.set({modality: "text"}),
	a: () => view.set({modality: "all"}), c: () => view.set({compare: view.compare === "on" ? "off" : "on"}),
};
TABS.forEach((tab, index) => {
	ACTIONS[index + 1] = () => view.set({tab});
});

addEventListener("keydown", (event) => {
	const takesText = event.target.closest?.("textarea, select, input:not([type=range])");
	const action = ACTIONS[event.key];
	if (!action || takesText || event.ctrlKey || event.metaKey || event.altKey || dialog.open || event.defaultPrevented) return;
	event.preventDefault();
	action();
});
