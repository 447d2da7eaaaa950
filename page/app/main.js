// Puts the page together: one store, one stream, one view state; the views draw themselves from them, at most once per frame and
// only the one that shows.

import {Banner} from "./banner.js";
import {Chat} from "./chat.js";
import {el} from "./dom.js";
import {Events} from "./events.js";
import {Failover} from "./failover.js";
import {Header, Tabs} from "./header.js";
import {History} from "./history.js";
import {Keys} from "./keys.js";
import {Stream} from "./live.js";
import {Load} from "./load.js";
import {Pathways} from "./pathways.js";
import {Placement} from "./placement.js";
import {Selection} from "./selection.js";
import {readSnapshot} from "./snapshot.js";
import {Store} from "./store.js";
import {TABS, View} from "./url.js";

const store = new Store();
const past = new History(store);
const view = new View(() => requestRender());
const selection = new Selection(store, past, view);
const context = {store, history: past, view, selection, render: () => requestRender()};

let isRequested = false;
let shape = null;  // the model that the history was read for

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

const header = new Header({store, onTheme: refreshColours, onHelp: () => keys.show()});
const tabs = new Tabs(view);
const banner = new Banner({store, stream, view, onLive: goLive});
const events = new Events(context);
const views = {load: new Load(context), placement: new Placement(context), failover: new Failover(context),
  pathways: new Pathways(context), chat: new Chat(context)};
const keys = new Keys({view, header, context});

const panels = new Map(TABS.map((tab) => [tab, el("div", {role: "tabpanel", id: `view-${tab}`, "aria-labelledby": `tab-${tab}`, hidden: true},
  views[tab].element)]));
document.getElementById("main").append(...panels.values());

// Between two frames many things may change; they are drawn once.
function requestRender() {
  if (isRequested) return;
  isRequested = true;
  requestAnimationFrame(() => {
    isRequested = false;
    const start = performance.now();
    render();
    performance.clearMeasures("conclave.render");
    performance.measure("conclave.render", {start, end: performance.now()});
  });
}

function render() {
  header.update();
  tabs.update();
  banner.update();
  for (const [tab, panel] of panels) panel.hidden = tab !== view.tab || !store.picture;
  if (!store.picture) return;
  events.update();
  views[view.tab].update();
}

function refreshColours() {
  for (const one of Object.values(views)) one.refreshColours?.();
  requestRender();
}

function goLive() {
  stream.start();
}

// A file dropped on the page: a saved picture, or in the chat a picture for the model.
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", async (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (!file) return;
  if (file.type.startsWith("image/")) {
    view.set({tab: "chat"});
    views.chat.takeImage(file);
    return;
  }
  try {
    const snapshot = await readSnapshot(file);
    stream.stop();
    shape = null;
    past.clear("a saved picture has no history");
    store.load(snapshot, file.name);
    banner.error = null;
    requestRender();
  } catch (error) {
    banner.fail(error.message);
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refreshColours);

stream.start();
requestRender();
