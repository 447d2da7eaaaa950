// The line that answers the first question: is every expert served? And the tabs.

import {el, setAttribute, setText} from "./dom.js";
import {plural} from "./format.js";
import {TABS} from "./url.js";

const TITLES = {load: "Load", placement: "Placement", failover: "Failover", pathways: "Pathways", chat: "Chat"};
const THEME_KEY = "conclave.theme";

function stored() {
  try {
    return localStorage.getItem(THEME_KEY);
  } catch {
    return null;  // storage may be forbidden; the switch then lasts as long as the page
  }
}

export class Header {
  constructor({store, onTheme, onHelp}) {
    this.store = store;
    this.onTheme = onTheme;
    this.model = el("span", {class: "fact"});
    this.epoch = el("span", {class: "fact"});
    this.workers = this.#light();
    this.experts = this.#light();
    this.save = el("a", {class: "button quiet", href: "moe/stats", download: "conclave-picture.json",
      title: "Save this picture as a file; dropped on this page it is shown again"}, "Save");
    this.themeButton = el("button", {type: "button", class: "quiet", onclick: () => this.nextTheme()});
    document.getElementById("header").append(
      el("h1", {}, "conclave"),
      el("div", {class: "facts"}, this.model, this.epoch, this.workers.element, this.experts.element),
      el("div", {class: "tools"}, this.save, this.themeButton,
        el("button", {type: "button", class: "quiet", "aria-label": "Keys", title: "Keys (?)", onclick: onHelp}, "?")));
    this.#apply(stored());
  }

  nextTheme() {
    const isDark = document.documentElement.dataset.theme
      ? document.documentElement.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    const next = isDark ? "light" : "dark";
    try {
      localStorage.setItem(THEME_KEY, next);
    } catch {
      // as above
    }
    this.#apply(next);
    this.onTheme();
  }

  update() {
    const {picture} = this.store;
    document.title = picture?.model ? `${picture.model.name} – conclave` : "conclave";
    setText(this.model, picture?.model?.name ?? "no model yet");
    setText(this.epoch, picture?.cluster ? `epoch ${picture.cluster.epoch}` : "");
    if (!picture) return;
    const here = [...this.store.workers.values()].filter((worker) => !["dead", "left"].includes(worker.state));
    const live = here.filter((worker) => worker.state === "live");
    const known = this.store.workers.size;
    this.#set(this.workers, known === 0 ? "no worker yet" : `${live.length} of ${plural(known, "worker")}`,
      known > 0 && live.length === known);
    const {experts_served: served, experts_total: total, replicas_lowest: lowest} = picture.cluster;
    const isWhole = total > 0 && served === total;
    this.#set(this.experts, total === 0 ? "no expert known"
      : isWhole ? `all ${plural(total, "expert")} served` : `${served} of ${plural(total, "expert")} served`, isWhole);
    setAttribute(this.experts.element, "title", `fewest replicas of an expert: ${lowest}`);
  }

  #light() {
    const mark = el("span", {class: "mark", "aria-hidden": "true"});
    const text = el("span");
    return {element: el("span", {class: "fact light"}, mark, text), mark, text};
  }

  #set(light, text, isGood) {
    setText(light.mark, isGood ? "●" : "▲");
    setAttribute(light.element, "data-good", isGood);
    setText(light.text, text);
  }

  #apply(name) {
    if (name === "light" || name === "dark") document.documentElement.dataset.theme = name;
    const isDark = document.documentElement.dataset.theme
      ? document.documentElement.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    setText(this.themeButton, isDark ? "Light" : "Dark");
    this.themeButton.setAttribute("aria-label", `Switch to the ${isDark ? "light" : "dark"} theme`);
  }
}

// Tabs as the ARIA pattern has them: one of them in the tab order, arrow keys move.
export class Tabs {
  constructor(view) {
    this.view = view;
    this.buttons = TABS.map((tab) => el("button", {
      type: "button", role: "tab", id: `tab-${tab}`, "aria-controls": `view-${tab}`,
      onclick: () => view.set({tab}), onkeydown: (event) => this.#key(event, tab),
    }, TITLES[tab]));
    document.getElementById("tabs").append(
      el("div", {role: "tablist", "aria-label": "Views"}, this.buttons));
  }

  update() {
    this.buttons.forEach((button, index) => {
      const isChosen = TABS[index] === this.view.tab;
      setAttribute(button, "aria-selected", isChosen);
      setAttribute(button, "tabindex", isChosen ? 0 : -1);
    });
  }

  #key(event, tab) {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!step) return;
    const next = (TABS.indexOf(tab) + step + TABS.length) % TABS.length;
    this.view.set({tab: TABS[next]});
    this.buttons[next].focus();
    event.preventDefault();
  }
}
