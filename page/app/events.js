// What just happened, newest first. A live region: what comes is read aloud, politely.

import {el, setText, show} from "./dom.js";
import {dateTitle, time} from "./format.js";
import {store} from "./state.js";

const SHOWN_MAX = 500;
const GRAVE = new Set(["dead", "suspect", "unserved", "failed", "distrusted"]);

// Ids begin anew with the server, and a new snapshot brings the same events as new objects.
function isSame(a, b) {
	return a?.id === b?.id && a?.time === b?.time;
}

const list = el("ol");
const log = el("div.events", {role: "log", "aria-live": "polite", "aria-label": "Events, newest first", tabindex: "0"}, list);
const empty = el("p.empty", "Nothing has happened yet.");
let newest = null;  // the last event that is shown
document.getElementById("events").append(el("h2", "Events"), log, empty);

export function update() {
	const events = store.picture?.events ?? [];
	show(empty, events.length === 0);
	const last = events[events.length - 1] ?? null;
	if (isSame(last, newest)) return;
	const known = events.findIndex((event) => isSame(event, newest));
	if (known < 0) list.replaceChildren();
	for (const event of events.slice(known + 1)) list.prepend(itemOf(event));
	while (list.childElementCount > SHOWN_MAX) list.lastElementChild.remove();
	newest = last;
}

function itemOf(event) {
	const item = el("li", {"data-grave": GRAVE.has(event.kind), "data-kind": event.kind},
		el("time", {datetime: new Date(event.time * 1000).toISOString(), title: dateTitle(event.time)}, time(event.time)),
		el("span.event-kind", event.kind.replace("_", " ")), el("span.event-text"));
	setText(item.lastElementChild, event.text || event.name || "");
	return item;
}
