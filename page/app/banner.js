// One line under the header when what the page shows is not live: since when, why, and what to do.

import {button, el, setText, show} from "./dom.js";
import {dateTitle, time} from "./format.js";
import {requestRender, store} from "./state.js";

const node = document.getElementById("banner");
let problem = null;
const text = node.appendChild(el("span"));

// A file that could not be shown; null: that is over.
export function fail(message) {
	problem = message;
	requestRender();
}

export function update(stream) {
	const [words, action] = content(stream);
	show(node, words !== "");
	setText(text, words);
	// Equal words on the button mean the same: it stays, or it would lose the focus with every try.
	if (action?.textContent !== node.querySelector("button")?.textContent) node.replaceChildren(text, action ?? "");
}

function content(stream) {
	if (problem) return [problem, button("Dismiss", () => fail(null))];
	if (!store.isLive && store.picture) {
		return [`Saved picture ${store.source} of ${dateTitle(store.picture.time)}`, button("Back to live", () => stream.start())];
	}
	if (stream.state === "lost") {
		const since = store.picture ? `No news from the server since ${time(stream.lostAt / 1000)}; what you see is as of then.`
			: "The server does not answer.";
		const next = stream.retryAt ? `Next try at ${time(stream.retryAt / 1000)}.` : "Trying now.";
		return [`${since} ${next}`, button("Try now", () => stream.start())];
	}
	return [store.picture ? "" : "Waiting for the server's first picture …", null];
}
