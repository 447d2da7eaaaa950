// A panel whose picture can be swapped for a table.

import {button, el, setAttr, setText, show, uniqueId} from "./dom.js";
import {view} from "./state.js";

// `name` is how the address remembers that the table shows; `makeTable` runs while it does.
export function panel({name, title, picture, makeTable, tools = []}) {
	const heading = el("h2", {id: uniqueId("panel")}, title);
	const box = el("div.table-box", {hidden: true, tabindex: "0", role: "region", "aria-label": `${title}, as a table`});
	const swap = makeTable && button("Show as table", () => view.toggleTable(name), ".quiet");
	let key = null;
	return {
		element: el(`section.panel.panel-${name}`, {"aria-labelledby": heading.id},
			el("div.panel-head", heading, el("div.tools", tools, swap)), picture, box),
		heading,
		// Returns whether the picture shows. `version` says when the table is worth building again.
		update(version) {
			const isTable = Boolean(makeTable) && view.tables.has(name);
			if (swap) {
				setText(swap, isTable ? "Show as picture" : "Show as table");
				setAttr(swap, "aria-pressed", isTable);
			}
			show(picture, !isTable);
			show(box, isTable);
			if (isTable && key !== version) {
				key = version;
				box.replaceChildren(makeTable());
			}
			return !isTable;
		},
	};
}
