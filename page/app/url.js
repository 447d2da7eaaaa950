// What the reader looks at, kept in the part of the address after '#', so that a link shows the same view.

export const TABS = ["load", "placement", "failover", "pathways", "chat"];

// name -> [default, allowed values or a test]
const FIELDS = {
	tab: ["load", TABS],
	modality: ["all", ["all", "image", "text"]],
	phase: ["both", ["both", "prefill", "decode"]],
	window: ["start", ["start", "60", "10"]],
	compare: ["off", ["off", "on"]],
	lanes: ["15", ["5", "15", "all"]],
	paths: ["16", ["8", "16", "32", "64"]],
};

export class View {
	constructor(onChange) {
		this.onChange = onChange;
		this.#read();
		addEventListener("hashchange", () => {
			if (this.#text() !== location.hash.slice(1)) {
				this.#read();
				onChange();
			}
		});
	}

	// set({tab: "load", pin: {layer, expert}})
	set(changes) {
		Object.assign(this, changes);
		this.#write();
		this.onChange();
	}

	toggleTable(name) {
		const tables = new Set(this.tables);
		if (!tables.delete(name)) tables.add(name);
		this.set({tables});
	}

	togglePin(layer, expert) {
		this.set({pin: this.isPinned(layer, expert) ? null : {layer, expert}});
	}

	isPinned(layer, expert) {
		return this.pin !== null && this.pin.layer === layer && this.pin.expert === expert;
	}

	#read() {
		const query = new URLSearchParams(location.hash.slice(1));
		for (const [name, [fallback, allowed]] of Object.entries(FIELDS)) {
			const value = query.get(name);
			this[name] = allowed.includes(value) ? value : fallback;
		}
		const pin = /^(\d+):(\d+)$/.exec(query.get("pin") ?? "");
		this.pin = pin && {layer: Number(pin[1]), expert: Number(pin[2])};
		this.at = number(query.get("at"));  // a moment of the history; null: live
		this.epoch = number(query.get("epoch"));  // an earlier placement; null: live
		this.rows = number(query.get("rows")) ?? 0;  // first row of layers that the placement shows
		this.tables = new Set((query.get("tables") ?? "").split(",").filter((name) => /^[a-z]+$/.test(name)));
	}

	#text() {
		const query = new URLSearchParams();
		for (const [name, [fallback]] of Object.entries(FIELDS)) if (this[name] !== fallback) query.set(name, this[name]);
		if (this.pin) query.set("pin", `${this.pin.layer}:${this.pin.expert}`);
		if (this.at !== null) query.set("at", String(Math.ceil(this.at)));
		if (this.epoch !== null) query.set("epoch", this.epoch);
		if (this.rows) query.set("rows", this.rows);
		if (this.tables.size) query.set("tables", [...this.tables].join(","));
		return query.toString();
	}

	#write() {
		// Not pushed: the back button leaves the page instead of walking through every click.
		history.replaceState(null, "", `#${this.#text()}`);
	}
}

function number(text) {
	return text !== null && /^\d{1,12}$/.test(text) ? Number(text) : null;
}
