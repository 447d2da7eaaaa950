// What would happen if …: drain, kill, replicate, rebalance. Each shows its plan first and asks once. The admin key stays in the
// field: it is sent with the one request that needs it and kept nowhere.

import {button, el, selectBox, setText, show, uniqueId} from "./dom.js";
import {spreadOf, workerLoadsOf} from "./figures.js";
import {bytes, count, expertName, fixed, plural} from "./format.js";
import {store, view, selection} from "./state.js";

async function ask(method, path, body, key) {
  const headers = key ? {Authorization: `Bearer ${key}`} : {};
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {method, headers, body: body && JSON.stringify(body)});
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error?.message ?? `the server answered ${response.status}`);
  return answer;
}

export class WhatIf {
  constructor() {
    this.plan = null;
    this.worker = selectBox("Worker", () => this.#forget());
    this.expert = selectBox("Expert", () => this.#forget());
    this.layer = selectBox("Layer", () => this.#forget());
    this.replicas = el("input", {type: "number", min: 1, max: 99, value: 2, id: uniqueId("replicas"), oninput: () => this.#forget()});
    this.key = el("input", {type: "password", id: uniqueId("key"), autocomplete: "off", spellcheck: "false",
      oninput: () => this.update()});
    this.reason = el("p.note");
    this.output = el("div.plan", {role: "status"});
    this.reading = [button("Safe to kill?", () => this.#killSafe()), button("Rebalance …", () => this.#rebalance())];
    this.changing = [button("Drain …", () => this.#drain()), button("Undrain …", () => this.#undrain()),
      button("Replicate …", () => this.#replicate())];
    const [kill, rebalance] = this.reading;
    const [drain, undrain, replicate] = this.changing;
    const heading = el("h2", {id: uniqueId("whatif")}, "What if …");
    this.element = el("section", {class: "panel whatif", "aria-labelledby": heading.id}, heading,
      el("p.note", "Every button shows its plan first; nothing happens before you confirm it."),
      el("div.whatif-row", this.worker.element, kill, drain, undrain),
      el("div.whatif-row", this.layer.element, this.expert.element,
        el("div.field", el("label", {for: this.replicas.id}, "Replicas"), this.replicas), replicate),
      el("div.whatif-row", rebalance),
      el("div.whatif-row", el("div", {class: "field wide"}, el("label", {for: this.key.id}, "Admin key"), this.key)),
      this.reason, this.output);
  }

  update() {
    const here = [...store.workers.values()].filter((worker) => !["dead", "left"].includes(worker.state));
    const names = here.map((worker) => [worker.name, `${worker.name} (${worker.state})`]);
    this.worker.update(names, names.some(([name]) => name === this.worker.select.value) ? this.worker.select.value : names[0]?.[0]);
    this.#chooseExpert();
    const why = this.#whyNot();
    for (const button of this.changing) button.disabled = why.change !== null || here.length === 0;
    for (const button of this.reading) button.disabled = why.read !== null;
    this.reading[0].disabled ||= here.length === 0;
    this.key.disabled = why.change !== null;
    setText(this.reason, why.change ?? (this.key.value === "" ? "To carry out a plan, type the admin key. It is kept in this field only." : ""));
    if (this.confirm) this.confirm.disabled = why.change !== null || this.key.value === "";
  }

  // The pinned expert is the first choice.
  #chooseExpert() {
    const pin = view.pin && store.unitOf(view.pin.layer, view.pin.expert) >= 0 ? view.pin : null;
    const pinKey = pin ? `${pin.layer}:${pin.expert}` : "";
    if (pin && this.pinKey !== pinKey) {
      this.chosenLayer = pin.layer;
      this.chosenExpert = pin.expert;
    } else {
      this.chosenLayer = Number(this.layer.select.value || store.layers[0]?.layer);
      this.chosenExpert = Number(this.expert.select.value || 0);
    }
    this.pinKey = pinKey;
    this.layer.update(store.layers.map(({layer}) => [String(layer), `L${layer}`]), this.chosenLayer);
    const experts = store.layerOf(this.chosenLayer)?.experts ?? 0;
    this.expert.update(Array.from({length: experts}, (_, expert) => [String(expert), String(expert)]),
      Math.min(this.chosenExpert, Math.max(0, experts - 1)));
  }

  #whyNot() {
    if (!store.isLive) return {read: "saved", change: "Nothing can be asked of a saved picture."};
    const {admin} = store.picture;
    return {read: null, change: admin.is_enabled ? null : `Changes are off: ${admin.reason || "the server does not allow them"}.`};
  }

  #forget() {
    this.confirm = null;
    this.output.replaceChildren();
  }

  // lines: what the plan says; `act`: what confirming does, or null when there is nothing to confirm.
  #propose(title, lines, label, act) {
    this.confirm = act && button(label, () => this.#carryOut(title, act), ".strong");
    this.output.replaceChildren(el("h3", title), el("ul", lines.map((line) => el("li", line))),
      el("div.controls", this.confirm, button(act ? "Leave it" : "Close", () => this.#forget())));
    this.update();
  }

  async #carryOut(title, act) {
    this.confirm.disabled = true;
    try {
      const done = await act();
      this.confirm = null;
      this.output.replaceChildren(el("p.done", `${title}: ${done}`));
    } catch (error) {
      this.#fail(error);
    }
  }

  #fail(error) {
    this.confirm = null;
    this.output.replaceChildren(el("p.warn", `▲ Not done: ${error.message}`));
  }

  async #try(work) {
    try {
      await work();
    } catch (error) {
      this.#fail(error);
    }
  }

  #send(path, body) {
    return ask("POST", path, body, this.key.value);
  }

  // Rows per worker, max ÷ mean, with `placement` instead of the present one.
  #imbalance(placement) {
    const ids = [...store.workers.values()].filter((worker) => ["live", "suspect"].includes(worker.state)).map((worker) => worker.id)
      .filter((id) => id !== placement.without);
    return spreadOf([...workerLoadsOf(selection.loads("all", "both"), placement.experts, ids).values()]);
  }

  #placement() {
    return store.picture.placement ?? {experts: []};
  }

  #riskLines(name, answer) {
    if (answer.is_safe) return [`Every expert stays served without ${name}.`];
    const named = answer.at_risk.slice(0, 8).map(([layer, expert]) => expertName(layer, expert)).join(", ");
    const more = answer.at_risk.length > 8 ? ` and ${answer.at_risk.length - 8} more` : "";
    return [`Not safe: ${plural(answer.at_risk.length, "expert")} would have no replica: ${named}${more}.`];
  }

  #killSafe() {
    const name = this.worker.select.value;
    return this.#try(async () => {
      const answer = await ask("GET", `moe/kill-safe?worker=${encodeURIComponent(name)}`);
      this.#propose(`If ${name} died now`, this.#riskLines(name, answer), "", null);
    });
  }

