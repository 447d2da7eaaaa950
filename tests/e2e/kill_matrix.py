"""Goal: whatever a worker is doing for a call when it dies, hangs or loses its link, no request fails and no token changes.

Method: the kill matrix of docs/design/failure-model.md section 2.2. A cell is one of nine points of a worker's life with a
call, one of three MoE layers, one of five moments of a request and one of four faults. A running cluster of three workers
(every expert on two) answers one request per cell, while a failpoint strikes one worker exactly once; the tokens and the
bits of their log probabilities must be those of one undisturbed process. Afterwards the worker is replaced or goes on, and
the cluster must come back to two replicas of everything.

    kill_matrix.py [--cells N] [--all] [--seed S]      60 cells spread over the matrix by the seed; --all: all 540

A stall is the longest gap between two tokens (before the first: since the request) less that of an undisturbed request of
the same kind on the same cluster; the pause in which a decode cell is armed does not count.
"""

import argparse
import dataclasses
import http.client
import itertools
import json
import pathlib
import random
import re
import signal
import sys
import tempfile
import time
import urllib.parse

import cluster as clusters
import conclave_process as conclave

POINTS = ["w.accept", "w.hdr_read", "w.payload_partial", "w.payload_done", "w.before_compute", "w.mid_compute",
          "w.after_compute", "w.reply_partial", "w.after_reply"]
