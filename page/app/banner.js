// One line under the header when what the page shows is not live: since when, why, and what to do.

import {el, show} from "./dom.js";
import {dateTitle, time} from "./format.js";

export class Banner {
  constructor({store, stream, view, onLive}) {
    Object.assign(this, {store, stream, view, onLive});
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
    const {store, stream, error} = this;
    const content = error ? this.#failed(error)
      : !store.isLive && store.picture ? this.#saved()
        : stream.state === "lost" ? this.#lost()
          : stream.state === "connecting" && !store.picture ? [["Waiting for the server's first picture …"], []] : [[], []];
    const [words, buttons] = content;
    const key = words.join("") + buttons.length;
    show(this.node, words.length > 0);
    if (key === this.key) return;
    this.key = key;
    this.node.replaceChildren(el("span", {}, words), ...buttons);
  }

  #failed(error) {
    return [[error], [this.#button("Dismiss", () => {
      this.error = null;
      this.update();
    })]];
  }

  #saved() {
    const {picture} = this.store;
    return [["Saved picture ", this.store.source, " of ", time(picture.time), ", ", dateTitle(picture.time)],
      [this.#button("Back to live", this.onLive)]];
  }

  #lost() {
    const {stream, store} = this;
    const since = time(stream.lostAt / 1000);
    const next = stream.retryAt ? `next try at ${time(stream.retryAt / 1000)}` : "trying now";
    return [[store.picture ? `No news from the server since ${since}; what you see is as of then. ` : "The server does not answer. ",
      `${next[0].toUpperCase()}${next.slice(1)}.`], [this.#button("Try now", () => stream.start())]];
  }

  #button(text, onclick) {
    return el("button", {type: "button", onclick}, text);
  }
}
