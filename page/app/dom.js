// Building elements. Text only ever becomes text nodes, so nothing that a server or a file says can become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, classes, attributes, children) {
	const hasAttributes = attributes?.constructor === Object;
	if (classes.length) node.setAttribute("class", classes.join(" "));
	for (const [name, value] of hasAttributes ? Object.entries(attributes) : []) {
		if (value === undefined || value === null || value === false) continue;
		if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
		else if (name === "style") Object.assign(node.style, value);  // the CSP forbids the attribute
		else if (name in node && typeof value === "boolean") node[name] = value;
		else node.setAttribute(name, value);
	}
	const all = hasAttributes ? children : [attributes, ...children];
	node.append(...all.flat(Infinity).filter((child) => child !== null && child !== undefined));
	return node;
}

// el("p.note", {onclick: f}, "text", node, [more]); the attributes may be left out.
export function el(name, attributes, ...children) {
	const [tag, ...classes] = name.split(".");
	return fill(document.createElement(tag), classes, attributes, children);
}

export function svg(name, attributes, ...children) {
	const [tag, ...classes] = name.split(".");
	return fill(document.createElementNS(SVG, tag), classes, attributes, children);
}

export function button(text, onclick, kind = "") {
	return el(`button${kind}`, {type: "button", onclick}, text);
}

// Writes only what changed: a tick must not undo somebody's selection of a figure.
export function setText(node, text) {
	if (node.textContent !== text) node.textContent = text;
}

export function setAttr(node, name, value) {
	if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

export function show(node, isShown) {
	if (node.hidden === isShown) node.hidden = !isShown;
}

let names = 0;
export function uniqueId(prefix) {
	return `${prefix}-${++names}`;
}

// A group of buttons of which one is pressed. `options`: [[value, label], …].
export function choice(label, options, onChoose) {
	const buttons = options.map(([value, text]) => el("button", {
		type: "button", "data-value": value, onclick: () => onChoose(value),
	}, text));
	return {
		element: el("div.choice", {role: "group", "aria-label": label}, buttons),
		update(chosen) {
			for (const button of buttons) {
				setAttr(button, "aria-pressed", button.dataset.value === String(chosen));
			}
		},
	};
}

export function selectBox(label, onChange) {
	const id = uniqueId("select");
	const select = el("select", {id, onchange: () => onChange(select.value)});
	let known = "";
	return {
		element: el("div.field", el("label", {for: id}, label), select),
		select,
		// `options`: [[value, text], …]; built again only when they change, which would close an open list.
		update(options, chosen) {
			const now = JSON.stringify(options);
			if (now !== known) {
				known = now;
				select.replaceChildren(...options.map(([value, text]) => el("option", {value}, text)));
			}
			if (select.value !== String(chosen)) select.value = String(chosen);
		},
	};
}

// A table that a screen reader can walk and that can be copied. `head` and the first cell of a row are headers.
export function table(caption, head, rows, attributes = {}) {
	return el("table", attributes,
		el("caption", caption),
		el("thead", el("tr", head.map((text) => el("th", {scope: "col"}, text)))),
		el("tbody", rows.map((cells) => el("tr", cells.map((cell, index) =>
			index === 0 ? el("th", {scope: "row", "data-label": head[0]}, cell)
				: el("td", {"data-label": head[index]}, cell))))));
}

// The children of a list that has `count` rows; rows that stay are the same nodes as before.
export function rowsOf(list, count, make) {
	while (list.childElementCount > count) list.lastElementChild.remove();
	while (list.childElementCount < count) list.append(make());
	return [...list.children];
}

export function prefersStill() {
	return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
