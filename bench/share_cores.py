"""How much two processes lose that share the same cores: `conclave bench` alone, twice at once, and beside a busy loop.

    python3 bench/share_cores.py --binary build/release/conclave --model DIR [--kind decode prefill] [--threads 2] [--rounds 3]

Each round runs one process alone, then two at once, then one beside a loop that keeps one core busy, and prints tokens per
second: of both together over one alone (goal 0.90), and beside the loop over alone (half of two cores is 0.75 at best). The median
and the range of the ratios over the rounds end it. With a packed folder (`conclave pack`) both processes map the same memory.
Rates are the medians of a process's own repeats; the two start together and have the same work, so their repeats overlap but for
the difference of their loading times. Nothing else should run: the load average is printed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys


def command(args, kind):
    return [args.binary, "bench", kind, "--model", args.model, "--threads", str(args.threads), "--repeat", str(args.repeat),
            "--bounds=false", "--json", "--log-level", "error"] + (["--dtype", args.dtype] if args.dtype else [])


def start(args, kind):
    return subprocess.Popen(command(args, kind), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rate(process):
    """Tokens per second of the bench's first case, the median of its repeats."""
    out, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(f"share_cores: {' '.join(process.args)} ended with {process.returncode}: {errors.strip()}")
    return json.loads(out)["cases"][0]["tokens_per_second"]["median"]


def round_of(args, kind):
    alone = rate(start(args, kind))
    pair = [start(args, kind), start(args, kind)]
    both = sum(rate(process) for process in pair)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        beside = rate(start(args, kind))
    finally:
        busy.kill()
        busy.wait()
    return alone, both, beside


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="conclave of a release build")
    parser.add_argument("--model", required=True, help="model folder; a packed one lets both share its memory")
    parser.add_argument("--kind", nargs="+", default=["decode", "prefill"], choices=["decode", "prefill"])
    parser.add_argument("--dtype", default="", help="as conclave's; the model's own when absent")
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--repeat", type=int, default=5, help="repeats inside a process")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}, {args.threads} threads per process")
    for kind in args.kind:
        two, beside = [], []
        for number in range(args.rounds):
            alone, both, with_loop = round_of(args, kind)
            two.append(both / alone)
            beside.append(with_loop / alone)
            print(f"{kind} round {number + 1}: alone {alone:.2f} tokens/s, two together {both:.2f}, beside a loop {with_loop:.2f}",
                  flush=True)
        print(f"{kind}: two processes / one {spread(two)}; beside a busy loop / alone {spread(beside)}")


if __name__ == "__main__":
    main()
