// Puts the page together: one state, one stream; the views draw themselves, at most once per frame and only the one that shows.

import * as banner from "./banner.js";
import * as chat from "./chat.js";
import {el} from "./dom.js";
import * as events from "./events.js";
import * as failover from "./failover.js";
import * as header from "./header.js";
import "./keys.js";
import {Stream} from "./live.js";
import * as load from "./load.js";
import * as pathways from "./pathways.js";
import * as placement from "./placement.js";
import {readSnapshot} from "./snapshot.js";
import {onRender, past, requestRender, store, view} from "./state.js";
import {TABS} from "./url.js";

let shape = null;  // what the history was read for

const stream = new Stream(store, () => {
	// The history belongs to one model and one start of the server.
	const now = store.isLive ? JSON.stringify([store.picture.started, store.picture.model]) : null;
	if (now !== null && now !== shape) {
		shape = now;
		past.fetch().then(requestRender);
	} else if (now !== null) {
		past.extend();
	}
	requestRender();
});

const views = {load, placement, failover, pathways, chat};

const panels = new Map(TABS.map((tab) => [tab, el("div", {role: "tabpanel", id: `view-${tab}`, "aria-labelledby": `tab-${tab}`, hidden: true},
	views[tab].element)]));
document.getElementById("main").append(...panels.values());

onRender(() => {
	header.update();
	banner.update(stream);
	for (const [tab, panel] of panels) panel.hidden = tab !== view.tab || !store.picture;
	if (!store.picture) return;
	events.update();
	views[view.tab].update();
});

function refreshColours() {
	for (const one of Object.values(views)) one.refreshColours?.();
	requestRender();
}

// A file dropped on the page: a saved picture, or in the chat a picture for the model.
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", async (event) => {
	event.preventDefault();
	const [file] = event.dataTransfer.files;
	if (!file) return;
	if (file.type.startsWith("image/")) {
		view.set({tab: "chat"});
		chat.takeImage(file);
		return;
	}
	try {
		const snapshot = await readSnapshot(file);
		stream.stop();
		shape = null;
		past.clear("a saved picture has no history");
		store.load(snapshot, file.name);
		banner.fail(null);
		requestRender();
	} catch (error) {
		banner.fail(error.message);
	}
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refreshColours);
addEventListener("themechange", refreshColours);

stream.start();
requestRender();
