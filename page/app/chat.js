// A chat with the model, through this server's own address. Every answer says how long its parts took, and shows the picture with
// the experts that its patches chose.

import {button, el, selectBox, setText, show, uniqueId} from "./dom.js";
import {Drawing} from "./draw.js";
import {count, duration, fixed, plural} from "./format.js";
import {decodeNpy} from "./npy.js";
import {Patches} from "./patches.js";
import {store, view} from "./state.js";

const TIMINGS = [["queue_ms", "queue"], ["image_ms", "image"], ["prefill_ms", "prefill"], ["first_token_ms", "first token after"],
  ["decode_ms", "decode"]];
const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];

function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name}: cannot be read`));
    reader.readAsDataURL(file);
  });
}

// The objects of a stream of server-sent events, until [DONE].
async function* chunksOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {done, value} = await reader.read();
    text += value ?? "";
    let end;
    while ((end = text.search(/\r?\n\r?\n/)) >= 0) {
      const data = text.slice(0, end).split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      text = text.slice(end).replace(/^\r?\n\r?\n/, "");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
    if (done) throw new Error("the answer broke off before its end");
  }
}

export class Chat {
  constructor() {
    this.turns = [];  // what the model is sent again: {role, content}
    this.patches = [];
    this.image = null;  // {file, bitmap} for the next question
    this.models = null;
    this.#build();
  }

  update() {
    const why = !store.isLive ? "A saved picture cannot answer." : store.picture.frontends.length === 0 && store.picture.role === "router"
      ? "No frontend is connected; start one: conclave frontend --router HOST:PORT" : null;
    setText(this.reason, why ?? "");
    show(this.reason, why !== null);
    this.send.disabled = why !== null || this.abort !== undefined;
    if (this.models === null && why === null) this.#fetchModels();
  }

  refreshColours() {
    for (const patches of this.patches) patches.draw();
  }

  // A picture that was dropped anywhere while this tab is open.
  async takeImage(file) {
    try {
      if (!KINDS.includes(file.type)) throw new Error(`${file.name}: expected a PNG, JPEG, WebP, GIF or BMP picture`);
      const bitmap = await createImageBitmap(file).catch(() => {
        throw new Error(`${file.name}: this browser cannot decode it`);
      });
      this.image = {file, bitmap};
      this.#say("");
    } catch (error) {
      this.#say(error.message);
    }
    this.#showImage();
  }

  #build() {
    this.log = el("div.chat-log", {role: "log", "aria-label": "Conversation", "aria-live": "polite"});
    this.empty = el("p.empty", "Ask the model something, with or without a picture. Under each answer: what it cost, and which experts the picture's patches chose.");
    this.model = selectBox("Model", () => {});
    this.reason = el("p.note");
    this.status = el("p.warn", {role: "alert"});
    this.text = el("textarea", {rows: 2, id: uniqueId("question"), placeholder: "How many objects are there?",
      onkeydown: (event) => this.#key(event), onpaste: (event) => this.#paste(event)});
    this.file = el("input", {type: "file", accept: KINDS.join(","), id: uniqueId("file"), class: "hidden", tabindex: "-1", "aria-label": "Picture file",
      onchange: () => this.file.files[0] && this.takeImage(this.file.files[0])});
    this.preview = el("canvas.preview", {width: 96, height: 96, hidden: true, role: "img", "aria-label": "Picture of the next question"});
    this.remove = button("Remove picture", () => this.#setImage(null));
    this.drawing = new Drawing((file) => {
      this.takeImage(file);
      this.#toggleDrawing(false);
    });
    this.drawButton = button("Draw …", () => this.#toggleDrawing(this.drawing.element.hidden));
    this.send = el("button.strong", "Ask");
    this.stop = button("Stop", () => this.abort?.abort());
    this.fresh = button("New conversation", () => this.#begin(), ".quiet");
    const form = el("form.chat-form", {onsubmit: (event) => this.#submit(event)},
      el("div", {class: "field wide"}, el("label", {for: this.text.id}, "Question"), this.text),
      el("div.controls", button("Picture …", () => this.file.click()), this.drawButton, this.preview, this.remove,
        el("span.grow"), this.model.element, this.stop, this.send),
      this.file, this.drawing.element, this.reason, this.status, el("p.note", "Pictures may also be pasted or dropped here."));
    this.stop.hidden = this.remove.hidden = true;
    this.#toggleDrawing(false);
    const heading = el("h2", {id: uniqueId("chat")}, "Chat");
    this.element = el("section", {class: "panel chat", "aria-labelledby": heading.id}, el("div.panel-head", heading, this.fresh), this.empty, this.log, form);
  }

  async #fetchModels() {
    this.models = [];
    try {
      const response = await fetch("v1/models");
      const answer = await response.json();
      if (!response.ok) throw new Error(answer.error?.message ?? `v1/models: the server answered ${response.status}`);
      this.models = answer.data.map((model) => model.id);
      this.model.update(this.models.map((id) => [id, id]), this.models[0]);
      this.#say("");
    } catch (error) {
      this.#say(`The list of models cannot be read: ${error.message}`);
      setTimeout(() => {
        this.models = null;
      }, 5000);
    }
  }

  #say(message) {
    setText(this.status, message && `▲ ${message}`);
  }

  #begin() {
    this.abort?.abort();
    this.turns = [];
    this.patches = [];
    this.log.replaceChildren();
    show(this.empty, true);
    this.#setImage(null);
    this.text.focus();
  }

  #setImage(image) {
    this.image = image;
    this.file.value = "";
    this.#showImage();
  }

  #showImage() {
    show(this.preview, this.image !== null);
    show(this.remove, this.image !== null);
    if (this.image) fit(this.preview, this.image.bitmap);
  }

  #toggleDrawing(isShown) {
    show(this.drawing.element, isShown);
    this.drawButton.setAttribute("aria-expanded", isShown);
  }

  #paste(event) {
    const file = [...event.clipboardData.files].find((entry) => entry.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    this.takeImage(file);
  }

  #key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!this.send.disabled) this.element.querySelector("form").requestSubmit();
    }
  }

  async #submit(event) {
    event.preventDefault();
    const question = this.text.value.trim() || this.text.placeholder;
    if (this.abort) return;
    const {image} = this;
    const content = image ? [{type: "image_url", image_url: {url: await dataUri(image.file)}}, {type: "text", text: question}] : question;
    if (image) this.picture = image.bitmap;
    this.turns.push({role: "user", content});
    this.#addTurn("You", question, image);
    this.#setImage(null);
    this.text.value = "";
    show(this.empty, false);
    const answer = this.#addTurn(this.model.select.value || "Model", "", null);
    await this.#ask(answer);
  }

  async #ask(answer) {
    this.abort = new AbortController();
    this.send.disabled = true;
    show(this.stop, true);
    this.#say("");
    try {
      await this.#stream(answer);
    } catch (error) {
      const isStopped = error.name === "AbortError";
      setText(answer.foot, isStopped ? "Stopped." : `▲ ${error.message}`);
      // Neither question nor answer is said again.
      this.turns.pop();
    } finally {
      this.abort = undefined;
      show(this.stop, false);
      this.update();
    }
  }

  async #stream(answer) {
    const started = performance.now();
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: {"Content-Type": "application/json"}, signal: this.abort.signal,
      body: JSON.stringify({model: this.model.select.value, messages: this.turns, stream: true, stream_options: {include_usage: true},
        temperature: 0, return_routed_experts: true, conclave: {return_gate_probabilities: true}}),
    });
    if (!response.ok) {
      const problem = await response.json().catch(() => ({}));
      throw new Error(problem.error?.message ?? `the server answered ${response.status}`);
    }
    const reply = {text: "", seconds: 0};
    for await (const chunk of chunksOf(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const [first] = chunk.choices ?? [];
      reply.text += first?.delta?.content ?? "";
      reply.routes = first?.routed_experts ?? reply.routes;
      reply.usage = chunk.usage ?? reply.usage;
      reply.extension = chunk.conclave ?? reply.extension;
      setText(answer.text, reply.text);
    }
    reply.seconds = (performance.now() - started) / 1000;
    this.turns.push({role: "assistant", content: reply.text});
    setText(answer.foot, this.#footText(reply));
    this.#showPatches(answer, reply);
  }

  #footText({usage, extension, seconds}) {
    const timings = extension?.timings ?? {};
    const parts = TIMINGS.filter(([name]) => timings[name] > 0).map(([name, label]) => `${label} ${duration(timings[name] / 1000)}`);
    if (usage) {
      parts.unshift(`${plural(usage.prompt_tokens, "prompt row")} (${count(usage.prompt_tokens_details?.image_tokens ?? 0)} image, ` +
        `${count(usage.prompt_tokens_details?.cached_tokens ?? 0)} cached)`, plural(usage.completion_tokens, "token"));
      const between = timings.decode_ms / 1000 / (usage.completion_tokens - 1);
      if (usage.completion_tokens > 1 && between > 0) parts.push(`${fixed(1 / between, 0)} tokens /s`);
    }
    parts.push(`here after ${duration(seconds)}`);
    return parts.join(" · ");
  }

  #showPatches(answer, {routes, extension}) {
    const [rows] = extension?.image_rows ?? [];
    const grid = store.picture.model?.image;
    if (!routes || !rows || !this.picture || !grid) return;
    if (rows[1] !== grid.rows * grid.columns) {
      answer.element.append(el("p.note", `${plural(rows[1], "row")} of the picture do not form the grid of ${grid.rows} × ${grid.columns} patches.`));
      return;
    }
    try {
      const patches = new Patches({picture: this.picture, routes: decodeNpy(routes), rows, grid, layers: store.layers,
        probabilities: extension.gate_probabilities ? decodeNpy(extension.gate_probabilities) : null, chosenLayer: view.pin?.layer});
      this.patches.push(patches);
      answer.element.append(patches.element);
    } catch (error) {
      answer.element.append(el("p.warn", `▲ The experts of the patches cannot be shown: ${error.message}`));
    }
  }

  #addTurn(who, text, image) {
    const parts = {text: el("p.turn-text", text), foot: el("p", {class: "note turn-foot"})};
    const thumb = image && el("canvas.thumb", {width: 144, height: 144, role: "img", "aria-label": "the picture asked about"});
    parts.element = el("article.turn", el("h3", who), thumb, parts.text, parts.foot);
    if (thumb) fit(thumb, image.bitmap);
    this.log.append(parts.element);
    return parts;
  }
}

function fit(canvas, bitmap) {
  const pen = canvas.getContext("2d");
  const scale = Math.min(canvas.width / bitmap.width, canvas.height / bitmap.height);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, (canvas.width - bitmap.width * scale) / 2, (canvas.height - bitmap.height * scale) / 2, bitmap.width * scale,
    bitmap.height * scale);
}
