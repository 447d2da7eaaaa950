"""How long a stream stands still when a worker of a cluster dies, hangs, leaves or comes, and whether anything else happens.

For each event and repetition: a router, three workers (every expert on two) and a frontend as processes; clients stream
long answers; meanwhile one worker gets SIGKILL or SIGSTOP, is drained by command, or a fourth one joins. "last replica" is
SIGKILL where most experts have one replica (of the demo model, whose size it knows); "nothing" shows what the machine does
by itself. The stall of a stream is the longest gap between two of its tokens within the 5 s after the event, less the 99th
percentile of the gaps before it. Also printed: that longest gap against the 99th percentile before, failed requests,
answers whose text differs from an undisturbed run's, and tokens per second in the 5 s after the event against the 5 s
before.

    CONCLAVE_BINARY=build/release/conclave .venv/bin/python bench/failover.py --repeat 10
"""

import argparse
import http.client
import json
import pathlib
import random
import signal
import sys
import threading
import time
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "e2e"))
import cluster as clusters  # noqa: E402
import conclave_process as conclave  # noqa: E402

LAST_REPLICA = "last replica"
# Of the demo model, 8 experts of 240 KiB: four of them, so that two of three workers can hold them all.
FEW_EXPERTS = ["--memory", "1000000B"]


def victim(cluster: clusters.Cluster) -> str:
    return random.choice(sorted(cluster.workers))


def kill(cluster: clusters.Cluster):
    cluster.workers[victim(cluster)].send_signal(signal.SIGKILL)


def drain(cluster: clusters.Cluster):
    drained = cluster.command("drain", victim(cluster))
    if drained.returncode != 0:
        raise AssertionError(f"cluster drain: {drained.stderr}")


EVENTS = {
    "nothing": lambda cluster: None,
    "kill -9": kill,
    "SIGSTOP": lambda cluster: cluster.workers[victim(cluster)].send_signal(signal.SIGSTOP),
    "drain": drain,
    "join": lambda cluster: cluster.add_worker("joiner"),
    LAST_REPLICA: kill,
}


class Stream(threading.Thread):
    """One streamed answer after the other until stopped; `gaps` are (time of the later token, gap in ms)."""

    def __init__(self, api: str, body: dict):
        super().__init__(daemon=True)
        self.url = urllib.parse.urlsplit(api)
        self.body = {**body, "stream": True}
        self.gaps: list[tuple[float, float]] = []
        self.texts: list[str] = []
        self.failures: list[str] = []
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.is_set():
            try:
                self.one()
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.failures.append(repr(error))

    def one(self):
        connection = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=60)
        connection.request("POST", "/v1/chat/completions", json.dumps(self.body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            self.failures.append(f"{response.status} {response.read()[:200]!r}")
            return
        last, text, is_whole = None, "", False
        for line in response:
            if not line.startswith(b"data: "):
                continue
            content = line[6:].strip()
            if content == b"[DONE]":
                is_whole = True
                break
            event = json.loads(content)
            if "error" in event:
                self.failures.append(str(event["error"]))
                return
            now = time.monotonic()
            piece = event["choices"][0]["delta"].get("content") if event["choices"] else None
            if piece:
                text += piece
                if last is not None:
                    self.gaps.append((now, (now - last) * 1000))
                last = now
        connection.close()
        if is_whole:
            self.texts.append(text)
        else:
            self.failures.append("the stream ended early")


def one_round(event: str, streams: int, model: pathlib.Path, expected: str, body: dict, seed: int) -> dict:
    random.seed(seed)
    replicas = 1 if event == LAST_REPLICA else 2
    with clusters.Cluster(workers=3, frontends=1, model=model, router_args=["--replicas", str(replicas)],
                          worker_args=FEW_EXPERTS if event == LAST_REPLICA else []) as cluster:
        cluster.wait_for_replicas(replicas)
        clients = [Stream(cluster.frontends[0].api, body) for _ in range(streams)]
        for client in clients:
            client.start()
        time.sleep(6 + random.random())
        moment = time.monotonic()
        EVENTS[event](cluster)
        time.sleep(6)
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join(timeout=60)
        stalls, ratios, before, after = [], [], 0, 0
        for client in clients:
            usual = clusters.percentile([gap for at, gap in client.gaps if moment - 5 <= at < moment], 0.99)
            worst = max((gap for at, gap in client.gaps if moment <= at < moment + 5), default=0.0)
            stalls.append(max(0.0, worst - usual))
            ratios.append(worst / usual if usual else 0.0)
            before += sum(moment - 5 <= at < moment for at, _ in client.gaps)
            after += sum(moment <= at < moment + 5 for at, _ in client.gaps)
        texts = [text for client in clients for text in client.texts]
        return {"stalls": stalls, "ratios": ratios,
                "failures": [f for client in clients for f in client.failures],
                "different": sum(text != expected for text in texts), "answers": len(texts),
                "rate": after / before if before else 0.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--model", type=pathlib.Path, default=conclave.MODEL)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--events", nargs="+", choices=list(EVENTS), default=list(EVENTS))
    args = parser.parse_args()
    body = {"model": args.model.name, "messages": [conclave.user("What is in the image?", "four-large.jpg")],
            "temperature": 0, "max_tokens": 300, "ignore_eos": True}
    with conclave.Server(model=args.model) as server:
        expected = server.chat(body).content
    bad = 0
    for name in args.events:
        rounds = [one_round(name, args.streams, args.model, expected, body, args.seed + r) for r in range(args.repeat)]
        stalls = [stall for one in rounds for stall in one["stalls"]]
        ratios = [ratio for one in rounds for ratio in one["ratios"]]
        failures = [failure for one in rounds for failure in one["failures"]]
        different = sum(one["different"] for one in rounds)
        bad += len(failures) + different
        print(f"{name}: {args.repeat} rounds, {args.streams} streams, "
              f"stall p50 {clusters.percentile(stalls, 0.5):.0f} ms, p99 {clusters.percentile(stalls, 0.99):.0f} ms, "
              f"max {max(stalls):.0f} ms, longest gap / p99 before: median {clusters.percentile(ratios, 0.5):.1f}, max "
              f"{max(ratios):.1f}; tokens per second after / before: median "
              f"{clusters.percentile([one['rate'] for one in rounds], 0.5):.2f}; {sum(one['answers'] for one in rounds)} answers, "
              f"{len(failures)} failed, {different} different", flush=True)
        for failure in failures[:5]:
            print(f"  {failure}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
