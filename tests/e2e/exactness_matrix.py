"""Goal: the same request gives the same bits, wherever and beside whatever it is computed.

Method: the axes of target C6 in docs/design/data-plane.md: number of worker processes, channel, size of the batch, what
happens meanwhile; whether steps are divided into micro-batches; and the numeric mode, each compared with itself. A row of the matrix is one cluster that answers a batch
of requests at once; every answer's tokens and the bits of the log probabilities of the twenty most likely tokens at each
step must be those that one process gave to the same request alone. Rows cover every pair of values of two axes; --all is
the full product. Embedded rows (`conclave serve` with its experts split over workers in the process) belong to the matrix
too.

    exactness_matrix.py [--all] [--seed S] [--channels grpc,ucx-shm,ucx-tcp] [--dtype bf16,q8]
"""

import argparse
import contextlib
import http.client
import itertools
import json
import pathlib
import random
import re
import sys
import tempfile
import threading
import time

import cluster as clusters
import conclave_process as conclave

WORKERS = [1, 2, 4]
CHANNELS = {"grpc": (["--channel", "grpc"], {}), "ucx-shm": (["--channel", "ucx"], {}),
            "ucx-tcp": (["--channel", "ucx"], {"UCX_TLS": "tcp"})}
BATCHES = [1, 4, 16, 32]
EVENTS = ["nothing", "kill", "hedge", "re-place"]
MICRO_BATCHES = [1, 2]
DTYPES = ["bf16", "q8"]
TOKENS = 40
IMAGE = "four-large.jpg"


def covering(axes: list[list], seed: int) -> list[tuple]:
    """Rows in which every two values of two axes meet at least once; greedy, the same for the same seed."""
    rng = random.Random(seed)
    product = list(itertools.product(*axes))
    rng.shuffle(product)
    left = {(a, row[a], b, row[b]) for row in product for a, b in itertools.combinations(range(len(axes)), 2)}
    rows = []
    while left:
        def news(row):
            return sum((a, row[a], b, row[b]) in left for a, b in itertools.combinations(range(len(axes)), 2))
        best = max(product, key=news)
        rows.append(best)
        left -= {(a, best[a], b, best[b]) for a, b in itertools.combinations(range(len(axes)), 2)}
    return rows


def body_of(model: str, index: int) -> dict:
    """The index decides everything, so that the reference is asked for each only once."""
    text = f"Question {index}: what is number {index * 7 % 13} in the picture?"
    content = text if index % 3 == 2 else [
        {"type": "text", "text": f"{index}."}, conclave.image_part(conclave.data_uri(conclave.SAMPLES / IMAGE)),
        {"type": "text", "text": text}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": TOKENS,
            "ignore_eos": True, "logprobs": True, "top_logprobs": 20, "temperature": 0}
    return body if index % 4 else {**body, "temperature": 0.8, "seed": index}


def key_of(response: conclave.Response) -> str:
    if response.status != 200:
        raise AssertionError(repr(response))
    content = response.json()["choices"][0]["logprobs"]["content"]
    if len(content) != TOKENS:
        raise AssertionError(f"expected {TOKENS} tokens, found {len(content)}")
    return json.dumps([[token["token"], token["logprob"], [[top["token"], top["logprob"]] for top in token["top_logprobs"]]]
                       for token in content])


class Batch:
    """Requests at once, each on a thread."""

    def __init__(self, process, model: str, indices: list[int]):
        self.keys: dict[int, str] = {}
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(process, model, index), daemon=True)
                         for index in indices]
        for thread in self._threads:
            thread.start()

    def _ask(self, process, model: str, index: int):
        try:
            self.keys[index] = key_of(process.chat(body_of(model, index), timeout=120))
        except (OSError, AssertionError) as error:
            self.failures.append(f"request {index}: {error}")

    def wait(self):
        for thread in self._threads:
            thread.join(timeout=180)
            if thread.is_alive():
                self.failures.append("a request hangs")


