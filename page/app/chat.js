// A chat with the model, through this server's own address. Every answer says how long its parts took, and shows the picture with
// the experts that its patches chose.

import {ask, request} from "./api.js";
import {button, el, selectBox, setText, show, uniqueId} from "./dom.js";
import {Drawing} from "./draw.js";
import {count, duration, fixed, plural} from "./format.js";
import {decodeNpy} from "./npy.js";
import {Patches} from "./patches.js";
import {store, view} from "./state.js";

const TIMINGS = [["queue_ms", "queue"], ["image_ms", "image"], ["prefill_ms", "prefill"],
		["first_token_ms", "first token after"],
	["decode_ms", "decode"]];
const KINDS = "image/png,image/jpeg,image/webp,image/gif,image/bmp";

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
		const events = (text + (value ?? "")).split("\n\n");
		text = events.pop();
		for (const event of events) {
			const data = event.replace(/^data: ?/, "");
			if (data === "[DONE]") return;
			yield JSON.parse(data);
		}
		if (done) throw new Error("the answer broke off before its end");
	}
}

let abort, lastPicture;
let turns = [];  // what the model is sent again: {role, content}
let grids = [];
let pending = null;  // {file, bitmap} for the next question
let models = null;
let modelsProblem = "";
const log = el("div.chat-log", {role: "log", "aria-label": "Conversation", "aria-live": "polite"});
const empty = el("p.empty", "Ask the model something, with or without a picture, which may also be pasted or dropped here. " +
	"Under each answer: what it cost, and which experts the picture's patches chose.");
const modelBox = selectBox("Model", () => {});
const reason = el("p.note");
const status = el("p.warn", {role: "alert"});
const questionBox = el("textarea", {rows: 2, id: uniqueId("question"), placeholder: "How many objects are there?",
	onkeydown: (event) => key(event), onpaste: (event) => paste(event)});
const fileInput = el("input", {type: "file", accept: KINDS, id: uniqueId("file"), class: "hidden", tabindex: "-1",
		"aria-label": "Picture file",
	onchange: () => fileInput.files[0] && takeImage(fileInput.files[0])});
const preview = el("canvas.preview", {width: 96, height: 96, hidden: true, role: "img",
		"aria-label": "Picture of the next question"});
const remove = button("Remove picture", () => setImage(null));
const drawing = new Drawing((file) => {
	takeImage(file);
	toggleDrawing(false);
});
const drawButton = button("Draw …", () => toggleDrawing(drawing.element.hidden));
const send = el("button.strong", "Ask");
const stop = button("Stop", () => abort?.abort());
const fresh = button("New conversation", () => begin(), ".quiet");
const form = el("form.chat-form", {onsubmit: (event) => submit(event)},
	el("div.field.wide", el("label", {for: questionBox.id}, "Question"), questionBox),
	el("div.controls", button("Picture …", () => fileInput.click()), drawButton, preview, remove,
		el("span.grow"), modelBox.element, stop, send),
	fileInput, drawing.element, reason, status);
stop.hidden = remove.hidden = true;
toggleDrawing(false);
const heading = el("h2", {id: uniqueId("chat")}, "Chat");
export const element = el("section.panel.chat", {"aria-labelledby": heading.id}, el("div.panel-head", heading, fresh), empty,
		log, form);

export function update() {
	const isAlone = store.picture.role === "router" && store.picture.frontends.length === 0;
	const why = !store.isLive ? "A saved picture cannot answer."
		: isAlone ? "No frontend is connected; start one: conclave frontend --router HOST:PORT" : "";
	setText(reason, why || modelsProblem);
	send.disabled = why !== "" || abort !== undefined;
	if (models === null && why === "") fetchModels();
}

export function refreshColours() {
	for (const patches of grids) patches.draw();
}

// A picture that was dropped anywhere while this tab is open.
export async function takeImage(file) {
	try {
		pending = {file, bitmap: await createImageBitmap(file)};
		say("");
	} catch {
		say(`${file.name}: this browser cannot decode it`);
	}
	showImage();
}

async function fetchModels() {
	models = [];
	try {
		const answer = await ask("v1/models");
		models = answer.data.map((model) => model.id);
		modelBox.update(models.map((id) => [id, id]), models[0]);
		modelsProblem = "";
	} catch (error) {
		modelsProblem = `The list of models cannot be read: ${error.message}`;
		setTimeout(() => {
			models = null;
		}, 5000);
	}
}

function say(message) {
	setText(status, message && `▲ ${message}`);
}

function begin() {
	abort?.abort();
	turns = [];
	grids = [];
	log.replaceChildren();
	show(empty, true);
	setImage(null);
	questionBox.focus();
}

function setImage(image) {
	pending = image;
	fileInput.value = "";
	showImage();
}

function showImage() {
	show(preview, pending !== null);
	show(remove, pending !== null);
	if (pending) fit(preview, pending.bitmap);
}

function toggleDrawing(isShown) {
	show(drawing.element, isShown);
	drawButton.setAttribute("aria-expanded", isShown);
}

