"""What it costs to have the experts in another process: split against embedded, in turns on the same cores.

Embedded is `conclave serve`; split is a router, one worker and one frontend. Both stay loaded, only one is asked at a
time. For each number of threads (frontend and worker each have as many as embedded has, so the idle side must sleep)
every round asks one and then the other the same things: decode of so many streams at once, and a prompt alone. Printed
per case: tokens per second of each, the ratio split / embedded of every round as median and range, and the same for
processor time. Any answer that differs between the two is an error; no ratio is.

    build/release/conclave synth --like stablelm-1.6b-4e FOLDER
    CONCLAVE_BINARY=build/release/conclave .venv/bin/python bench/split.py --model FOLDER --repeat 5
"""

import argparse
import http.client
import json
import os
import pathlib
import random
import statistics
import sys
import threading
import time
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "e2e"))
import cluster as clusters  # noqa: E402
import conclave_process as conclave  # noqa: E402

WORDS = "the red car stands beside a small house and two people look at it from far away while rain falls".split()


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process, which a busy machine does not change much."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            pass  # ended meanwhile
    return total / 1e9


class Deployment:
    """One of the two, with all of its processes."""

    def __init__(self, name: str, processes: list, api: conclave.ApiProcess):
        self.name = name
        self.processes = processes
        self.api = api

    def cpu_seconds(self) -> float:
        return sum(cpu_seconds(process.process.pid) for process in self.processes)

    def close(self):
        for process in reversed(self.processes):
            process.kill()


def common(model: pathlib.Path, threads: int) -> list[str]:
    return ["--model", str(model), "--threads", str(threads), "--admin-listen", "127.0.0.1:0"]


def engine_flags(streams: int, length: int) -> list[str]:
    return ["--listen", "127.0.0.1:0", "--max-num-seqs", str(streams), "--max-model-len", str(length)]


def embedded(model: pathlib.Path, threads: int, engine: list[str]) -> Deployment:
    # Frames between threads are for tests; a debug build would have them on.
    server = conclave.ApiProcess("serve", *common(model, threads), *engine, "--inproc-frames", "off")
    return Deployment("embedded", [server], server)


def split(model: pathlib.Path, threads: int, engine: list[str], channel: str) -> Deployment:
    processes = [clusters.Router(model=model)]
    try:
        control = processes[0].control
        processes.append(conclave.Process("worker", "--router", control, "--name", "w0", "--listen", "127.0.0.1:0",
                                          "--channel", channel, *common(model, threads)))
        frontend = conclave.ApiProcess("frontend", "--router", control, *common(model, threads), *engine)
        processes.append(frontend)
        clusters.wait_until(lambda: frontend.request("GET", "/health/ready").status == 200, "every expert is served",
                            conclave.START_TIMEOUT_S)
    except BaseException:
        for process in processes:
            process.kill()
        raise
    return Deployment("split", processes, frontend)