def run_in_cluster(model_dir: pathlib.Path, workers: int, channel: str, size: int, event: str, parts: int,
                   dtype: str, indices: list[int]) -> tuple[Batch, dict]:
    args, env = CHANNELS[channel]
    more = {"env": env} if env else {}
    with clusters.Cluster(workers=workers, frontends=1, model=model_dir, args=[*args, "--dtype", dtype],
                          frontend_args=["--micro-batches", str(parts)], **more) as cluster:
        cluster.wait_for_replicas(min(workers, 2))
        # Hedges: now and then a call is late. The others: slow enough for the event to come in the middle.
        late = f"w.before_compute=sleep:40@prob=0.05,seed={size}" if event == "hedge" else "w.before_compute=sleep:4"
        for worker in cluster.workers.values():
            clusters.arm(worker, "" if event == "nothing" else late)
        batch = Batch(cluster.frontends[0], MODEL, indices)
        if event == "kill":
            if workers == 1:
                # Nobody else has its experts: another takes them over first.
                cluster.add_worker("second")
                cluster.wait_for_replicas(2)
            # Under load it may die before it has answered.
            with contextlib.suppress(OSError, http.client.HTTPException):
                clusters.arm(cluster.workers["w0"], "w.mid_compute=kill9")
        elif event == "re-place":
            cluster.add_worker("joined")
            drained = cluster.command("drain", "w0")
            if drained.returncode != 0 and workers > 1:
                batch.failures.append(f"drain: {drained.stderr}")
        batch.wait()
        page = conclave.http_request(cluster.frontends[0].ready["admin"], "GET", "/metrics").body.decode()
        counts = {line.split('"')[1]: float(line.split()[-1]) for line in page.splitlines()
                  if line.startswith("moe_dispatch_calls_total{")}
        divided = re.search(r'^conclave_steps_total\{[^}]*micro_batches="2"[^}]*\} (\d+)', page, re.MULTILINE)
        if (int(divided[1]) > 0) != (parts == 2):
            batch.failures.append(f"{divided[1]} steps were divided")
        return batch, counts


MODEL = "tiny"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--channels", default=",".join(CHANNELS))
    parser.add_argument("--dtype", default=",".join(DTYPES), help="numeric modes, each compared with itself")
    args = parser.parse_args()
    if not json.loads(conclave.run("version", "--json").stdout).get("failpoints"):
        print("skipped: this build has no failpoints, which make calls late")
        return 77
    channels = args.channels.split(",")
    dtypes = args.dtype.split(",")
    axes = [WORKERS, channels, BATCHES, EVENTS, MICRO_BATCHES, dtypes]
    rows = list(itertools.product(*axes)) if args.all else covering(axes, args.seed)
    embedded = (list(itertools.product(WORKERS, BATCHES, dtypes)) if args.all else
                [(1, 32, dtypes[0]), (2, 16, dtypes[-1]), (4, 4, dtypes[0])])
    rng = random.Random(args.seed)
    tokens, wrong, counts_of_event = 0, [], {}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="conclave-exact-") as folder:
        model_dir = pathlib.Path(folder) / MODEL
        made = conclave.run("synth", "--like", "tiny", str(model_dir))
        if made.returncode != 0:
            raise AssertionError(made.stderr)
        references = {}
        for dtype in dtypes:
            with conclave.Server("--threads", "1", "--dtype", dtype, model=model_dir) as server:
                references[dtype] = [key_of(server.chat(body_of(MODEL, index))) for index in range(max(BATCHES) + 8)]
        if len({tuple(reference) for reference in references.values()}) < len(dtypes):
            wrong.append("two modes give the same bits: one of them was not used")

        def judge(name: str, batch: Batch, size: int, dtype: str):
            nonlocal tokens
            known = len(wrong)
            reference = references[dtype]
            wrong.extend(f"{name}: {failure}" for failure in batch.failures)
            wrong.extend(f"{name}: request {index} has other tokens or logits\n  {key[:300]}\n  {reference[index][:300]}"
                         for index, key in batch.keys.items() if key != reference[index])
            tokens += TOKENS * len(batch.keys)
            if len(batch.keys) + len(batch.failures) < size:
                wrong.append(f"{name}: expected {size} answers, found {len(batch.keys)}")
            for line in wrong[known:]:
                print(f"WRONG {line}", flush=True)

        def some(size: int) -> list[int]:
            return rng.sample(range(max(BATCHES) + 8), size)

        for workers, size, dtype in embedded:
            with conclave.Server("--workers", str(workers), "--threads", "2", "--dtype", dtype, model=model_dir) as server:
                batch = Batch(server, MODEL, some(size))
                batch.wait()
            judge(f"embedded, {workers} workers, batch {size}, {dtype}", batch, size, dtype)
        for workers, channel, size, event, parts, dtype in rows:
            name = f"{workers} workers, {channel}, batch {size}, {event}, {parts} micro-batches, {dtype}"
            batch, counts = run_in_cluster(model_dir, workers, channel, size, event, parts, dtype, some(size))
            judge(name, batch, size, dtype)
            for what, count in counts.items():
                counts_of_event.setdefault(event, {}).setdefault(what, 0)
                counts_of_event[event][what] += int(count)
            print(f"  {name}: {counts}", flush=True)
    print(f"{len(rows)} clusters and {len(embedded)} single processes, {tokens} tokens, {len(wrong)} differences, "
          f"{time.monotonic() - begin:.0f} s")
    for event, counts in counts_of_event.items():
        print(f"  {event}: {counts}")
    # Events that did not happen would prove nothing.
    if counts_of_event.get("hedge", {}).get("hedge", 0) == 0 or counts_of_event.get("kill", {}).get("link_lost", 0) == 0:
        print("error: expected hedges and lost links in the rows that are made for them, found none")
        return 1
    if tokens < 10_000:
        print(f"error: expected at least 10000 tokens, found {tokens}")
        return 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
