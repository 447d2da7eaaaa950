// Building elements. Text only ever becomes text nodes, so nothing that a server or a file says can become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);  // the CSP forbids the attribute
    else if (name in node && typeof value === "boolean") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

// el("p", {class: "note", onclick: f}, "text", node, [more])
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

// Writes only what changed: a tick must not undo somebody's selection of a figure.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

export function show(node, isShown) {
  if (node.hidden === isShown) node.hidden = !isShown;
}

let names = 0;
export function uniqueId(prefix) {
  return `${prefix}-${++names}`;
}

// A group of buttons of which one is pressed. `options`: [[value, label, title], …].
export function choice(label, options, onChoose) {
  const buttons = options.map(([value, text, title]) => el("button", {
    type: "button", title, "data-value": value, onclick: () => onChoose(value),
  }, text));
  return {
    element: el("div", {class: "choice", role: "group", "aria-label": label}, buttons),
    update(chosen) {
      for (const button of buttons) {
        setAttribute(button, "aria-pressed", button.dataset.value === String(chosen));
      }
    },
  };
}

export function selectBox(label, onChange) {
  const id = uniqueId("select");
  const select = el("select", {id, onchange: () => onChange(select.value)});
  let known = "";
  return {
    element: el("div", {class: "field"}, el("label", {for: id}, label), select),
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
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, head.map((text) => el("th", {scope: "col"}, text)))),
    el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell, index) =>
      index === 0 ? el("th", {scope: "row", "data-label": head[0]}, cell)
        : el("td", {"data-label": head[index]}, cell))))));
}

// A panel whose picture can be swapped for a table; `name` is how the URL remembers it. `makeTable` runs while it shows.
export function panel(context, {name, title, picture, makeTable, tools = []}) {
  const heading = el("h2", {id: uniqueId("panel")}, title);
  const tableBox = el("div", {class: "table-box", hidden: true, tabindex: "0", role: "region",
    "aria-label": `${title}, as a table`});
  const button = makeTable && el("button", {
    type: "button", class: "quiet", onclick: () => context.view.toggleTable(name),
  }, "Show as table");
  let key = null;
  return {
    element: el("section", {class: `panel panel-${name ?? "plain"}`, "aria-labelledby": heading.id},
      el("div", {class: "panel-head"}, heading, el("div", {class: "tools"}, tools, button)), picture, tableBox),
    heading,
    // Returns whether the picture shows. `version` says when the table is worth building again.
    update(version) {
      const isTable = Boolean(makeTable) && context.view.tables.has(name);
      if (button) {
        setText(button, isTable ? "Show as picture" : "Show as table");
        setAttribute(button, "aria-pressed", isTable);
      }
      show(picture, !isTable);
      show(tableBox, isTable);
      if (isTable && key !== version) {
        key = version;
        tableBox.replaceChildren(makeTable());
      }
      return !isTable;
    },
  };
}

export function prefersStill() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
