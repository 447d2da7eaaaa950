// Which experts rows take one after the other. Exact counts of the most frequent paths, image and text apart, each beside the
// share that it would have if the choices in different layers had nothing to do with each other; and per layer how far image
// and text rows are apart.

import {choice, el, setAttribute, setText, show, svg, table} from "./dom.js";
import {divergenceOf, independentShareOf} from "./figures.js";
import {count, fixed, percent, plural} from "./format.js";
import {panel} from "./panel.js";
import {store, view, selection} from "./state.js";

const HEIGHT = 260;
const NODE = 10;
const PAD = 18;

export class Pathways {
  constructor() {
    this.count = choice("Paths shown", [["8", "8"], ["16", "16"], ["32", "32"], ["64", "64"]], (paths) => view.set({paths}));
    this.flows = ["image", "text"].map((modality) => new Flow(modality));
    this.list = el("ul.bits");
    this.note = el("p.note");
    this.divergence = panel({name: "divergence", title: "How far image and text rows are apart, per layer",
      picture: el("div", this.list, this.note), makeTable: () => this.#table()});
    this.element = el("div.column",
      el("div.controls", el("span.label", "most frequent paths"), this.count.element),
      el("div.pair", this.flows.map((flow) => flow.panel.element)), this.divergence.element);
  }

  update() {
    this.count.update(view.paths);
    for (const flow of this.flows) flow.update();
    if (!this.divergence.update(store.version)) return;
    const figures = this.#divergences();
    while (this.list.childElementCount > figures.length) this.list.lastElementChild.remove();
    figures.forEach(({layer, bits, chance}, index) => {
      const item = this.list.children[index] ?? this.list.appendChild(el("li", el("span"), barWithTick(), el("strong")));
      setText(item.children[0], `L${layer.layer}`);
      setBar(item.children[1], bits || 0, chance || 0, 1);
      setText(item.children[2], Number.isNaN(bits) ? "–" : `${fixed(bits, 3)} bits`);
      setAttribute(item, "title", `equal gates would show ${fixed(chance, 5)} bits, as the counts are finite`);
    });
    setText(this.note, `Jensen–Shannon divergence of the loads of image and of text rows, ${selection.current().what}: 0 the same ` +
      "experts, 1 bit none in common. The line across a bar: what equal gates would show by chance.");
  }

  #divergences() {
    const image = selection.loads("image", view.phase);
    const text = selection.loads("text", view.phase);
    return store.layers.map((layer) => ({layer, ...divergenceOf(image, text, layer)}));
  }

  #table() {
    return table("Divergence", ["layer", "bits", "by chance, bits"], this.#divergences().map(({layer, bits, chance}) =>
      [`L${layer.layer}`, fixed(bits, 4), fixed(chance, 6)]));
  }
}

function barWithTick() {
  return el("span.bar", {"aria-hidden": "true"}, el("span.bar-fill"), el("span.bar-tick"));
}

function setBar(bar, value, tick, most) {
  bar.children[0].style.width = `${Math.min(100, (100 * value) / most)}%`;
  bar.children[1].style.left = `${Math.min(100, (100 * tick) / most)}%`;
}

// The paths of one modality: ribbons through the layers, and a list with the null line.
class Flow {
  constructor(modality) {
    this.modality = modality;
    const title = modality === "image" ? "Image rows" : "Text rows";
    this.svg = svg("svg.sankey", {role: "img", "aria-label": `Paths of ${title.toLowerCase()} through the layers`});
    this.svgBox = el("div", this.svg);
    this.list = el("ol.paths");
    this.note = el("p.note");
    this.empty = el("p.empty", `No ${modality} row has gone through the layers yet.`);
    this.picture = el("div", {"data-kind": modality}, this.empty, this.svgBox, this.note, this.list);
    this.panel = panel({name: `paths${modality}`, title, picture: this.picture, makeTable: () => this.#table()});
    new ResizeObserver(() => this.#draw()).observe(this.svgBox);
  }

  update() {
    const isPicture = this.panel.update([store.version, view.paths].join());
    const paths = store.picture.pathways?.[this.modality];
    show(this.empty, !paths?.rows);
    show(this.svgBox, Boolean(paths?.rows));
    show(this.list, Boolean(paths?.rows));
    setText(this.note, paths?.rows ? this.#summary(paths) : "");
    if (isPicture && paths?.rows) this.#draw();
  }

  #layers() {
    return store.picture.pathways.layers.map((number) => store.layerOf(number)).filter(Boolean);
  }

  // The paths that are shown: {experts, rows, share, expected, isDim}.
  #paths() {
    const {top, rows} = store.picture.pathways[this.modality];
    const layers = this.#layers();
    const column = view.pin ? layers.findIndex((layer) => layer.layer === view.pin.layer) : -1;
    return top.filter((path) => path.experts.length === layers.length).slice(0, Number(view.paths)).map((path) => ({
      ...path, share: path.rows / rows, isDim: column >= 0 && path.experts[column] !== view.pin.expert,
      expected: independentShareOf(store.rows, layers, this.modality, path.experts)}));
  }

  #summary(paths) {
    const shown = this.#paths();
    const covered = shown.reduce((sum, path) => sum + path.share, 0);
    return `${plural(paths.rows, "row")} on ${plural(paths.distinct, "path")} since the start; the ${shown.length} shown carry ${percent(covered, 1)}.` +
      (paths.other ? ` ${plural(paths.other, "row")} took paths that are not counted one by one.` : "") +
      " The line across a bar: the share if the layers' choices were independent.";
  }

  #draw() {
    const width = this.svgBox.clientWidth;
    if (!store.picture?.pathways?.[this.modality]?.rows || width === 0) return;
    const paths = this.#paths();
    this.#drawRibbons(paths, width);
    this.#drawList(paths);
  }

