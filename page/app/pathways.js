// Which experts rows take one after the other. Exact counts of the most frequent paths, image and text apart, each beside the
// share that it would have if the choices in different layers had nothing to do with each other; and per layer how far image
// and text rows are apart.

import {choice, el, rowsOf, setAttr, setText, show, svg} from "./dom.js";
import {divergenceOf, firstSharesOf, sumOf} from "./figures.js";
import {fixed, NONE, percent, plural} from "./format.js";
import {panel} from "./panel.js";
import {selection, store, view} from "./state.js";

const HEIGHT = 240;
const NODE = 10;
const TOP = 22;

const shown = choice("Paths shown", [["8", "8"], ["16", "16"], ["32", "32"], ["64", "64"]], (paths) => view.set({paths}));
const bits = el("ul.bits");
const note = el("p.note");

export function update() {
	shown.update(view.paths);
	for (const flow of flows) flow.update();
	const image = selection.loads("image", view.phase);
	const text = selection.loads("text", view.phase);
	const items = rowsOf(bits, store.layers.length, () => el("li", el("span"), barWithTick(), el("strong")));
	store.layers.forEach((layer, index) => {
		const {bits: apart, chance} = divergenceOf(image, text, layer);
		const [name, bar, figure] = items[index].children;
		setText(name, `L${layer.layer}`);
		setBar(bar, apart || 0, chance || 0, 1);
		setText(figure, Number.isNaN(apart) ? NONE : `${fixed(apart, 3)} bits`);
		setAttr(items[index], "title", `equal gates would show ${fixed(chance, 5)} bits, as the counts are finite`);
	});
	setText(note, `Jensen–Shannon divergence of the loads of image and of text rows, ${selection.current().what}: 0 the same ` +
		"experts, 1 bit none in common. The line across a bar: what equal gates would show by chance.");
}

function barWithTick() {
	return el("span.bar", {"aria-hidden": "true"}, el("span.bar-fill"), el("span.bar-tick"));
}

function setBar(bar, value, tick, most) {
	bar.children[0].style.width = `${Math.min(100, (100 * value) / most)}%`;
	bar.children[1].style.left = `${Math.min(100, (100 * tick) / most)}%`;
}

// The paths of one modality: ribbons through the layers, and a table with the null line.
class Flow {
	constructor(modality) {
		this.modality = modality;
		this.svg = svg("svg.sankey", {role: "img", "aria-label": `Paths of ${modality} rows through the layers`});
		this.body = el("tbody");
		this.table = el("table.paths", {"aria-label": `Most frequent paths of ${modality} rows`}, el("thead", el("tr", ["experts", "", "share", "ratio"].map((text) => (text ? el("th", {scope: "col"}, text) : el("td"))))),
			this.body);
		this.box = el("div", this.svg, this.table);
		this.note = el("p.note");
		this.empty = el("p.empty", `No ${modality} row has gone through the layers yet.`);
		this.panel = panel({name: `paths-${modality}`, title: modality === "image" ? "Image rows" : "Text rows",
			picture: el("div", {"data-kind": modality}, this.empty, this.note, this.box)});
		new ResizeObserver(() => this.update()).observe(this.box);
	}

	update() {
		const found = store.picture?.pathways?.[this.modality];
		show(this.empty, !found?.rows);
		show(this.box, Boolean(found?.rows));
		const width = this.box.clientWidth;
		if (!found?.rows || width === 0) return;
		const layers = store.picture.pathways.layers.map((number) => store.layerOf(number)).filter(Boolean);
		const paths = this.#paths(found, layers);
		setText(this.note, `${plural(found.rows, "row")} on ${plural(found.distinct, "path")} since the start; the ${paths.length} shown carry ` +
			`${percent(sumOf(paths, (path) => path.share), 1)}.` +
			(found.other ? ` ${plural(found.other, "row")} took paths that are not counted one by one.` : "") +
			" The line across a bar: the share if the layers' choices were independent.");
		if (paths.length === 0) return;
		this.#drawRibbons(paths, layers, width);
		this.#fillTable(paths);
	}

