// Where the load is, and whether it is text or image: maps of layer × expert, how uneven every layer is, the pinned expert, the
// workers and the rates.

import {button, choice, el, prefersStill, setAttribute, setText, show, svg, table} from "./dom.js";
import {imbalanceOf, loadsOf, slotsOf, totalOf} from "./figures.js";
import {count, dateTitle, expertName, fixed, percent, plural, time} from "./format.js";
import {diverging, ratioPosition, theme} from "./colour.js";
import {Heatmap} from "./heatmap.js";
import {Pinned} from "./pinned.js";
import {Rates} from "./rates.js";
import {Workers} from "./workers.js";
import {panel} from "./panel.js";
import {past, requestRender, selection, store, view} from "./state.js";

const LAYERS_SHOWN = 12;  // the least balanced ones, if there are more
const PLAY_MS = 250;
const LARGE_TABLE_MS = 5000;  // a table of many thousand cells is not built every second

export class Load {
  constructor() {
    this.imbalances = {key: null, perStep: []};
    this.#controls();
    this.#maps();
    this.pinned = new Pinned();
    this.workers = new Workers();
    this.rates = new Rates();
    this.element = el("div.columns",
      el("div.column", this.panel.element, this.pinned.element, this.imbalancePanel.element),
      el("div", {class: "column side"}, this.workers.element, this.rates.element));
  }

  update() {
    const now = selection.current();
    this.modality.update(view.modality);
    this.phase.update(view.phase);
    this.window.update(view.window);
    this.compare.update(view.compare);
    this.#updateHistory();
    setText(this.what, `${this.#filterText()}, ${now.what}`);
    const isLarge = store.numUnits > 2048;
    const version = isLarge ? Math.floor(performance.now() / LARGE_TABLE_MS) : store.version;
    if (this.panel.update([version, location.hash].join())) this.#updateMaps();
    this.#updateImbalance();
    this.pinned.update();
    this.workers.update();
    this.rates.update();
  }

  refreshColours() {
    this.key.dataset.theme = theme();
    for (const stop of this.key.querySelectorAll("[data-ratio]")) {
      stop.style.background = diverging(ratioPosition(Number(stop.dataset.ratio)));
    }
  }

