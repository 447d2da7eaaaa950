"""conclave against a peer's llama-bench (llama.cpp or ik_llama.cpp), in turns on the same cores.

Every round asks one and then the other the same case, and who is first changes from round to round: a machine that is
shared changes in minutes, so only figures of one round can be compared. Printed per case: tokens per second of each as
median, and the ratio conclave / peer of every round as median and range; and the read bandwidth that `conclave bench`
measured in the same rounds. A step of n rows is n streams of one token for conclave and a prompt of n tokens for the
peer, whose head then runs for one row only, a little in its favour.

    python3 bench/compare.py --model DIR --peer ~/llama.cpp/build/bin/llama-bench --peer-model FILE.gguf -- -mmp 0 -fa 1

What stands behind `--` is passed to the peer as it is. Exit code 1: a side did not do what it was asked to; 2: usage.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Failed(Exception):
    """A side did not answer, or did something else than asked."""


class Busy:
    """Which part of the machine's processor time others took between two looks, in cores, steal included."""

    def __init__(self):
        self.start = self._look()

    @staticmethod
    def _look() -> tuple[float, float, float]:
        words = pathlib.Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        user, nice, system, _, _, irq, softirq, steal = (int(word) for word in words)
        ticks = os.sysconf("SC_CLK_TCK")
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return time.monotonic(), (user + nice + system + irq + softirq + steal) / ticks, own

    def others(self) -> float:
        now = self._look()
        return max(0.0, (now[1] - self.start[1]) - (now[2] - self.start[2])) / max(now[0] - self.start[0], 1e-9)


def call(command: list[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(command)}: no answer within {timeout_s:.0f} s") from error
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise Failed(f"{' '.join(command)}: exit code {done.returncode}: {tail}")
    return done.stdout


class Case:
    """One thing that both do: `kind` and its size."""

    def __init__(self, kind: str, size: int, label: str):
        self.kind = kind
        self.size = size
        self.label = label
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.theirs)]


def conclave_command(args, kind: str, cases: list[Case]) -> list[str]:
    flags = [args.conclave, "bench", kind, "--model", str(args.model), "--threads", str(args.threads), "--dtype", args.dtype,
             "--repeat", str(args.repeat), "--json"]
    if kind == "prefill":
        return [*flags, "--prompt", str(cases[0].size), "--prefill-chunk", str(cases[0].size)]
    if kind == "decode":
        return [*flags, "--tokens", str(cases[0].size), "--context", str(args.context)]
    return [*flags, "--rows", ",".join(str(case.size) for case in cases), "--context", "0", "--tokens", str(args.step_tokens)]


def ask_conclave(args, kind: str, cases: list[Case], reads: list[float]) -> list[float]:
    output = call(conclave_command(args, kind, cases), args.timeout)
    try:
        report = json.loads(output)
        found = [one for one in report["cases"] if one["name"] == kind]
        reads.append(report["bounds"]["read_bytes_per_second"]["max"])
        threads = report["run"]["threads"]
    except (ValueError, KeyError, TypeError) as error:
        raise Failed(f"conclave: not the JSON of `conclave bench {kind}`: {error!r}") from error
    if threads != args.threads or len(found) != len(cases):
        raise Failed(f"conclave: expected {len(cases)} cases with {args.threads} threads, found {len(found)} with {threads}")
    for one, case in zip(found, cases):
        expected = case.size * args.step_tokens if kind == "step" else case.size
        if one["tokens"] != expected or len(one["tokens_per_second"]["samples"]) != args.repeat:
            raise Failed(f"conclave, {case.label}: expected {args.repeat} rounds of {expected} tokens, found "
                         f"{len(one['tokens_per_second']['samples'])} of {one['tokens']}")
    return [one["tokens_per_second"]["median"] for one in found]


def peer_command(args, kind: str, cases: list[Case]) -> list[str]:
    flags = [str(args.peer), "-m", str(args.peer_model), "-t", str(args.threads), "-r", str(args.repeat), "-o", "json"]
    if kind == "decode":
        # Not every llama-bench knows -d; without a context it is not needed.
        depth = ["-d", str(args.context)] if args.context > 0 else []
        return [*flags, "-p", "0", "-n", str(cases[0].size), *depth, *args.peer_flags]
    return [*flags, "-p", ",".join(str(case.size) for case in cases), "-n", "0", *args.peer_flags]


def ask_peer(args, kind: str, cases: list[Case], facts: dict) -> list[float]:
    output = call(peer_command(args, kind, cases), args.timeout)
    try:
        # Some builds print lines of their own before it.
        entries = json.loads(output[output.index("["):])
    except ValueError as error:
        raise Failed(f"{args.peer}: not the JSON of llama-bench -o json: {error}") from error
    rates = []
    for case in cases:
        key = "n_gen" if kind == "decode" else "n_prompt"
        found = [one for one in entries if one.get(key) == case.size
                 and one.get("n_prompt" if kind == "decode" else "n_gen") == 0]
        if len(found) != 1:
            raise Failed(f"{args.peer}, {case.label}: expected one entry with {key} {case.size}, found {len(found)}")
        one = found[0]
        samples = one.get("samples_ts", [])
        if len(samples) != args.repeat or min(samples) <= 0 or one.get("n_threads") != args.threads:
            raise Failed(f"{args.peer}, {case.label}: expected {args.repeat} rates with {args.threads} threads, found "
                         f"{samples} with {one.get('n_threads')}")
        facts.update({key: one[key] for key in ("build_commit", "model_type", "model_size") if key in one})
        rates.append(statistics.median(samples))
    return rates