class Stream(threading.Thread):
    """One streamed answer; `times` are those of its tokens, `text` its tokens' own bytes."""

    def __init__(self, api: str, body: dict):
        super().__init__(daemon=True)
        self.url = urllib.parse.urlsplit(api)
        # With the log probabilities, as a token that ends in half a character shows no text.
        self.body = {**body, "stream": True, "logprobs": True}
        self.times: list[float] = []
        self.tokens: list = []
        self.failure = ""

    def run(self):
        try:
            connection = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=600)
            connection.request("POST", "/v1/chat/completions", json.dumps(self.body),
                               {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise ValueError(f"{response.status} {response.read()[:300]!r}")
            for line in response:
                if not line.startswith(b"data: ") or line[6:].strip() == b"[DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise ValueError(str(event["error"]))
                logprobs = event["choices"][0]["logprobs"] if event["choices"] else None
                for token in logprobs["content"] if logprobs else []:
                    self.times.append(time.monotonic())
                    self.tokens.append((token["bytes"], token["logprob"]))
            connection.close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.failure = repr(error)


class Measure:
    """One case on one deployment: tokens per second, processor seconds per token, and what was answered."""

    def __init__(self, rate: float, cpu: float, answers: list):
        self.rate = rate
        self.cpu = cpu
        self.answers = answers


def decode(where: Deployment, bodies: list[dict], tokens: int) -> Measure:
    """Rate while all of the streams are being answered: from the last first token to the first last one; over all of
    the time where answers are so short that there is no such moment."""
    streams = [Stream(where.api.api, {**body, "max_tokens": tokens}) for body in bodies]
    before = where.cpu_seconds()
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join()
    cpu = where.cpu_seconds() - before
    for stream in streams:
        if stream.failure or len(stream.times) != tokens:
            raise AssertionError(f"{where.name}: {len(stream.times)} of {tokens} tokens; {stream.failure}")
    begin = max(stream.times[0] for stream in streams)
    end = min(stream.times[-1] for stream in streams)
    if end <= begin:
        begin = min(stream.times[0] for stream in streams)
        end = max(stream.times[-1] for stream in streams)
    counted = sum(begin < at <= end for stream in streams for at in stream.times)
    return Measure(counted / (end - begin), cpu / (tokens * len(streams)), [stream.tokens for stream in streams])


def prefill(where: Deployment, body: dict) -> Measure:
    before = where.cpu_seconds()
    start = time.monotonic()
    response = where.api.chat({**body, "max_tokens": 1, "logprobs": True}, timeout=600)
    seconds = time.monotonic() - start
    if response.status != 200:
        raise AssertionError(f"{where.name}: {response}")
    rows = response.json()["usage"]["prompt_tokens"]
    return Measure(rows / seconds, (where.cpu_seconds() - before) / rows, [clusters.answer_key(response)])


class Prompts:
    """Texts of wanted lengths, each with a start of its own, so that no part of one is kept from another."""

    def __init__(self, model: pathlib.Path, api: conclave.ApiProcess, seed: int):
        self.model = model
        self.api = api
        self.random = random.Random(seed)
        self.per_word = self._count(" ".join(WORDS * 8)) / (8 * len(WORDS))

    def _count(self, text: str) -> int:
        response = self.api.request("POST", "/tokenize", {"prompt": text})
        if response.status != 200:
            raise AssertionError(f"/tokenize: {response}")
        return response.json()["count"]

    def body(self, tokens: int) -> dict:
        text = " ".join(self.random.choices(WORDS, k=max(1, int(tokens / self.per_word))))
        return {"model": self.model.name, "messages": [conclave.user(text)], "temperature": 0, "ignore_eos": True}


def in_words(measures: dict[str, list[Measure]]) -> tuple[str, float]:
    plain, apart = measures["embedded"], measures["split"]
    rates = [b.rate / a.rate for a, b in zip(plain, apart)]
    cpus = [b.cpu / a.cpu for a, b in zip(plain, apart)]
    rate = statistics.median(rates)
    return (f"embedded {statistics.median(m.rate for m in plain):8.2f} t/s, split "
            f"{statistics.median(m.rate for m in apart):8.2f} t/s, ratio {rate:.3f} "
            f"({min(rates):.3f} to {max(rates):.3f}); processor time ratio {statistics.median(cpus):.3f} "
            f"({min(cpus):.3f} to {max(cpus):.3f})"), rate


def one_setting(args, threads: int, streams: list[int]) -> int:
    engine = engine_flags(max(streams), args.prompt + args.tokens + 256)
    cases = [("prefill", args.prompt), *(("decode", count) for count in streams)]
    measures = {case: {"embedded": [], "split": []} for case in cases}
    different = 0
    pair = [embedded(args.model, threads, engine)]
    try:
        pair.append(split(args.model, threads, engine, args.channel))
        prompts = Prompts(args.model, pair[0].api, args.seed)
        for round_at in range(args.warmup + args.repeat):
            for case in cases:
                kind, size = case
                bodies = [prompts.body(size if kind == "prefill" else 16) for _ in range(1 if kind == "prefill" else size)]
                # Who is first changes, so that a load that comes and goes meets both alike.
                order = pair if round_at % 2 == 0 else pair[::-1]
                of = {where.name: prefill(where, bodies[0]) if kind == "prefill" else decode(where, bodies, args.tokens)
                      for where in order}
                different += of["embedded"].answers != of["split"].answers
                if args.samples:
                    print(f"  round {round_at} {kind} {size}: " + "; ".join(
                        f"{name} {measure.rate:.2f} t/s, {measure.cpu * 1000:.2f} ms of processor a token"
                        for name, measure in sorted(of.items())), flush=True)
                if round_at >= args.warmup:
                    for name, measure in of.items():
                        measures[case][name].append(measure)
        for case in cases:
            kind, size = case
            what = f"prefill {size}" if kind == "prefill" else f"decode {size} stream" + ("s" if size > 1 else "")
            words, _ = in_words(measures[case])
            print(f"{threads}+{threads} threads against {threads}, {what}: {words}", flush=True)
    finally:
        for where in pair:
            where.close()
    return different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=conclave.MODEL)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1, help="rounds that are not counted")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8], help="with 1 thread: only the first")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill, about")
    parser.add_argument("--tokens", type=int, default=32, help="of each decoded answer")
    parser.add_argument("--channel", choices=["auto", "ucx", "grpc"], default="auto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", action="store_true", help="print every round as it ends")
    args = parser.parse_args()
    # Reading and packing a model of full size takes its time.
    conclave.START_TIMEOUT_S = 900
    print(f"{args.model.name}: {args.repeat} rounds, {args.tokens} tokens an answer, channel {args.channel}; load "
          f"average {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores", flush=True)
    different = 0
    for threads in args.threads:
        different += one_setting(args, threads, args.streams if threads > 1 else args.streams[:1])
    print(f"{different} rounds with different answers; load average {os.getloadavg()[0]:.1f}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