  #controls() {
    this.modality = choice("Rows of which kind", [["all", "all"], ["image", "image"], ["text", "text"]],
      (modality) => view.set({modality}));
    this.phase = choice("Rows of which phase", [["both", "both"], ["prefill", "prefill"], ["decode", "decode"]],
      (phase) => view.set({phase}));
    this.window = choice("Window", [["start", "since start"], ["60", "last 60 s"], ["10", "last 10 s"]],
      (window) => view.set({window}));
    this.compare = choice("Compare image with text", [["off", "one map"], ["on", "image | text"]], (compare) => view.set({compare}));
    this.slider = el("input", {type: "range", min: 0, max: 0, step: 1, "aria-label": "Moment of the last 15 minutes",
      oninput: () => this.#seek(Number(this.slider.value))});
    this.moment = el("span.moment");
    this.play = button("Replay", () => this.#togglePlay());
    this.live = button("Live", () => this.goLive());
    this.historyBox = el("div.history", this.play, this.slider, this.live, this.moment);
    this.controls = el("div.controls", this.modality.element, this.phase.element, this.window.element,
      this.compare.element);
  }

  #maps() {
    const describe = (mapOf) => (unit, layer, expert) => this.#describe(unit, layer, expert, mapOf);
    const map = (title, mapOf) => new Heatmap({title, describe: describe(mapOf),
      onPick: (layer, expert) => view.togglePin(layer, expert)});
    this.single = map("Share ÷ fair share", () => view.modality);
    this.image = map("Image rows: share ÷ fair share", () => "image");
    this.text = map("Text rows: share ÷ fair share", () => "text");
    this.difference = map("Difference, image − text", () => null);
    this.what = el("p.note", {"aria-live": "polite"});
    this.empty = el("p.empty", "No traffic yet. Ask something: ",
      el("code", "conclave ask models/demo/samples/two.jpg \"How many objects are there?\""), ", or use the tab Chat.");
    this.noModel = el("p.empty", "No member has said yet what the model is. Start a worker: ",
      el("code", "conclave worker --router HOST:PORT"));
    this.key = el("div.key", {role: "img",
      "aria-label": "Colours: blue a quarter of the fair share or less, neutral the fair share, orange four times it or more"},
      [0.25, 0.5, 1, 2, 4].map((ratio) => el("span.key-stop", {"data-ratio": ratio},
        {0.25: "¼", 0.5: "½", 1: "1 = fair share", 2: "2", 4: "4 ×"}[ratio])));
    this.compareBox = el("div.heat-compare", this.image.element, this.text.element, this.difference.element);
    this.mapBox = el("div", this.single.element, this.compareBox, this.key);
    const picture = el("div", this.empty, this.noModel, this.mapBox);
    this.panel = panel({name: "heat", title: "Layer × expert", picture, makeTable: () => this.#table()});
    this.panel.element.insertBefore(this.controls, picture);
    this.panel.element.insertBefore(this.what, picture);
    this.panel.element.append(this.historyBox);
    this.imbalanceList = el("ul.imbalance");
    this.imbalanceNote = el("p.note");
    this.imbalancePanel = panel({name: "imbalance", title: "Imbalance per layer, max ÷ mean",
      picture: el("div", this.imbalanceList, this.imbalanceNote), makeTable: () => this.#imbalanceTable()});
  }

  #updateMaps() {
    const isCompare = view.compare === "on";
    show(this.noModel, store.numUnits === 0);
    show(this.empty, store.numUnits > 0 && !store.hasRows);
    show(this.mapBox, store.numUnits > 0);
    show(this.single.element, !isCompare);
    show(this.compareBox, isCompare);
    if (this.key.dataset.theme !== theme()) this.refreshColours();
    const shared = {layers: store.layers, pin: view.pin};
    const ratio = {...shared, position: ratioPosition, figure: (value) => fixed(value)};
    if (!isCompare) {
      this.single.update({...ratio, values: selection.ratios()});
      return;
    }
    const image = selection.ratios("image");
    const text = selection.ratios("text");
    this.image.update({...ratio, values: image});
    this.text.update({...ratio, values: text});
    this.difference.update({...shared, values: image.map((value, unit) => value - text[unit]), position: (value) => value / 2,
      figure: (value) => (value > 0 ? "+" : "") + fixed(value)});
  }

  #describe(unit, layer, expert, mapOf) {
    const name = expertName(layer.layer, expert);
    const modality = mapOf();
    if (modality === null) {
      const [image, text] = ["image", "text"].map((kind) => selection.ratios(kind)[unit]);
      return `${name}: image ${fixed(image)} − text ${fixed(text)} = ${fixed(image - text)} fair shares`;
    }
    const loads = selection.loads(modality);
    const total = totalOf(loads, layer);
    return `${name}: ${fixed(selection.ratios(modality)[unit])} × fair share, ${percent(loads[unit] / total, 1)} of ` +
      `${plural(total, "row")}, ${count(loads[unit])}`;
  }

  #filterText() {
    const {modality, phase, compare} = view;
    const kind = compare === "on" || modality === "all" ? "All rows" : modality === "image" ? "Image rows" : "Text rows";
    return phase === "both" ? kind : `${kind} of ${phase}`;
  }

  #table() {
    const ratios = selection.ratios();
    const loads = selection.loads();
    const columns = store.layers.reduce((most, layer) => Math.max(most, layer.experts), 0);
    return table(`Rows and share ÷ fair share. ${this.what.textContent}`,
      ["layer", ...Array.from({length: columns}, (_, expert) => `expert ${expert}`)],
      store.layers.map((layer) => [`L${layer.layer}`, ...Array.from({length: layer.experts}, (_, expert) =>
        `${count(loads[layer.first + expert])} (${fixed(ratios[layer.first + expert])})`)]));
  }

  // The imbalance of every step of the history, for the sparklines. Only new steps are computed.
  #perStep() {
    const key = [view.modality, view.phase, store.numUnits, past.times[0]].join();
    const list = this.imbalances;
    if (list.key !== key || list.perStep.length > past.steps.length) Object.assign(list, {key, perStep: []});
    const slots = slotsOf(view.modality, view.phase);
    const rows = new Float64Array(store.rows.length);
    for (let i = list.perStep.length; i < past.steps.length; ++i) {
      rows.fill(0);
      const {indices, increments} = past.steps[i];
      for (let j = 0; j < indices.length; ++j) rows[indices[j]] = increments[j];
      const loads = loadsOf(rows, slots, new Float64Array(store.numUnits));
      list.perStep.push(store.layers.map((layer) => imbalanceOf(loads, layer)));
    }
    return list.perStep;
  }