function paste(event) {
	const file = [...event.clipboardData.files].find((entry) => entry.type.startsWith("image/"));
	if (!file) return;
	event.preventDefault();
	takeImage(file);
}

function key(event) {
	if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
		event.preventDefault();
		if (!send.disabled) element.querySelector("form").requestSubmit();
	}
}

async function submit(event) {
	event.preventDefault();
	const question = questionBox.value.trim() || questionBox.placeholder;
	if (abort) return;
	const image = pending;
	const content = image ? [{type: "image_url", image_url: {url: await dataUri(image.file)}},
			{type: "text", text: question}] : question;
	if (image) lastPicture = image.bitmap;
	turns.push({role: "user", content});
	addTurn("You", question, image);
	setImage(null);
	questionBox.value = "";
	show(empty, false);
	const answer = addTurn(modelBox.select.value || "Model", "", null);
	await answerInto(answer);
}

async function answerInto(answer) {
	abort = new AbortController();
	send.disabled = true;
	show(stop, true);
	say("");
	try {
		await stream(answer);
	} catch (error) {
		const isStopped = error.name === "AbortError";
		setText(answer.foot, isStopped ? "Stopped." : `▲ ${error.message}`);
		// Neither question nor answer is said again.
		turns.pop();
	} finally {
		abort = undefined;
		show(stop, false);
		update();
	}
}

async function stream(answer) {
	const started = performance.now();
	const response = await request("v1/chat/completions", {signal: abort.signal, body: {
		model: modelBox.select.value, messages: turns, stream: true, stream_options: {include_usage: true}, temperature: 0, return_routed_experts: true,
		conclave: {return_gate_probabilities: true}}});
	const reply = {text: "", seconds: 0};
	for await (const chunk of chunksOf(response)) {
		if (chunk.error) throw new Error(chunk.error.message);
		const [first] = chunk.choices ?? [];
		reply.text += first?.delta?.content ?? "";
		if (first?.routed_experts) reply.gates = {routes: first.routed_experts, ...first.conclave};
		reply.usage = chunk.usage ?? reply.usage;
		reply.extension = chunk.conclave ?? reply.extension;
		setText(answer.text, reply.text);
	}
	reply.seconds = (performance.now() - started) / 1000;
	turns.push({role: "assistant", content: reply.text});
	setText(answer.foot, footText(reply));
	showPatches(answer, reply.gates);
}

function footText({usage, extension, seconds}) {
	const timings = extension?.timings ?? {};
	const parts = TIMINGS.filter(([name]) => timings[name] > 0)
		.map(([name, label]) => `${label} ${duration(timings[name] / 1000)}`);
	if (usage) {
		parts.unshift(`${plural(usage.prompt_tokens, "prompt row")} (${count(usage.prompt_tokens_details?.image_tokens ?? 0)} image, ` +
			`${count(usage.prompt_tokens_details?.cached_tokens ?? 0)} cached)`, plural(usage.completion_tokens, "token"));
		const between = timings.decode_ms / 1000 / (usage.completion_tokens - 1);
		if (usage.completion_tokens > 1 && between > 0) parts.push(`${fixed(1 / between, 0)} tokens /s`);
	}
	parts.push(`here after ${duration(seconds)}`);
	return parts.join(" · ");
}

function showPatches(answer, gates) {
	const rows = gates?.image_rows?.at(-1);  // of the last picture
	const grid = store.picture.model?.image;
	if (!rows || !lastPicture || !grid) return;
	try {
		if (rows[1] !== grid.rows * grid.columns) throw new Error(`${rows[1]} rows are no grid of ${grid.rows} × ${grid.columns}`);
		const patches = new Patches({picture: lastPicture, routes: decodeNpy(gates.routes), rows, grid, layers: store.layers,
			probabilities: gates.gate_probabilities ? decodeNpy(gates.gate_probabilities) : null,
					chosenLayer: view.pin?.layer});
		if (!patches.isComputed) {
			answer.element.append(el("p.note", "The prefix cache had the picture's rows: no expert was asked for them again."));
			return;
		}
		grids.push(patches);
		answer.element.append(patches.element);
	} catch (error) {
		answer.element.append(el("p.warn", `▲ The experts of the patches cannot be shown: ${error.message}`));
	}
}

function addTurn(who, text, image) {
	const parts = {text: el("p.turn-text", text), foot: el("p", {class: "note turn-foot"})};
	const thumb = image && el("canvas.thumb", {width: 144, height: 144, role: "img", "aria-label": "the picture asked about"});
	parts.element = el("article.turn", el("h3", who), thumb, parts.text, parts.foot);
	if (thumb) fit(thumb, image.bitmap);
	log.append(parts.element);
	return parts;
}

function fit(canvas, bitmap) {
	const pen = canvas.getContext("2d");
	const scale = Math.min(canvas.width / bitmap.width, canvas.height / bitmap.height);
	pen.clearRect(0, 0, canvas.width, canvas.height);
	const [width, height] = [bitmap.width * scale, bitmap.height * scale];
	pen.drawImage(bitmap, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
}