LAYERS = [0, 4, 6]  # first, middle and last MoE layer of the synthesised model
MOMENTS = ["image prefill", "text prefill", "first decode step", "middle step", "last step"]
FAULTS = ["kill9", "stop", "rst", "drop"]
TOKENS = 24
# Tokens that the client has when the call that the fault strikes is made.
TOKENS_BEFORE = {"first decode step": 1, "middle step": TOKENS // 2, "last step": TOKENS - 1}
# The frontend stands still for so long, so that the worker is armed before the step begins.
PAUSE_MS = 200
VICTIMS = ["w0", "w1", "w2"]


@dataclasses.dataclass(frozen=True)
class Cell:
    point: str
    layer: int
    moment: str
    fault: str

    def __str__(self):
        return f"{self.fault} at {self.point}, layer {self.layer}, {self.moment}"


@dataclasses.dataclass
class Answer:
    key: str  # tokens with the figures of their logits
    times: list[float]  # when each came, the request's start first


def spread(cells: list[Cell], count: int, seed: int) -> list[Cell]:
    """So many cells, every point, fault, moment and layer as often as the others, or nearly."""
    rng = random.Random(seed)
    order = list(cells)
    rng.shuffle(order)
    uses: dict[tuple, int] = {}
    chosen = []
    for _ in range(min(count, len(order))):
        def crowding(cell: Cell):
            pairs = itertools.combinations([cell.point, cell.layer, cell.moment, cell.fault], 2)
            singles = [cell.point, cell.layer, cell.moment, cell.fault]
            return (max(uses.get((single,), 0) for single in singles[:1] + singles[3:]),
                    sum(uses.get((single,), 0) for single in singles), sum(uses.get(pair, 0) for pair in pairs))
        best = min(order, key=crowding)
        order.remove(best)
        chosen.append(best)
        features = [best.point, best.layer, best.moment, best.fault]
        for key in [*((single,) for single in features), *itertools.combinations(features, 2)]:
            uses[key] = uses.get(key, 0) + 1
    return chosen


def body_of(model: str, words: str, has_image: bool) -> dict:
    """A request whose prompt begins with `words`, so that no earlier one's prefix is found in the KV cache."""
    text = {"type": "text", "text": f"{words}. What is in the image?"}
    parts = [{"type": "text", "text": words}, conclave.image_part(conclave.data_uri(conclave.SAMPLES / IMAGE)), text]
    return {"model": model, "messages": [{"role": "user", "content": parts if has_image else text["text"]}],
            "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, "logprobs": True, "top_logprobs": 2}


IMAGE = "four-large.jpg"


def ask(process, body: dict, on_token=None) -> Answer:
    """Streams the answer; `on_token` is told how many tokens have come."""
    url = urllib.parse.urlsplit(process.api)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    times, tokens, is_whole = [time.monotonic()], [], False
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": True}),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise AssertionError(f"{response.status}: {response.read()[:300]!r}")
        for line in response:
            if not line.startswith(b"data: "):
                continue
            content = line[6:].strip()
            if content == b"[DONE]":
                is_whole = True
                break
            event = json.loads(content)
            if "error" in event:
                raise AssertionError(f"the stream failed: {event['error']}")
            for choice in event["choices"]:
                for token in (choice.get("logprobs") or {}).get("content") or []:
                    tokens.append([token["token"], token["logprob"], [top["logprob"] for top in token["top_logprobs"]]])
                    times.append(time.monotonic())
                    if on_token is not None:
                        on_token(len(tokens))
    finally:
        connection.close()
    if not is_whole or len(tokens) != TOKENS:
        raise AssertionError(f"expected {TOKENS} tokens and the end of the stream, found {len(tokens)}")
    return Answer(json.dumps(tokens), times)


def gaps_ms(answer: Answer) -> list[float]:
    return [(later - earlier) * 1000 for earlier, later in zip(answer.times, answer.times[1:])]


def is_stopped(process) -> bool:
    stat = pathlib.Path(f"/proc/{process.process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


class Matrix:
    def __init__(self, cluster: clusters.Cluster, reference: conclave.Server, model: str, seed: int):
        self.cluster = cluster
        self.frontend = cluster.frontends[0]
        self.reference = reference
        self.model = model
        self.rng = random.Random(seed)
        self.usual: dict[str, list[float]] = {}
        self.links_before = 0
        self.num_requests = 0

    def words(self) -> str:
        self.num_requests += 1
        return f"{self.rng.choice(['red', 'blue', 'grey'])} {self.num_requests}"

    def is_whole(self) -> bool:
        page = conclave.http_request(self.frontend.ready["admin"], "GET", "/metrics").body.decode()
        links = [line.split()[1] for line in page.splitlines() if line.startswith("moe_cluster_links ")]
        if not links or float(links[0]) != 3:
            return False
        status = self.cluster.command("status", "--json")  # may find the router too busy, on a busy machine
        return status.returncode == 0 and json.loads(status.stdout)["replication_lowest"] >= 2

    def links_made(self, victim_name: str) -> int:
        """How often the frontend has got a link to the worker."""
        return len(re.findall(rf"link up worker={victim_name}\b", self.frontend.log()))

    def learn_usual(self):
        """The worst gap of a few undisturbed requests of both kinds, at the first token and after it."""
        for kind, has_image in [("image", True), ("text", False)]:
            answers = [ask(self.frontend, body_of(self.model, self.words(), has_image)) for _ in range(4)]
            self.usual[kind + " first"] = [gaps_ms(answer)[0] for answer in answers]
            self.usual[kind + " next"] = [gap for answer in answers for gap in gaps_ms(answer)[1:]]

    def stall_ms(self, cell: Cell, answer: Answer) -> float:
        kind = "text" if cell.moment == "text prefill" else "image"
        gaps = gaps_ms(answer)
        if cell.moment in TOKENS_BEFORE:
            gaps[TOKENS_BEFORE[cell.moment]] -= PAUSE_MS
        return max(0.0, gaps[0] - max(self.usual[kind + " first"]), max(gaps[1:]) - max(self.usual[kind + " next"]))

    def strike(self, cell: Cell, victim_name: str) -> tuple[bool, float]:
        """One request; whether the fault struck, and the stall. Raises AssertionError for a wrong or no answer."""
        victim = self.cluster.workers[victim_name]
        self.links_before = self.links_made(victim_name)
        body = body_of(self.model, self.words(), has_image=cell.moment != "text prefill")
        expected = ask(self.reference, body).key
        phase = "decode" if cell.moment in TOKENS_BEFORE else "prefill"
        setting = f"{cell.point}={cell.fault}@layer={cell.layer},phase={phase},hit=1"
        is_late = False
        if phase == "prefill":
            clusters.arm(victim, setting)
            answer = ask(self.frontend, body)
        else:
            before = TOKENS_BEFORE[cell.moment]
            clusters.arm(self.frontend, f"f.sampled=sleep:{PAUSE_MS}@step={before}")

            def on_token(count: int):
                nonlocal is_late
                if count == before:
                    begin = time.monotonic()
                    clusters.arm(victim, setting)
                    is_late = time.monotonic() - begin > PAUSE_MS / 1000 * 0.75
            answer = ask(self.frontend, body, on_token)
            clusters.arm(self.frontend, "")
        has_struck = self.has_struck(cell, victim) and not is_late
        if answer.key != expected:
            raise AssertionError(f"other tokens or log probabilities than undisturbed:\n{answer.key}\n{expected}")
        return has_struck, self.stall_ms(cell, answer)

    def has_struck(self, cell: Cell, victim) -> bool:
        # Of the answer's end the fault may still be on its way, when it follows the reply.
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            if cell.fault == "kill9" and victim.process.poll() is not None:
                return True
            if cell.fault == "stop" and is_stopped(victim):
                return True
            if cell.fault in ("rst", "drop"):
                report = conclave.http_request(victim.ready["admin"], "GET", "/debug/failpoints").body.decode()
                if report == f"{cell.point} 1\n":
                    return True
            time.sleep(0.01)
        return False

    def mend(self, cell: Cell, victim_name: str, has_struck: bool):
        """Until no trace of the fault is left: the next one must find two good replicas of everything."""
        victim = self.cluster.workers[victim_name]
        if victim.process.poll() is not None:
            self.cluster.add_worker(victim_name)
        else:
            victim.send_signal(signal.SIGCONT)
            clusters.arm(victim, "")
        if has_struck and cell.fault in ("rst", "drop"):
            def is_replaced() -> bool:
                # Over ucx an idle frontend asks nobody for a sign of life; a busy one does.
                ask(self.frontend, body_of(self.model, self.words(), has_image=False))
                return self.links_made(victim_name) > self.links_before

            clusters.wait_until(is_replaced, "a new link", 60)
        clusters.wait_until(self.is_whole, "all links and two replicas of every expert are back", 60)

    def run(self, cell: Cell) -> float | None:
        """The stall in ms; None when no worker got the call that was to be struck."""
        victims = self.rng.sample(VICTIMS, len(VICTIMS))
        for victim in victims:
            has_struck = False
            try:
                has_struck, stall = self.strike(cell, victim)
            finally:
                clusters.arm(self.frontend, "")
                self.mend(cell, victim, has_struck)
            if has_struck:
                return stall
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=60)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--verbose", action="store_true", help="a line per cell")
    args = parser.parse_args()
    if not json.loads(conclave.run("version", "--json").stdout).get("failpoints"):
        print("skipped: this build has no failpoints")
        return 77
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 31)
    cells = [Cell(*parts) for parts in itertools.product(POINTS, LAYERS, MOMENTS, FAULTS)]
    chosen = cells if args.all else spread(cells, args.cells, seed)
    print(f"kill matrix: {len(chosen)} of {len(cells)} cells, seed {seed}", flush=True)

    failed: list[str] = []
    missed: list[Cell] = []
    stalls: dict[str, list[float]] = {fault: [] for fault in FAULTS}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="conclave-matrix-") as folder:
        model = pathlib.Path(folder) / "tiny"
        made = conclave.run("synth", "--like", "tiny", str(model))
        if made.returncode != 0:
            raise AssertionError(made.stderr)
        with conclave.Server("--threads", "1", model=model) as reference, \
                clusters.Cluster(workers=3, frontends=1, model=model) as cluster:
            cluster.wait_for_replicas(2)
            matrix = Matrix(cluster, reference, reference_name(reference), seed)
            matrix.learn_usual()
            for cell in chosen:
                try:
                    stall = matrix.run(cell)
                except (AssertionError, OSError, ValueError, http.client.HTTPException) as error:
                    failed.append(f"{cell}: {error}")
                    print(f"FAILED {failed[-1]}\n{cluster.logs()}", flush=True)
                    continue
                if stall is None:
                    missed.append(cell)
                else:
                    stalls[cell.fault].append(stall)
                if args.verbose:
                    print(f"  {cell}: {'not reached' if stall is None else f'{stall:.0f} ms'}", flush=True)
    print(f"{time.monotonic() - begin:.0f} s; {len(failed)} failed, {len(missed)} not reached")
    for fault, values in stalls.items():
        if values:
            print(f"  {fault:<6} {len(values):>3} cells  stall p50 {clusters.percentile(values, 0.5):.0f} ms, "
                  f"p99 {clusters.percentile(values, 0.99):.0f} ms, max {max(values):.0f} ms")
    for cell in missed:
        print(f"  not reached: {cell}")
    # A cell that nobody reached proves nothing; a few are a matter of which worker the calls prefer.
    return 1 if failed or len(missed) > len(chosen) // 20 else 0


def reference_name(server) -> str:
    return server.request("GET", "/v1/models").json()["data"][0]["id"]


if __name__ == "__main__":
    sys.exit(main())
