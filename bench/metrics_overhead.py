"""What it costs to count everything: `conclave serve` with --metrics on against off, in turns on the same cores.

Both stay loaded and only one is asked at a time; who is first changes with every round. The one that counts is scraped as
well, once a second unless --scrape says otherwise. Printed per case: time per output token of each, the ratio on / off of
every round as median and range, and the same for processor time, which a busy machine does not change much. Any answer that
differs between the two is an error; no ratio is. The goal is a median below 1.01.

    CONCLAVE_BINARY=build/release/conclave .venv/bin/python bench/metrics_overhead.py --repeat 15
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import sys
import threading

import split

import conclave_process as conclave  # noqa: I001  split has put its folder on the path


def deployment(name: str, args, engine: list[str]) -> split.Deployment:
    server = conclave.ApiProcess("serve", *split.common(args.model, args.threads), *engine, "--workers", str(args.workers),
                                 "--inproc-frames", "off", "--metrics", name)
    return split.Deployment(name, [server], server)


@contextlib.contextmanager
def scraped(where: split.Deployment, every: float):
    """Asks for its page as a Prometheus does, until the end of the block."""
    is_over = threading.Event()
    failures = []

    def scrape():
        while not is_over.wait(every):
            status = conclave.http_request(where.api.ready["admin"], "GET", "/metrics").status
            if status != 200:
                failures.append(status)

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    if failures:
        raise AssertionError(f"scrapes failed: {failures}")


def in_words(on: list[split.Measure], off: list[split.Measure]) -> str:
    # Measures hold rates; a time per token is their inverse.
    times = [b.rate / a.rate for a, b in zip(on, off)]
    cpus = [a.cpu / b.cpu for a, b in zip(on, off)]
    ms_on, ms_off = (statistics.median(1000 / m.rate for m in measures) for measures in (on, off))
    return (f"{ms_on:.4f} ms a token with counting, {ms_off:.4f} without, ratio {statistics.median(times):.4f} "
            f"({min(times):.4f} to {max(times):.4f}); processor time ratio {statistics.median(cpus):.4f} "
            f"({min(cpus):.4f} to {max(cpus):.4f})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=conclave.MODEL)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2, help="rounds that are not counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="in-process workers: each row of the dispatcher's counts")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=200, help="of each answer")
    parser.add_argument("--scrape", type=float, default=1, help="seconds between two scrapes")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    conclave.START_TIMEOUT_S = 900
    print(f"{args.model.name}: {args.repeat} rounds, {args.tokens} tokens an answer, {args.threads} threads; load average "
          f"{os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores", flush=True)
    engine = split.engine_flags(max(args.streams), args.tokens + 256)
    measures = {streams: {"on": [], "off": []} for streams in args.streams}
    different = 0
    pair = [deployment("on", args, engine)]
    try:
        pair.append(deployment("off", args, engine))
        prompts = split.Prompts(args.model, pair[0].api, args.seed)
        with scraped(pair[0], args.scrape):
            for round_at in range(args.warmup + args.repeat):
                for streams in args.streams:
                    bodies = [prompts.body(16) for _ in range(streams)]
                    order = pair if round_at % 2 == 0 else pair[::-1]
                    of = {where.name: split.decode(where, bodies, args.tokens) for where in order}
                    different += of["on"].answers != of["off"].answers
                    if round_at >= args.warmup:
                        for name, measure in of.items():
                            measures[streams][name].append(measure)
        for streams, of in measures.items():
            print(f"decode {streams} stream{'s' if streams > 1 else ''}: {in_words(of['on'], of['off'])}", flush=True)
    finally:
        for where in pair:
            where.close()
    print(f"{different} rounds with different answers; load average {os.getloadavg()[0]:.1f}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
