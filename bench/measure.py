"""Everything that docs/performance.md shows, measured in one go on a quiet machine: about a quarter of an hour on two cores.

    cmake --preset release -DCONCLAVE_BENCH=ON && cmake --build build/release --target conclave kernels_bench
    python3 bench/measure.py --out build/measured             # JSON of every run, pictures, and the table on stdout
    python3 bench/measure.py --out build/measured --docs      # and into docs/performance.md and docs/images/roofline
    python3 bench/measure.py --out build/measured --docs --only table    # the same from the JSON of before

The model is StableLM-1.6B x 4 with random weights, which is made in --out when --model names none (6.4 GB, and as much
again for each packed folder). With --peer and --peer-model (and flags of the peer behind `--`) bench/compare.py runs too.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import roofline
from compare import Busy, Failed, call

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
# Of kernels_bench: what the pictures and the table need, with all threads.
KERNELS = ("Bounds.*threads:{t}/|MatMul(Bf16|F32|Q8).*k:2048/n:5632/threads:{t}/|GroupedExperts/isa:{isa}/.*threads:{t}/|"
           "Attention.*threads:{t}/|Elementwise/isa:{isa}/.*threads:{t}/|VsOneDnn")
STEPS = ("model", "prefill", "decode", "step", "image", "load", "q8", "packed", "processes", "kernels", "compare", "table")


class Measurement:
    def __init__(self, args):
        self.args = args
        self.out = args.out
        self.conclave = str(args.build / "conclave")

    def path(self, name: str) -> pathlib.Path:
        return self.out / f"{name}.json"

    def read(self, name: str) -> dict | None:
        path = self.path(name)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def run(self, name: str, command: list[str]) -> None:
        """Writes what the command prints, a JSON, with what others took of the machine meanwhile."""
        start = time.monotonic()
        busy = Busy()
        document = json.loads(call(command, 1800))
        document["others_cores"] = busy.others()
        self.path(name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {time.monotonic() - start:.0f} s, others took {document['others_cores']:.2f} cores", file=sys.stderr,
              flush=True)

    def bench(self, kind: str, *flags: str, model: pathlib.Path | None = None) -> list[str]:
        repeat = [] if "--repeat" in flags else ["--repeat", str(self.args.repeat)]
        return [self.conclave, "bench", kind, "--model", str(model or self.args.model), "--threads", str(self.args.threads),
                "--json", *repeat, *flags]

    def has_command(self, name: str) -> bool:
        return f"\n  {name} " in call([self.conclave, "--help"], 60)

    def model(self) -> None:
        if not (self.args.model / "config.json").is_file():
            call([self.conclave, "synth", "--like", "stablelm-1.6b-4e", "--threads", str(self.args.threads),
                  str(self.args.model)], 1800)

    def prefill(self) -> None:
        self.run("prefill", self.bench("prefill", "--prompt", "512"))

    def decode(self) -> None:
        self.run("decode", self.bench("decode"))

    def step(self) -> None:
        self.run("step", self.bench("step", "--rows", "4,8,16,64"))

    def image(self) -> None:
        self.run("image", self.bench("image"))

    def load(self) -> None:
        self.run("load", self.bench("load", "--repeat", "2"))

    def q8(self) -> None:
        self.run("q8_prefill", self.bench("prefill", "--prompt", "512", "--dtype", "q8"))
        self.run("q8_decode", self.bench("decode", "--dtype", "q8"))

    def packed(self) -> None:
        if not self.has_command("pack"):
            print("packed: this conclave has no `pack`", file=sys.stderr)
            return
        folder = self.out / "packed"
        if not (folder / "config.json").is_file():
            call([self.conclave, "pack", str(self.args.model), str(folder)], 1800)
        # Once for the page cache: warm is what is asked.
        call(self.bench("load", "--repeat", "1", model=folder), 600)
        self.run("packed_load", self.bench("load", "--repeat", "3", model=folder))

    def processes(self) -> None:
        """One process alone, then two at once, without bounds between their rounds."""
        rounds = str(2 * self.args.repeat)
        for name, command in {
                "decode": self.bench("decode", "--bounds=false", "--repeat", rounds, "--tokens", "16"),
                "prefill": self.bench("prefill", "--bounds=false", "--repeat", rounds, "--prompt", "256")}.items():
            self.run(f"alone_{name}", command)
            both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
            answers = [process.communicate(timeout=1800)[0] for process in both]
            if any(process.returncode != 0 for process in both):
                raise Failed(f"two processes, {name}: exit codes {[process.returncode for process in both]}")
            self.path(f"beside_{name}").write_text(json.dumps([json.loads(answer) for answer in answers], indent=1) + "\n",
                                                   encoding="utf-8")
            print(f"two processes, {name}", file=sys.stderr, flush=True)

    def kernels(self) -> None:
        isa = {"avx2": 1, "avx512": 2, "avx512-bf16": 3}[self.read("decode")["run"]["isa"]] if self.read("decode") else 3
        self.run("kernels", [str(self.args.build / "bench" / "kernels_bench"), "--benchmark_format=json",
                             "--benchmark_filter=" + KERNELS.format(t=self.args.threads, isa=isa)])
        # A call of theirs is so long that one is all that the run above takes: the table has the median of several.
        grouped = f"Bounds.*Peak.*threads:{self.args.threads}/|GroupedExperts/isa:{isa}/tokens:640/.*threads:{self.args.threads}/"
        self.run("grouped", [str(self.args.build / "bench" / "kernels_bench"), "--benchmark_format=json",
                             f"--benchmark_repetitions={self.args.repeat}", "--benchmark_filter=" + grouped])

    def compare(self) -> None:
        if self.args.peer is None:
            return
        for dtype, peer_model in (("bf16", self.args.peer_model), ("q8", self.args.peer_q8)):
            if peer_model is not None:
                command = [sys.executable, str(ROOT / "bench" / "compare.py"), "--conclave", self.conclave, "--model",
                           str(self.args.model), "--dtype", dtype, "--threads", str(self.args.threads), "--peer",
                           str(self.args.peer), "--peer-model", str(peer_model), "--json", str(self.path(f"compare_{dtype}")),
                           "--", *self.args.peer_flags]
                (self.out / f"compare_{dtype}.md").write_text(call(command, 3600), encoding="utf-8")

    def table(self) -> None:
        pictures = self.out / "roofline"
        if self.path("kernels").is_file():
            call([sys.executable, str(ROOT / "bench" / "roofline.py"), str(self.path("kernels")), str(pictures)], 60)
        text = Report(self).text()
        (self.out / "table.md").write_text(text, encoding="utf-8")
        print(text)
        if self.args.docs:
            page = ROOT / "docs" / "performance.md"
            before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
            _, _, after = rest.partition(END)
            page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")
            for picture in sorted(pictures.glob("*.svg")):
                target = ROOT / "docs" / "images" / "roofline" / picture.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(picture.read_text(encoding="utf-8"), encoding="utf-8")


def spread(values: dict, scale: float = 1.0, digits: int = 1) -> str:
    return (f"{values['median'] * scale:.{digits}f} ({values['min'] * scale:.{digits}f} to "
            f"{values['max'] * scale:.{digits}f})")


class Report:
    """The table, from what was measured; a row whose measurement is missing says so."""

    def __init__(self, measurement: Measurement):
        self.of = measurement.read
        self.rows: list[tuple[str, str, str, str]] = []

    def row(self, what: str, target: str, measured: str | None, bound: str = "") -> None:
        self.rows.append((what, target, measured or "not measured", bound))

    def case(self, run: str, **wanted) -> tuple[dict, dict] | None:
        report = self.of(run)
        for one in (report or {}).get("cases", []):
            if all(one.get(key) == value for key, value in wanted.items()):
                return report, one
        return None

    @staticmethod
    def bound(report: dict, one: dict) -> str:
        if one.get("share") is None:
            return ""
        if one["bound"] == "memory":
            return f"{spread(one['share'], 100, 0)} % of {spread(report['bounds']['read_bytes_per_second'], 1e-9)} GB/s"
        peak = {"f32": "f32_fma", "bf16": "bf16_gemm", "q8": "int8_dot"}[report["run"]["dtype"]]
        peaks = report["bounds"][f"{peak}_operations_per_second"]
        return f"{spread(one['share'], 100, 0)} % of {spread(peaks, 1e-9, 0)} Gop/s"

    def rate(self, what: str, target: str, run: str, **wanted) -> None:
        found = self.case(run, **wanted)
        self.row(what, target, found and f"{spread(found[1]['tokens_per_second'], 1, 1)} tokens/s",
                 found and self.bound(*found) or "")

    def seconds(self, what: str, target: str, run: str, case: str) -> None:
        found = self.case(run, name=case)
        self.row(what, target, found and f"{spread(found[1]['seconds'], 1, 3)} s", found and self.bound(*found) or "")

    def kernels(self) -> None:
        document = self.of("kernels")
        entries = (document or {}).get("benchmarks", [])
        experts = self.of("grouped")
        for dtype, name, target in ((1, "bf16", "≥ 350 Gop/s"), (2, "q8", "")):
            rates = [one["op/s"] for one in (experts or {}).get("benchmarks", []) if one["run_type"] == "iteration"
                     and one["name"].startswith("GroupedExperts") and f"/dtype:{dtype}/" in one["name"]]
            peaks = roofline.Bench(experts).peaks((roofline.F32_FMA, roofline.BF16_DOT) if dtype == 1
                                                  else (roofline.INT8_DOT,)) if rates else {}
            best = max(peaks.values(), default=0)
            shown = {"median": statistics.median(rates), "min": min(rates), "max": max(rates)} if rates else {}
            self.row(f"grouped experts, 640 rows, {name}", target, f"{spread(shown, 1e-9, 0)} Gop/s" if rates else None,
                     f"{spread(shown, 100 / best, 0)} % of {best / 1e9:.0f} Gop/s" if rates and best else "")
        for dtype, name in ((1, "bf16"), (2, "int8")):
            for sizes, target in (((1, 2), "≥ 1.4×"), ((4, 8, 16), "≥ 1.05×"), ((64, 256, 640), "≥ 0.95×")):
                of_size = [one for one in entries if one["name"].startswith("VsOneDnn") and f"/dtype:{dtype}/" in one["name"]
                           and any(f"/m:{m}/" in one["name"] for m in sizes) and not one.get("error_occurred")]
                speedups = [one["speedup"] for one in of_size]
                self.row(f"GEMM against oneDNN {name}, M = {', '.join(map(str, sizes))}", target if dtype == 1 else "",
                         f"{statistics.median(speedups):.2f}× ({min(speedups):.2f} to {max(speedups):.2f})" if speedups else None)

    def processes(self) -> None:
        for name in ("decode", "prefill"):
            alone, beside = self.of(f"alone_{name}"), self.of(f"beside_{name}")
            if not alone or not beside:
                self.row(f"two processes at once, {name}, of one's rate", "≥ 90 %", None)
                continue
            one = alone["cases"][0]["tokens_per_second"]["median"]
            both = sum(report["cases"][0]["tokens_per_second"]["median"] for report in beside)
            self.row(f"two processes at once, {name}, of one's rate", "≥ 90 %", f"{100 * both / one:.0f} %",
                     f"{both:.1f} against {one:.1f} tokens/s")

    def conditions(self) -> str:
        runs = [self.of(name) for name in ("prefill", "decode", "step", "image", "load", "q8_prefill", "q8_decode")]
        runs = [run for run in runs if run]
        if not runs:
            return "Nothing was measured.\n"
        first = runs[0]
        others = [run["others_cores"] for run in runs]
        return (f"{first['machine']['cpu']}, {first['run']['threads']} threads, {first['run']['isa']}; {first['model']['name']}; "
                f"conclave {first['version']}, {first['build']['compiler']}, {first['build']['flags']}. Median (least to "
                f"most) of {first['run']['repeat']} rounds, bounds of the same runs; other processes took "
                f"{min(others):.2f} to {max(others):.2f} cores meanwhile.\n")

    def text(self) -> str:
        self.rate("prefill 512, bf16", "≥ 75 % of the peak", "prefill", name="prefill")
        self.rate("decode, 1 stream, bf16", "≥ 84 % of the reads", "decode", name="decode")
        for rows, target in ((4, 34), (8, 58), (16, 80), (64, 101)):
            self.rate(f"step of {rows} rows, bf16", f"≥ {target} tokens/s", "step", rows=rows)
        self.kernels()
        self.seconds("image encode, CLIP-L/336", "≤ 1.1 s", "image", "encode")
        self.seconds("image preparation, 1280 × 960", "", "image", "preprocess")
        self.rate("q8: decode, 1 stream", "≥ 18 tokens/s", "q8_decode", name="decode")
        self.rate("q8: prefill 512", "≥ 170 tokens/s", "q8_prefill", name="prefill")
        self.seconds("warm start to the first token, packed file", "≤ 0.6 s", "packed_load", "total")
        self.seconds("the same without", "", "load", "total")
        self.processes()
        lines = [self.conditions(), "| measure | target | measured | of the bound |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join(lines) + "\n"


def main() -> int:
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release", help="with conclave and bench/")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the results; made if it is missing")
    parser.add_argument("--model", type=pathlib.Path, help="checkpoint folder; default: OUT/stablelm-1.6b-4e, which is made")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--docs", action="store_true", help="write docs/performance.md and its pictures")
    parser.add_argument("--peer", type=pathlib.Path, help="llama-bench of a peer")
    parser.add_argument("--peer-model", type=pathlib.Path, help="its GGUF in bf16")
    parser.add_argument("--peer-q8", type=pathlib.Path, help="its GGUF in q8_0")
    args = parser.parse_args(arguments[:split])
    args.peer_flags = arguments[split + 1:]
    args.out.mkdir(parents=True, exist_ok=True)
    args.model = args.model or args.out / "stablelm-1.6b-4e"
    measurement = Measurement(args)
    try:
        for step in STEPS:
            if step in args.only:
                getattr(measurement, step)()
    except (Failed, OSError, ValueError, KeyError) as error:
        print(f"error: {step}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