  #drain() {
    const name = this.worker.select.value;
    const worker = [...store.workers.values()].find((entry) => entry.name === name);
    return this.#try(async () => {
      const answer = await ask("GET", `moe/kill-safe?worker=${encodeURIComponent(name)}`);
      const present = this.#placement();
      const without = {experts: present.experts.map((holders) => holders.filter((id) => id !== worker.id)), without: worker.id};
      const bytesEach = worker.experts > 0 ? worker.memory_used / worker.experts : 0;
      const lines = [
        `${plural(worker.experts, "replica")} leave ${name}; ${answer.is_safe ? "none" : count(answer.at_risk.length)} of them ` +
          `must be loaded elsewhere first${answer.is_safe ? "" : `, about ${bytes(bytesEach * answer.at_risk.length)}`}.`,
        `Rows per worker, max ÷ mean: ${fixed(this.#imbalance(present))} now, ${fixed(this.#imbalance(without))} if the other replicas ` +
          "share its rows evenly.", ...this.#riskLines(name, answer)];
      this.#propose(`Drain ${name}`, lines, `Drain ${name}`, async () =>
        (await this.#send("moe/drain", {worker: name})).is_drained ? "it is drained." : "it finishes what is in flight.");
    });
  }

  #undrain() {
    const name = this.worker.select.value;
    this.#propose(`Undrain ${name}`, [`${name} takes calls again, and the planner may place replicas on it.`], `Undrain ${name}`,
      async () => (await this.#send("moe/undrain", {worker: name})).is_drained ? "it is still drained." : "it takes part again.");
  }

  #replicate() {
    const layer = Number(this.layer.select.value);
    const expert = Number(this.expert.select.value);
    const replicas = Number(this.replicas.value);
    const unit = store.unitOf(layer, expert);
    const holders = this.#placement().experts[unit] ?? [];
    const name = expertName(layer, expert);
    if (!Number.isInteger(replicas) || replicas < 1) {
      this.#fail(new Error("replicas: expected a whole number from 1 up"));
      return;
    }
    const moves = Math.max(0, replicas - holders.length);
    const sample = [...store.workers.values()].find((worker) => worker.experts > 0);
    const each = sample ? sample.memory_used / sample.experts : 0;
    const lines = [`${plural(holders.length, "replica")} now (${holders.map((id) => store.workerName(id)).join(", ") || "nobody"}), ${count(replicas)} wanted: ` +
      `${plural(moves, "load")}${moves ? `, about ${bytes(moves * each)}` : ""}.`, this.#replicateForecast(unit, holders, replicas)];
    this.#propose(`Replicate ${name}`, lines, `Keep ${plural(replicas, "replica")}`, async () =>
      `epoch ${(await this.#send("moe/replicate", {layer, expert, replicas})).epoch}.`);
  }

  // New replicas go to the least loaded workers, surplus ones leave the most loaded; the planner may choose otherwise.
  #replicateForecast(unit, holders, replicas) {
    const present = this.#placement();
    const ids = [...store.workers.values()].filter((worker) => worker.state === "live").map((worker) => worker.id);
    const loads = workerLoadsOf(selection.loads("all", "both"), present.experts, ids);
    const others = ids.filter((id) => !holders.includes(id)).sort((a, b) => loads.get(a) - loads.get(b));
    const kept = [...holders].sort((a, b) => (loads.get(a) ?? 0) - (loads.get(b) ?? 0)).slice(0, replicas);
    const experts = [...present.experts];
    experts[unit] = [...kept, ...others.slice(0, Math.max(0, replicas - kept.length))];
    return `Rows per worker, max ÷ mean: ${fixed(this.#imbalance(present))} now, about ${fixed(this.#imbalance({experts}))} after.`;
  }

  #rebalance() {
    return this.#try(async () => {
      const plan = await ask("POST", "moe/rebalance", {dry_run: true, full: false});
      const nameOf = (id) => (id >= 0 ? store.workerName(id) : "a file");
      const lines = [`${plural(plan.moves.length, "move")}, ${bytes(plan.bytes)}.`,
        `Imbalance ${fixed(plan.imbalance_before)} before, ${fixed(plan.imbalance_after)} after, as the planner predicts.`,
        ...plan.moves.slice(0, 8).map((move) => `${expertName(move.layer, move.expert)}: ${nameOf(move.from)} → ${nameOf(move.to)}`)];
      if (plan.moves.length > 8) lines.push(`and ${plan.moves.length - 8} more`);
      const act = plan.moves.length === 0 ? null : async () =>
        `${plural((await this.#send("moe/rebalance", {dry_run: false, full: false})).moves.length, "move")} begun.`;
      this.#propose("Rebalance", lines, "Rebalance", act);
    });
  }
}
