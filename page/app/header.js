// The line that answers the first question: is every expert served? And the tabs.

import {theme} from "./colour.js";
import {button, el, setAttribute, setText} from "./dom.js";
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

export class Header {
  constructor({onTheme, onHelp}) {
    this.onTheme = onTheme;
    this.model = el("span.fact");
    this.epoch = el("span.fact");
    this.workers = this.#light();
    this.experts = this.#light();
    this.save = el("a.button.quiet", {href: "moe/stats", download: "conclave-picture.json",
      title: "Save this picture as a file; dropped on this page it is shown again"}, "Save");
    this.themeButton = button("", () => this.nextTheme(), ".quiet");
    this.help = el("button.quiet", {type: "button", "aria-label": "Keys", title: "Keys (?)", onclick: onHelp}, "?");
    document.getElementById("header").append(el("h1", "conclave"),
      el("div.facts", this.model, this.epoch, this.workers, this.experts), el("div.tools", this.save, this.themeButton, this.help));
    this.#apply(remembered());
  }

  nextTheme() {
    this.#apply(remembered(theme() === "dark" ? "light" : "dark"));
    this.onTheme();
  }

  update() {
    const {picture} = store;
    document.title = picture?.model ? `${picture.model.name} – conclave` : "conclave";
    setText(this.model, picture?.model?.name ?? "no model yet");
    setText(this.epoch, picture ? `epoch ${picture.cluster.epoch}` : "");
    if (!picture) return;
    const known = store.workers.size;
    const live = [...store.workers.values()].filter((worker) => worker.state === "live").length;
    this.#set(this.workers, known ? `${live} of ${plural(known, "worker")}` : "no worker yet", known > 0 && live === known);
    const {experts_served: served, experts_total: total, replicas_lowest: lowest} = picture.cluster;
    const all = plural(total, "expert");
    this.#set(this.experts, total === 0 ? "no expert known" : `${served === total ? "all" : `${served} of`} ${all} served`,
      total > 0 && served === total);
    setAttribute(this.experts, "title", `fewest replicas of an expert: ${lowest}`);
  }

  #light() {
    return el("span.fact.light", el("span.mark", {"aria-hidden": "true"}), el("span"));
  }

  #set(light, text, isGood) {
    setAttribute(light, "data-good", isGood);
    setText(light.firstChild, isGood ? "●" : "▲");
    setText(light.lastChild, text);
  }

  #apply(name) {
    if (name === "light" || name === "dark") document.documentElement.dataset.theme = name;
    const other = theme() === "dark" ? "light" : "dark";
    setText(this.themeButton, other === "light" ? "Light" : "Dark");
    setAttribute(this.themeButton, "aria-label", `Switch to the ${other} theme`);
  }
}

// Tabs as the ARIA pattern has them: one of them in the tab order, arrow keys move.
export class Tabs {
  constructor() {
    this.buttons = TABS.map((tab) => el("button", {
      type: "button", role: "tab", id: `tab-${tab}`, "aria-controls": `view-${tab}`,
      onclick: () => view.set({tab}), onkeydown: (event) => this.#key(event, tab),
    }, TITLES[tab]));
    document.getElementById("tabs").append(el("div", {role: "tablist", "aria-label": "Views"}, this.buttons));
  }

  update() {
    this.buttons.forEach((button, index) => {
      const isChosen = TABS[index] === view.tab;
      setAttribute(button, "aria-selected", isChosen);
      setAttribute(button, "tabindex", isChosen ? 0 : -1);
    });
  }

  #key(event, tab) {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!step) return;
    const next = (TABS.indexOf(tab) + step + TABS.length) % TABS.length;
    view.set({tab: TABS[next]});
    this.buttons[next].focus();
    event.preventDefault();
  }
}