	// The paths that are shown: {experts, rows, share, expected, isDim}.
	#paths(found, layers) {
		const column = view.pin ? layers.findIndex((layer) => layer.layer === view.pin.layer) : -1;
		const shares = layers.map((layer) => firstSharesOf(store.rows, this.modality, layer));
		return found.top.filter((path) => path.experts.length === layers.length).slice(0, Number(view.paths)).map((path) => ({
			...path, share: path.rows / found.rows, isDim: column >= 0 && path.experts[column] !== view.pin.expert,
			expected: path.experts.reduce((product, expert, i) => product * shares[i][expert], 1)}));
	}

	#drawRibbons(paths, layers, width) {
		const x = (column) => 1 + (column * (width - NODE - 2)) / Math.max(1, layers.length - 1);
		const total = sumOf(paths, (path) => path.rows);
		const gap = Math.min(12, 60 / Math.max(1, ...layers.map((layer) => layer.experts - 1)));
		const gaps = gap * Math.max(...layers.map((_, column) => new Set(paths.map((path) => path.experts[column])).size - 1));
		const scale = (HEIGHT - TOP - gaps) / total;
		// Nodes of a column lie in the order of the experts; a path keeps its order within a node, so ribbons cross little.
		const columns = layers.map((layer, column) => {
			const sums = new Map();
			for (const path of paths) sums.set(path.experts[column], (sums.get(path.experts[column]) ?? 0) + path.rows);
			const used = [...sums.keys()].sort((a, b) => a - b);
			let y = TOP;
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
			if (column % every === 0) parts.push(svg("text.label.small", {x: at, y: 11, "text-anchor": anchor}, `L${layers[column].layer}`));
			for (const [expert, node] of nodes) {
				parts.push(svg("rect.node", {x: x(column), y: node.y, width: NODE, height: Math.max(1, node.height)},
					svg("title", `L${layers[column].layer} expert ${expert}`)));
				if (layers.length > 12 || node.height < 9) continue;
				const isLast = column === layers.length - 1;
				parts.push(svg("text.node-name", {x: isLast ? x(column) - 5 : x(column) + NODE + 5, y: node.y + node.height / 2,
					"text-anchor": isLast ? "end" : "start", "dominant-baseline": "central"}, String(expert)));
			}
		});
		setAttr(this.svg, "width", width);
		setAttr(this.svg, "height", HEIGHT);
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

	#fillTable(paths) {
		const most = Math.max(...paths.map((path) => Math.max(path.share, path.expected || 0)), 1e-9);
		const rows = rowsOf(this.body, paths.length, () => this.#row());
		paths.forEach((path, index) => {
			const row = rows[index];
			const [name, bar, share, lift] = row.children;
			row.dataset.path = path.experts.join("-");
			setAttr(row, "data-dim", path.isDim);
			setText(name, path.experts.join(" → "));
			setBar(bar.firstChild, path.share, path.expected || 0, most);
			setText(share, percent(path.share, 1));
			setText(lift, fixed(path.share / path.expected, 1));
			setAttr(row, "title", `${name.textContent}: ${plural(path.rows, "row")}; independent layers: ${percent(path.expected, 1)}`);
		});
	}

	#row() {
		const light = (isOn) => (event) => {
			const path = event.currentTarget.dataset.path;
			this.svg.querySelector(`[data-path="${path}"]`)?.classList.toggle("lit", isOn);
		};
		return el("tr", {onpointerenter: light(true), onpointerleave: light(false)},
			el("th", {scope: "row"}), el("td", barWithTick()), el("td"), el("td"));
	}
}

const flows = ["image", "text"].map((modality) => new Flow(modality));
const divergence = panel({name: "divergence", title: "How far image and text rows are apart, per layer", picture: el("div", bits, note)});
export const element = el("div.column", el("div.controls.middle", el("span.label", "most frequent paths"), shown.element),
	el("div.pair", flows.map((flow) => flow.panel.element)), divergence.element);
