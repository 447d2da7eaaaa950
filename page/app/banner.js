// One line under the header when what the page shows is not live: since when, why, and what to do.

import {button, el, show} from "./dom.js";
import {dateTitle, time} from "./format.js";
import {store} from "./state.js";

export class Banner {
  constructor(stream) {
    this.stream = stream;
    this.node = document.getElementById("banner");
    this.error = null;
    this.key = null;
  }

  // A file that could not be shown.
  fail(message) {
    this.error = message;
    this.update();
  }

  update() {
    const {stream, error} = this;
    const content = error ? this.#failed(error)
      : !store.isLive && store.picture ? this.#saved()
        : stream.state === "lost" ? this.#lost()
          : stream.state === "connecting" && !store.picture ? [["Waiting for the server's first picture …"], []] : [[], []];
    const [words, buttons] = content;
    const key = words.join("") + buttons.length;
    show(this.node, words.length > 0);
    if (key === this.key) return;
    this.key = key;
    this.node.replaceChildren(el("span", words), ...buttons);
  }

  #failed(error) {
    return [[error], [button("Dismiss", () => {
      this.error = null;
      this.update();
    })]];
  }

  #saved() {
    return [[`Saved picture ${store.source} of ${dateTitle(store.picture.time)}`], [button("Back to live", () => this.stream.start())]];
  }

  #lost() {
    const {stream} = this;
    const since = time(stream.lostAt / 1000);
    const next = stream.retryAt ? `next try at ${time(stream.retryAt / 1000)}` : "trying now";
    return [[store.picture ? `No news from the server since ${since}; what you see is as of then. ` : "The server does not answer. ",
      `${next[0].toUpperCase()}${next.slice(1)}.`], [button("Try now", () => stream.start())]];
  }
}