  #drawRibbons(paths, width) {
    const layers = this.#layers();
    const x = (column) => 1 + (column * (width - NODE - 2)) / Math.max(1, layers.length - 1);
    const total = paths.reduce((sum, path) => sum + path.rows, 0);
    const scale = (HEIGHT - 2 * PAD - 60) / total;
    // Nodes of a column lie in the order of the experts; a path keeps its order within a node, so ribbons cross little.
    const columns = layers.map((layer, column) => {
      const sums = new Map();
      for (const path of paths) sums.set(path.experts[column], (sums.get(path.experts[column]) ?? 0) + path.rows);
      const used = [...sums.keys()].sort((a, b) => a - b);
      const gap = Math.min(12, 60 / Math.max(1, used.length - 1));
      let y = PAD + 4;
      return new Map(used.map((expert) => {
        const node = {y, next: y, height: sums.get(expert) * scale};
        y += node.height + gap;
        return [expert, node];
      }));
    });
    const parts = paths.map((path) => this.#ribbon(path, columns, x, path.rows * scale));
    columns.forEach((nodes, column) => {
      const anchor = column === 0 ? "start" : column === layers.length - 1 ? "end" : "middle";
      const at = column === 0 ? x(0) : column === layers.length - 1 ? x(column) + NODE : x(column) + NODE / 2;
      const every = Math.ceil((26 * layers.length) / width);
      if (column % every === 0) parts.push(svg("text", {class: "label small", x: at, y: 11, "text-anchor": anchor}, `L${layers[column].layer}`));
      for (const [expert, node] of nodes) {
        parts.push(svg("rect.node", {x: x(column), y: node.y, width: NODE, height: Math.max(1, node.height)},
          svg("title", `L${layers[column].layer} expert ${expert}`)));
        if (layers.length > 12 || node.height < 9) continue;
        const isLast = column === layers.length - 1;
        parts.push(svg("text.node-name", {x: isLast ? x(column) - 5 : x(column) + NODE + 5, y: node.y + node.height / 2,
          "text-anchor": isLast ? "end" : "start", "dominant-baseline": "central"}, String(expert)));
      }
    });
    setAttribute(this.svg, "width", width);
    setAttribute(this.svg, "height", HEIGHT);
    this.svg.replaceChildren(...parts);
  }

  #ribbon(path, columns, x, thickness) {
    const places = columns.map((nodes, column) => {
      const node = nodes.get(path.experts[column]);
      const y = node.next;
      node.next += thickness;
      return {x: x(column), y};
    });
    let top = `M${places[0].x} ${places[0].y}`;
    let bottom = "";
    for (let i = 1; i < places.length; ++i) {
      const from = places[i - 1];
      const to = places[i];
      const middle = (from.x + NODE + to.x) / 2;
      top += `H${from.x + NODE}C${middle} ${from.y} ${middle} ${to.y} ${to.x} ${to.y}`;
      bottom = `H${to.x}C${middle} ${to.y + thickness} ${middle} ${from.y + thickness} ${from.x + NODE} ${from.y + thickness}${bottom}`;
    }
    const last = places[places.length - 1];
    const shape = `${top}H${last.x + NODE}V${last.y + thickness}${bottom}H${places[0].x}Z`;
    return svg("path.ribbon", {d: shape, "data-dim": path.isDim, "data-path": path.experts.join("-")},
      svg("title", `${path.experts.join(" → ")}: ${plural(path.rows, "row")}, ${percent(path.share, 1)}`));
  }

  #drawList(paths) {
    const most = Math.max(...paths.map((path) => Math.max(path.share, path.expected || 0)), 1e-9);
    while (this.list.childElementCount > paths.length) this.list.lastElementChild.remove();
    paths.forEach((path, index) => {
      const item = this.list.children[index] ?? this.list.appendChild(this.#item());
      const key = path.experts.join(" → ");
      item.dataset.path = path.experts.join("-");
      setAttribute(item, "data-dim", path.isDim);
      setText(item.children[0], key);
      setAttribute(item.children[0], "title", key);
      setBar(item.children[1], path.share, path.expected || 0, most);
      setText(item.children[2], percent(path.share, 1));
      setText(item.children[3], Number.isNaN(path.expected) ? "" : `${fixed(path.share / path.expected, 1)} ×`);
      setAttribute(item, "title", `${plural(path.rows, "row")}; independent layers: ${percent(path.expected, 1)}`);
    });
  }

  #item() {
    const light = (isOn) => (event) => {
      const path = event.currentTarget.dataset.path;
      this.svg.querySelector(`[data-path="${path}"]`)?.classList.toggle("lit", isOn);
    };
    return el("li", {tabindex: "0", onpointerenter: light(true), onpointerleave: light(false), onfocus: light(true), onblur: light(false)},
      el("span.path-name"), barWithTick(), el("strong"), el("span.path-lift"));
  }

  #table() {
    if (!store.picture.pathways?.[this.modality]?.rows) return el("p.empty", this.empty.textContent);
    return table(`Most frequent paths of ${this.modality} rows, since the start`, ["experts", "rows", "share", "if independent", "ratio"],
      this.#paths().map((path) => [path.experts.join(" → "), count(path.rows), percent(path.share, 2), percent(path.expected, 2),
        fixed(path.share / path.expected)]));
  }
}