def wanted_cases(args) -> dict[str, list[Case]]:
    cases = {}
    if "prefill" in args.cases:
        cases["prefill"] = [Case("prefill", args.prompt, f"prefill {args.prompt}")]
    if "decode" in args.cases:
        cases["decode"] = [Case("decode", args.tokens, "decode, 1 stream")]
    if "step" in args.cases:
        cases["step"] = [Case("step", rows, f"step of {rows}") for rows in args.rows]
    return cases


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def measure(args, cases: dict[str, list[Case]]) -> dict:
    reads: list[float] = []
    others: list[float] = []
    facts: dict = {}
    for round_at in range(args.rounds):
        for kind, of_kind in cases.items():
            sides = [lambda: [case.ours.append(rate) for case, rate in
                              zip(of_kind, ask_conclave(args, kind, of_kind, reads))],
                     lambda: [case.theirs.append(rate) for case, rate in
                              zip(of_kind, ask_peer(args, kind, of_kind, facts))]]
            busy = Busy()
            for side in sides if round_at % 2 == 0 else reversed(sides):
                side()
            others.append(busy.others())
            print(f"round {round_at + 1} of {args.rounds}, {kind}: " + "; ".join(
                f"{case.label} {case.ours[-1]:.2f} / {case.theirs[-1]:.2f} = {case.ratios()[-1]:.2f}" for case in of_kind),
                file=sys.stderr, flush=True)
    return {"peer": facts, "read_bytes_per_second": reads, "others_cores": others, "cases": [
        {"name": case.label, "conclave_tokens_per_second": case.ours, "peer_tokens_per_second": case.theirs,
         "ratios": case.ratios(), "ratio": statistics.median(case.ratios())} for of_kind in cases.values()
        for case in of_kind]}


def table(args, result: dict) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in sorted(result["peer"].items()))
    lines = [f"{args.model.name} {args.dtype} against {args.peer_model.name} ({facts}), {args.threads} threads, {args.rounds} "
             f"rounds; peer's flags: {' '.join(args.peer_flags) or 'none'}",
             f"read bandwidth {spread([read / 1e9 for read in result['read_bytes_per_second']], 1)} GB/s; others took "
             f"{spread(result['others_cores'], 2)} cores",
             "", "| | conclave, tokens/s | peer, tokens/s | ratio: median (range) |", "|---|---|---|---|"]
    for case in result["cases"]:
        lines.append(f"| {case['name']} | {spread(case['conclave_tokens_per_second'], 2)} | "
                     f"{spread(case['peer_tokens_per_second'], 2)} | {spread(case['ratios'], 2)} |")
    return "\n".join(lines)


def parse(arguments: list[str]) -> argparse.Namespace:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conclave", default=os.environ.get("CONCLAVE_BINARY", str(ROOT / "build/release/conclave")))
    parser.add_argument("--model", type=pathlib.Path, required=True, help="checkpoint folder for conclave")
    parser.add_argument("--peer", type=pathlib.Path, required=True, help="llama-bench")
    parser.add_argument("--peer-model", type=pathlib.Path, required=True, help="its GGUF (bench/peer_model.py writes one)")
    parser.add_argument("--cases", nargs="+", choices=["prefill", "decode", "step"], default=["prefill", "decode", "step"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", choices=["f32", "bf16", "q8"], default="bf16", help="of conclave; the peer's is its file's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=2, help="measurements of a side in a round")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32, help="generated by the decode case")
    parser.add_argument("--context", type=int, default=0, help="positions before them; -d of the peer")
    parser.add_argument("--rows", type=lambda text: [int(word) for word in text.split(",")], default=[1, 4, 8, 16, 64])
    parser.add_argument("--step-tokens", type=int, default=4, help="steps of a measurement of conclave")
    parser.add_argument("--max-others", type=float, default=0.1, help="cores that others may take before it is said")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one call of a side")
    parser.add_argument("--json", type=pathlib.Path, help="write every figure here")
    args = parser.parse_args(arguments[:split])
    args.peer_flags = arguments[split + 1:]
    if args.rounds < 3 or args.repeat < 1:
        parser.error(f"expected at least 3 rounds and 1 repeat, found {args.rounds} and {args.repeat}")
    for path in (args.peer, args.peer_model):
        if not path.is_file():
            parser.error(f"{path}: no such file")
    return args


def main() -> int:
    args = parse(sys.argv[1:])
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the load average is {load:.2f}; on a machine that others use only ratios say anything, and they "
              f"less", file=sys.stderr)
    try:
        result = measure(args, wanted_cases(args))
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    result["load_before"] = load
    print(table(args, result))
    if statistics.median(result["others_cores"]) > args.max_others:
        print(f"\nwarning: others took more than {args.max_others} cores: measure again on a quiet machine")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