  #updateImbalance() {
    if (!this.imbalancePanel.update(store.version)) return;
    const loads = selection.loads();
    const perStep = this.#perStep();
    const all = store.layers.map((layer, index) => ({layer, index, value: imbalanceOf(loads, layer)}));
    const shown = all.length <= LAYERS_SHOWN ? all
      : [...all].sort((a, b) => (b.value || 0) - (a.value || 0)).slice(0, LAYERS_SHOWN);
    while (this.imbalanceList.childElementCount > shown.length) this.imbalanceList.lastElementChild.remove();
    shown.forEach(({layer, index, value}, place) => {
      const item = this.imbalanceList.children[place] ?? this.imbalanceList.appendChild(imbalanceItem());
      setText(item.children[0], `L${layer.layer}`);
      setText(item.children[1], fixed(value));
      setAttribute(item.querySelector("path"), "d", sparkline(perStep.map((step) => step[index])));
    });
    const steps = perStep.length > 1 ? ` The line: every ${Math.round(past.step)} s of the last 15 minutes, from 1 up.` : "";
    setText(this.imbalanceNote, (shown.length < all.length ? `The ${shown.length} least balanced of ${all.length} layers.` : "") + steps);
  }

  #imbalanceTable() {
    const loads = selection.loads();
    return table("Imbalance per layer", ["layer", "max ÷ mean", "rows", "rows of the most loaded expert"], store.layers.map((layer) => {
      const most = Math.max(...loads.subarray(layer.first, layer.first + layer.experts));
      return [`L${layer.layer}`, fixed(imbalanceOf(loads, layer), 3), count(totalOf(loads, layer)), count(most)];
    }));
  }

  #index() {
    return view.at === null ? past.times.length - 1 : past.indexAt(view.at);
  }

  #updateHistory() {
    const why = past.why ?? (past.times.length < 2 ? `the first step of ${past.step} s is not over yet` : null);
    const last = Math.max(0, past.times.length - 1);
    setAttribute(this.slider, "max", last);
    this.slider.disabled = this.play.disabled = why !== null;
    this.live.disabled = view.at === null;
    const index = this.#index();
    if (Number(this.slider.value) !== index) this.slider.value = String(Math.max(0, index));
    const at = past.times[index];
    setAttribute(this.slider, "aria-valuetext", view.at === null ? "now" : time(at));
    setText(this.moment, why ? `No replay: ${why}.` : view.at === null
      ? `now; back to ${time(past.times[0])}` : `map as of ${time(at)}; all else is live`);
    setAttribute(this.moment, "title", dateTitle(at));
    setText(this.play, this.playing ? "Pause" : "Replay");
  }

  #seek(index) {
    if (past.why !== null || past.times.length < 2) return;
    const last = past.times.length - 1;
    view.set({at: index >= last ? null : past.times[Math.max(0, index)]});
  }

  // One step of the history back or forward.
  step(by) {
    this.#seek(this.#index() + by);
  }

  goLive() {
    this.#stopPlay();
    view.set({at: null});
  }

  #togglePlay() {
    if (this.playing) {
      this.#stopPlay();
    } else {
      if (view.at === null) this.#seek(0);
      this.playing = setInterval(() => {
        this.#seek(this.#index() + 1);
        if (view.at === null) this.#stopPlay();
      }, prefersStill() ? 4 * PLAY_MS : PLAY_MS);
    }
    requestRender();
  }

  #stopPlay() {
    clearInterval(this.playing);
    this.playing = null;
  }
}

const SPARK = {width: 120, height: 20};

function imbalanceItem() {
  return el("li", el("span.imbalance-layer"), el("strong"),
    svg("svg", {viewBox: `0 0 ${SPARK.width} ${SPARK.height}`, width: SPARK.width, height: SPARK.height, "aria-hidden": "true"},
      svg("path.spark")));
}

// From 1 (the floor) to the largest value, at least 2, so that a balanced layer looks flat.
function sparkline(values) {
  const top = Math.max(2, ...values.filter((value) => !Number.isNaN(value)));
  let isDrawing = false;
  return values.map((value, index) => {
    if (Number.isNaN(value)) {
      isDrawing = false;
      return "";
    }
    const x = (SPARK.width * index) / Math.max(1, values.length - 1);
    const y = SPARK.height - 1 - ((value - 1) / (top - 1)) * (SPARK.height - 2);
    const command = `${isDrawing ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    isDrawing = true;
    return command;
  }).join("") || "M0 0";
}
