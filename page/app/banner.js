// One line under the header when what the page shows is not live: since when, why, and what to do.

import {button, el, show} from "./dom.js";
import {dateTitle, time} from "./format.js";
import {requestRender, store} from "./state.js";

const node = document.getElementById("banner");
let problem = null;
let key = "";

// A file that could not be shown; null: that is over.
export function fail(message) {
	problem = message;
	requestRender();
}

export function update(stream) {
	const [words, action] = content(stream);
	show(node, words !== "");
	if (words === key) return;
	key = words;
	node.replaceChildren(el("span", words), ...(action ? [action] : []));
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
