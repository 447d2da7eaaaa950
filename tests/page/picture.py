"""A cluster that is made up: the JSON of docs/live.md, from a seed, with deltas, and a chat that answers with routed experts.

What a page should show is computed from `Picture.rows` and its fellows by tests/page/page_test.py.
"""

import base64
import copy
import json
import math
import random
import struct

BOUNDS = [0.0001 * 2**step for step in range(16)]
START = 1_764_520_000.0


class Picture:
    """The counters and states of one server. `tick()` moves on by a second and returns the delta."""

    def __init__(self, layers=((0, 4), (2, 4)), workers: int = 3, replicas: int = 2, seed: int = 1, top_k: int = 2,
                 traffic: bool = True, has_model: bool = True):
        self.random = random.Random(seed)
        self.layers = list(layers) if has_model else []
        self.units = sum(experts for _, experts in self.layers)
        self.top_k = top_k
        self.rows = [0] * (self.units * 8)
        self.weights = [0.0] * (self.units * 2)
        self.probabilities = [0.0] * self.units
        self.paths: dict[str, dict[tuple[int, ...], int]] = {"text": {}, "image": {}}
        self.seq = 0
        self.time = START + 900
        # Every gate likes some experts better, and others for images.
        self.likes = {modality: [[self.random.gammavariate(1.5, 1) for _ in range(experts)] for _, experts in self.layers]
                      for modality in (0, 1)}
        self.history_base = None
        self.history = {"step": 10, "times": [], "rows": [], "steps": []}
        experts = [[(unit + copy_) % workers for copy_ in range(min(replicas, workers))] for unit in range(self.units)] if workers else []
        self.state = {
            "schema": 1, "started": START, "role": "router", "version": "0.1.0",
            "model": {"name": "demo", "top_k": top_k, "dtype": "bf16", "image": {"rows": 6, "columns": 6},
                      "layers": [{"layer": layer, "experts": count} for layer, count in self.layers]} if has_model else None,
            "cluster": {"epoch": 1, "term": 1, "state": "serving", "blocked": "", "experts_served": self.units if workers else 0,
                        "experts_total": self.units, "replicas_wanted": 2, "replicas_lowest": min(replicas, workers),
                        "placed_at": START + 5, "imbalance_planned": 1.02, "imbalance_seen": 1.31, "plan": 0},
            "workers": [self._worker(index, experts) for index in range(workers)],
            "frontends": [{"id": 65536, "name": "f0", "epoch": 1, "is_reporting": True, "running": 2, "waiting": 0, "kv": 0.31,
                           "has_api": True}] if workers else [],
            "placement": {"epoch": 1, "experts": experts} if has_model and workers else None,
            "serving": {"prompt_text": 0, "prompt_image": 0, "cached": 0, "generated": 0, "images": 0, "image_hits": 0, "preemptions": 0,
                        "finished": {"stop": 0, "length": 0, "abort": 0, "error": 0}, "ttft": [0] * 17, "itl": [0] * 17,
                        "recovery": [0] * 17},
            "bounds": {name: BOUNDS for name in ("call_seconds", "ttft", "itl", "recovery")},
            "events": [], "incidents": [],
            "admin": {"is_enabled": True, "reason": ""},
        }
        for worker in self.state["workers"]:
            self.event("joined", worker["id"], f"{worker['name']} joined", at=START + 1)
            self.event("live", worker["id"], f"{worker['name']} serves its experts", at=START + 4)
        if workers:
            self.event("epoch", -1, "epoch 1: placed for the first time", at=START + 5, epoch=1, moves=len(experts))
        self.state["events"].sort(key=lambda event: event["time"])
        for number, event in enumerate(self.state["events"]):
            event["id"] = number
        self.traffic = traffic and workers > 0 and has_model
        if self.traffic:
            self.time = START
            for step in range(91):
                self._history_step()
                if step < 90:
                    self._serve(40)
                    self.time += 10

    def _worker(self, index: int, experts) -> dict:
        held = sum(index in holders for holders in experts)
        return {"id": index, "name": f"w{index}", "host": f"10.0.0.{index + 1}:7100", "state": "live", "experts": held, "loading": 0,
                "memory": 2 * max(1, held) * (24 << 20), "memory_used": held * (24 << 20), "busy": 0.3 + 0.15 * (index % 4), "queue": index % 3,
                "rows_per_second": 100.0 * (index + 1), "heartbeat_age_ms": 80, "is_distrusted": False, "calls": 0, "rows": 0,
                "rows_resent": 0, "hedges": 0, "timeouts": 0, "links_lost": 0, "bytes_out": 0, "bytes_in": 0, "bytes_least": 0,
                "call_seconds": [0] * 17}

    def event(self, kind: str, worker: int, text: str, at: float | None = None, **more):
        name = f"w{worker}" if worker >= 0 else ""
        entry = {"id": len(self.state["events"]), "time": self.time if at is None else at, "kind": kind, "worker": worker, "name": name,
                 "text": text, **more}
        self.state["events"].append(entry)
        return entry

    def _serve(self, rows: int):
        """So many rows of text and thrice as many of images go through all layers."""
        for modality, name, count in ((0, "text", rows), (1, "image", 3 * rows)):
            for _ in range(count):
                phase = int(modality == 0 and self.random.random() < 0.5)
                path, first = [], 0
                for index, (_, experts) in enumerate(self.layers):
                    likes = self.likes[modality][index]
                    if path and self.random.random() < 0.4:  # layers are not independent
                        likes = [like * (4 if expert == path[-1] % experts else 1) for expert, like in enumerate(likes)]
                    chosen = self.random.choices(range(experts), likes)[0]
                    second = (chosen + 1 + self.random.randrange(experts - 1)) % experts if experts > 1 else chosen
                    path.append(chosen)
                    for rank, expert in enumerate((chosen, second)[:self.top_k]):
                        unit = first + expert
                        self.rows[unit * 8 + rank * 4 + phase * 2 + modality] += 1
                        self.weights[unit * 2 + modality] += 0.6 if rank == 0 else 0.3
                    total = sum(likes)
                    for expert in range(experts):
                        self.probabilities[first + expert] += likes[expert] / total
                    first += experts
                key = tuple(path)
                self.paths[name][key] = self.paths[name].get(key, 0) + 1
        serving = self.state["serving"]
        serving["prompt_text"] += rows // 2
        serving["prompt_image"] += 3 * rows
        serving["generated"] += rows - rows // 2
        serving["images"] += max(1, rows // 12)
        serving["finished"]["stop"] += max(1, rows // 10)
        for name, low in (("ttft", 6), ("itl", 3)):
            for _ in range(rows):
                serving[name][min(16, low + self.random.choice((0, 1, 1, 2, 2, 3, 5)))] += 1
        for worker in self.state["workers"]:
            if worker["state"] != "live":
                continue
            worker["calls"] += rows
            worker["rows"] += 3 * rows
            for _ in range(rows):
                worker["call_seconds"][min(16, 2 + worker["id"] % 2 + self.random.choice((0, 0, 1, 1, 2, 3)))] += 1

    def _history_step(self):
        if self.history_base is None:
            self.history["rows"] = list(self.rows)
        else:
            self.history["steps"].append([number for index, (old, new) in enumerate(zip(self.history_base, self.rows)) if new > old
                                          for number in (index, new - old)])
        self.history["times"].append(self.time)
        self.history_base = list(self.rows)

    def pathways(self) -> dict | None:
        if not self.layers:
            return None
        answer = {"layers": [layer for layer, _ in self.layers]}
        for name, paths in self.paths.items():
            top = sorted(paths.items(), key=lambda entry: (-entry[1], entry[0]))[:64]
            answer[name] = {"rows": sum(paths.values()), "distinct": len(paths), "other": 0,
                            "top": [{"experts": list(experts), "rows": rows} for experts, rows in top]}
        return answer

    def snapshot(self) -> dict:
        return copy.deepcopy({**self.state, "seq": self.seq, "time": self.time, "rows": self.rows, "weights": self.weights,
                              "probabilities": self.probabilities, "pathways": self.pathways()})

    def tick(self, rows: int = 12, change=None) -> dict:
        """One second later. `change(picture)` may alter the state."""
        before = self.snapshot()
        self.seq += 1
        self.time += 1
        if self.traffic and rows:
            self._serve(rows)
        if change:
            change(self)
        return self.delta(before)

    def delta(self, before: dict) -> dict:
        now = self.snapshot()
        delta = {"seq": now["seq"], "time": now["time"]}
        for key in ("cluster", "frontends", "serving", "pathways", "placement", "model", "admin"):
            if now[key] != before[key]:
                delta[key] = now[key]
        old = {worker["id"]: worker for worker in before["workers"]}
        changed = [worker for worker in now["workers"] if old.pop(worker["id"], None) != worker]
        if changed:
            delta["workers"] = changed
        if old:
            delta["workers_gone"] = list(old)
        for key in ("rows", "weights", "probabilities"):
            pairs = [number for index, (was, value) in enumerate(zip(before[key], now[key])) if was != value for number in (index, value)]
            if pairs:
                delta[key] = pairs
        if len(now["events"]) > len(before["events"]):
            delta["events"] = now["events"][len(before["events"]):]
        incidents = [incident for incident in now["incidents"] if incident not in before["incidents"]]
        if incidents:
            delta["incidents"] = incidents
        return delta


def lose_worker(picture: Picture, index: int):
    """kill -9 of a worker, as the router tells it: suspicion, retries, death, a new epoch."""
    worker = picture.state["workers"][index]
    worker.update(state="dead", busy=0.0, queue=0, rows_resent=14, links_lost=1, heartbeat_age_ms=900)
    others = [other["id"] for other in picture.state["workers"] if other["state"] == "live"]
    time = picture.time
    picture.event("suspect", index, f"w{index} suspected: silent for 210 ms", at=time - 0.6)
    picture.event("resent", index, "14 rows of 6 calls went to other workers", at=time - 0.55, rows=14, calls=6, frontend="f0")
    picture.event("dead", index, f"w{index} is dead: its stream broke", at=time - 0.3)
    placement = picture.state["placement"]
    epoch = placement["epoch"] + 1
    for unit, holders in enumerate(placement["experts"]):
        if index in holders:
            kept = [holder for holder in holders if holder != index]
            placement["experts"][unit] = kept + [other for other in others if other not in kept][:1]
    for other in picture.state["workers"]:
        other["experts"] = sum(other["id"] in holders for holders in placement["experts"])
        other["memory_used"] = other["experts"] * (24 << 20)
    placement["epoch"] = epoch
    picture.state["cluster"].update(epoch=epoch, placed_at=time - 0.2)
    picture.event("epoch", -1, f"epoch {epoch}: without w{index}", at=time - 0.2, epoch=epoch, moves=5)
    recovery = [0] * 17
    recovery[6], recovery[7] = 4, 2
    picture.state["incidents"].append({
        "id": len(picture.state["incidents"]), "worker": index, "name": f"w{index}", "kind": "dead", "begin": time - 0.81,
        "detected_after": 0.21, "restored_after": None, "epoch_before": epoch - 1, "epoch_after": epoch, "rows_resent": 14,
        "calls_resent": 6, "requests_touched": 4, "requests_failed": 0, "recovery": recovery})


def npy(kind: str, shape: tuple[int, ...], values) -> str:
    """base64 of a NumPy file, as the frontend writes it."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(11 + len(header)) % 64) + "\n"
    body = struct.pack(f"<{math.prod(shape)}{'h' if kind == '<i2' else 'f'}", *values)
    return base64.b64encode(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body).decode()


def chat_events(picture: Picture, has_image: bool) -> list[dict]:
    """The chunks of a streamed answer: 6 x 6 patches from row 5 on, the first choice of patch p in layer l is (p + l) mod experts."""
    words = ["I see", " an orange star", " at the top left."] if has_image else ["There is", " nothing to see."]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "demo"}
    chunks = [{**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}]
    chunks += [{**head, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]} for word in words]
    patches = 36 if has_image else 0
    positions = 5 + patches + 8
    most = max(experts for _, experts in picture.layers)
    routes, probabilities = [], []
    for position in range(positions):
        for index, (_, experts) in enumerate(picture.layers):
            first = (position - 5 + index) % experts
            routes += [first, (first + 1) % experts][:picture.top_k]
            probabilities += [0.7 if expert == first else 0.3 / (experts - 1) if expert < experts else math.nan for expert in range(most)]
    end = {"index": 0, "delta": {}, "finish_reason": "stop",
           "routed_experts": npy("<i2", (positions, len(picture.layers), picture.top_k), routes)}
    chunks.append({**head, "choices": [end]})
    timings = {"image_ms": 3.2, "queue_ms": 0.1, "prefill_ms": 12.5, "decode_ms": 40.25, "first_token_ms": 16.0}
    chunks.append({**head, "choices": [], "usage": {
        "prompt_tokens": 5 + patches, "completion_tokens": 8, "total_tokens": 13 + patches,
        "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": patches}},
        "conclave": {"timings": timings, "numeric_mode": "bf16", "image_rows": [[5, patches]] if has_image else [],
                     "gate_probabilities": npy("<f4", (positions, len(picture.layers), most), probabilities)}})
    return chunks


def sse(event: str | None, value, number: int | None = None) -> bytes:
    lines = ([f"event: {event}"] if event else []) + ([f"id: {number}"] if number is not None else [])
    return "\n".join([*lines, "data: " + (value if isinstance(value, str) else json.dumps(value)), "", ""]).encode()
