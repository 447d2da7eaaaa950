"""Draws a roofline for each family of kernels from the JSON of kernels_bench: one SVG each.

The horizontal axis is operations per byte that comes from memory, the vertical one operations per second. The slope is
the read bandwidth, the level lines are the arithmetic peaks, both measured in the same run: no point that reads its
bytes from memory can lie above them. A file shows in light and in dark, as the reader's page is.

    build/release/bench/kernels_bench --benchmark_format=json --benchmark_out=kernels.json
    python3 bench/roofline.py kernels.json docs/images/roofline
"""

import argparse
import collections
import json
import math
import pathlib
import re
import statistics
import sys
from html import escape

WIDTH, HEIGHT = 880, 520
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 64, 60
ISA_NAMES = {1: "avx2", 2: "avx512", 3: "avx512-bf16"}
# Of the argument op of BoundsBeforePeak and BoundsAfterPeak.
F32_FMA, BF16_DOT, INT8_DOT = 0, 1, 2

STYLE = """
  svg { --ink: #1f2328; --soft: #59636e; --grid: #d1d9e0; --s0: #0969da; --s1: #bc4c00; --s2: #1a7f37; --s3: #8250df; }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #f0f6fc; --soft: #9198a1; --grid: #3d444d; --s0: #58a6ff; --s1: #f0883e; --s2: #3fb950; --s3: #bc8cff; }
  }
  text { font: 13px system-ui, sans-serif; fill: var(--ink); }
  .title { font-size: 17px; font-weight: 600; } .soft { fill: var(--soft); font-size: 12px; }
  .grid { stroke: var(--grid); stroke-width: 1; } .roof { stroke: var(--ink); stroke-width: 2; fill: none; }
  .peak { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 7 4; }
  .s0 { fill: var(--s0); stroke: var(--s0); } .s1 { fill: var(--s1); stroke: var(--s1); }
  .s2 { fill: var(--s2); stroke: var(--s2); } .s3 { fill: var(--s3); stroke: var(--s3); }
  .line { fill: none; stroke-width: 1.5; }
"""


class BadInput(Exception):
    pass


class Bench:
    """Medians of all benchmarks of a file, by name, with the arguments that are in the name."""

    def __init__(self, document: dict):
        samples = collections.defaultdict(list)
        for entry in document.get("benchmarks", []):
            if entry.get("run_type", "iteration") == "iteration" and not entry.get("error_occurred"):
                samples[entry["name"]].append(entry)
        self.entries = []
        for name, entries in samples.items():
            counters = {key: statistics.median(entry[key] for entry in entries)
                        for key, value in entries[0].items() if key.endswith("/s") and isinstance(value, float)}
            best = {key: max(entry[key] for entry in entries) for key in counters}
            args = {key: int(value) for key, value in re.findall(r"/(\w+):(\d+)", name)}
            self.entries.append((name.split("/")[0], args, entries[0].get("label", ""), counters, best))
        self.threads = max((args["threads"] for _, args, _, _, _ in self.entries if "threads" in args), default=0)

    def of(self, kind: str, **wanted: int) -> list[tuple[dict, str, dict]]:
        return [(args, label, counters) for name, args, label, counters, _ in self.entries
                if name == kind and all(args.get(key) == value for key, value in {"threads": self.threads, **wanted}.items())]

    def bound(self, kind: str, counter: str, **wanted: int) -> float:
        """The best of what was measured before and after; 0 where a path has no such instruction."""
        return max((best[counter] for name, args, _, _, best in self.entries
                    if name in ("BoundsBefore" + kind, "BoundsAfter" + kind) and counter in best
                    and all(args.get(key) == value for key, value in {"threads": self.threads, **wanted}.items())),
                   default=0.0)

    def read(self) -> float:
        bandwidth = self.bound("Read", "B/s")
        if not bandwidth:
            raise BadInput("no BoundsBeforeRead or BoundsAfterRead in the JSON; expected a run of kernels_bench whose "
                           "--benchmark_filter lets Bounds through")
        return bandwidth

    def peaks(self, ops: tuple[int, ...]) -> dict[str, float]:
        """By path: the best of these instructions."""
        peaks = {name: max(self.bound("Peak", "op/s", isa=isa, op=op) for op in ops) for isa, name in ISA_NAMES.items()}
        return {name: peak for name, peak in peaks.items() if peak}


Series = collections.namedtuple("Series", "name points")  # points: (operations per byte, operations per second, label)


def point(counters: dict, label: str) -> tuple[float, float, str]:
    return counters["op/s"] / counters["B/s"], counters["op/s"], label


def by_isa(bench: Bench, kind: str, label, **wanted: int) -> list[Series]:
    out = []
    for isa, name in ISA_NAMES.items():
        points = [point(counters, label(args)) for args, _, counters in bench.of(kind, isa=isa, **wanted)]
        if points:
            out.append(Series(name, sorted(points)))
    return out


def gemm(bench: Bench, kind: str, experts_dtype: int | None) -> list[Series]:
    series = by_isa(bench, kind, lambda args: f"{args['m']}", k=2048, n=5632)
    if series and experts_dtype is not None:
        best = max(args["isa"] for args, _, _ in bench.of(kind))
        points = [point(counters, f"{args['tokens']} rows")
                  for args, _, counters in bench.of("GroupedExperts", isa=best, dtype=experts_dtype)]
        if points:
            series.append(Series("experts of a layer, " + ISA_NAMES[best], sorted(points)))
    return series


def attention_label(args: dict) -> str:
    if not args.get("causal", 1):
        return "tower"
    of_what = f"{args['tokens']}, heads of {args['head_dim']}"
    return f"decode {of_what}" if args["rows"] == 1 else f"prefill {of_what}"


def elementwise(bench: Bench) -> list[Series]:
    isas = [args["isa"] for args, _, _ in bench.of("Elementwise")]
    if not isas:
        return []
    out = []
    for is_cold, name in ((1, "from memory"), (0, "from the caches, as between the kernels of a layer")):
        points = [point(counters, label.split(" ", 1)[1] if is_cold else "")
                  for _, label, counters in bench.of("Elementwise", isa=max(isas), is_cold=is_cold)]
        if points:
            out.append(Series(name, sorted(points)))
    return out


FAMILIES = {
    "gemm_bf16": ("GEMM, bf16 weights 2048 × 5632, rows as marked", (F32_FMA, BF16_DOT),
                  lambda bench: gemm(bench, "MatMulBf16", 1)),
    "gemm_f32": ("GEMM, f32 weights 2048 × 5632, rows as marked", (F32_FMA,),
                 lambda bench: gemm(bench, "MatMulF32", None)),
    "gemm_q8": ("GEMM, q8 weights 2048 × 5632, rows as marked", (INT8_DOT,), lambda bench: gemm(bench, "MatMulQ8", 2)),
    "attention": ("Attention, bf16 keys and values, 16 or 32 heads of 64 or 80", (F32_FMA,),
                  lambda bench: by_isa(bench, "Attention", attention_label)),
    "elementwise": ("Row operations, 64 rows of 5632", (F32_FMA,), elementwise),
}


def si(value: float) -> str:
    return f"{value / 1e12:.2f} Top/s" if value >= 1e12 else f"{value / 1e9:.3g} Gop/s"


class Axes:
    """Log to log, over whole powers of two and of ten."""

    def __init__(self, xs: list[float], ys: list[float]):
        self.x0, self.x1 = math.floor(math.log2(min(xs))) - 1, math.ceil(math.log2(max(xs))) + 1
        self.y0, self.y1 = math.floor(math.log10(min(ys))), math.log10(max(ys) * 2)

    def x(self, value: float) -> float:
        return LEFT + (math.log2(value) - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(value) - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}"{extra}>{escape(content)}</text>'


def marker(index: int, x: float, y: float) -> str:
    css = f"s{index % 4}"
    if index % 4 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="{css}"/>'
    if index % 4 == 1:
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" class="{css}"/>'
    if index % 4 == 2:
        return f'<path d="M{x:.1f} {y - 5.5:.1f} l5.5 10 h-11 z" class="{css}"/>'
    return f'<path d="M{x:.1f} {y - 6:.1f} l6 6 l-6 6 l-6 -6 z" class="{css}"/>'


def merged(peaks: dict[str, float]) -> list[tuple[str, float]]:
    """Levels that differ by less than the width of a line are one, with all of their names."""
    out: list[tuple[str, float]] = []
    for name, value in sorted(peaks.items(), key=lambda item: item[1]):
        if out and value < 1.04 * out[-1][1]:
            out[-1] = (f"{out[-1][0]}, {name}", max(value, out[-1][1]))
        else:
            out.append((name, value))
    return out


def grid(axes: Axes) -> list[str]:
    out = []
    for power in range(axes.x0, axes.x1 + 1):
        x = axes.x(2.0**power)
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="grid"/>')
        if power % 2 == 0:
            out.append(text(x, HEIGHT - BOTTOM + 18, f"{2**power}" if power >= 0 else f"1/{2**-power}", "soft", "middle"))
    for power in range(axes.y0, math.floor(axes.y1) + 1):
        y = axes.y(10.0**power)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        out.append(text(LEFT - 8, y + 4, si(10.0**power), "soft", "end"))
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, "operations per byte from memory", "soft", "middle"))
    return out


def roofs(axes: Axes, bandwidth: float, peaks: dict[str, float]) -> list[str]:
    highest = max(peaks.values())
    left, ridge = 2.0**axes.x0, highest / bandwidth
    start = max(left, 10.0**axes.y0 / bandwidth)
    out = [f'<path d="M{axes.x(start):.1f} {axes.y(start * bandwidth):.1f} L{axes.x(ridge):.1f} {axes.y(highest):.1f} '
           f'H{WIDTH - RIGHT}" class="roof"/>']
    at = (start * ridge) ** 0.5
    angle = -math.degrees(math.atan2(axes.y(at) - axes.y(2 * at), axes.x(2 * at) - axes.x(at)))
    x, y = axes.x(at), axes.y(at * bandwidth) - 8
    out.append(text(x, y, f"memory {bandwidth / 1e9:.1f} GB/s", "soft", "middle",
                    f' transform="rotate({angle:.1f} {x:.1f} {y:.1f})"'))
    for name, peak in merged(peaks):
        y = axes.y(peak)
        out.append(f'<line x1="{axes.x(max(peak / bandwidth, left)):.1f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
                   f'class="peak"/>')
        out.append(text(WIDTH - RIGHT - 4, y - 6, f"{name} {si(peak)}", "soft", "end"))
    return out


class Labels:
    """Places texts beside points so that none covers another one or a point."""

    def __init__(self, points: list[tuple[float, float]]):
        self.taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]

    def place(self, x: float, y: float, content: str) -> str:
        width = 7 * len(content)
        boxes = [(x + 8, y + 4), (x + 8, y + 17), (x + 8, y - 8), (x - 8 - width, y + 4), (x - 8 - width, y - 8),
                 (x - 8 - width, y + 17), (x + 8, y + 30), (x + 8, y - 21), (x - 8 - width, y + 30), (x - 8 - width, y - 21),
                 (x - width / 2, y + 43), (x - width / 2, y - 34)]
        for left, base in boxes:
            box = (left, base - 11, left + width, base + 3)
            if box[2] < WIDTH - RIGHT and all(box[0] > b[2] or box[2] < b[0] or box[1] > b[3] or box[3] < b[1]
                                              for b in self.taken):
                self.taken.append(box)
                return text(left, base, content, "soft")
        return ""  # rather none than one that nobody can read


def draw(title: str, subtitle: str, bandwidth: float, peaks: dict[str, float], series: list[Series], is_joined: bool) -> str:
    points = [p for one in series for p in one.points]
    axes = Axes([p[0] for p in points] + [max(peaks.values()) / bandwidth], [p[1] for p in points] + list(peaks.values()))
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
           f'aria-label="{escape(title, quote=True)}">', f"<style>{STYLE}</style>", text(LEFT, 24, title, "title"),
           text(LEFT, 44, subtitle, "soft"), *grid(axes), *roofs(axes, bandwidth, peaks)]
    labels = Labels([(axes.x(x), axes.y(y)) for x, y, _ in points])
    for index, one in enumerate(series):
        places = [(axes.x(x), axes.y(y)) for x, y, _ in one.points]
        if is_joined:
            path = " L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            out.append(f'<path d="M{path}" class="line s{index % 4}" style="fill:none"/>')
        for (x, y), (_, _, label) in zip(places, one.points):
            out.append(marker(index, x, y))
            # The paths' points stand above each other: the last path's have labels.
            if label and (one.name not in ISA_NAMES.values() or index == len(series) - 1 or
                          series[index + 1].name not in ISA_NAMES.values()):
                out.append(labels.place(x, y, label))
        x, y = LEFT + 12, TOP + 16 + 20 * index
        out += [marker(index, x, y - 4), text(x + 12, y, one.name)]
    return "\n".join([*out, "</svg>\n"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=pathlib.Path, help="what kernels_bench --benchmark_out wrote")
    parser.add_argument("folder", type=pathlib.Path, help="where the pictures go; made if it is missing")
    args = parser.parse_args()
    try:
        bench = Bench(json.loads(args.json.read_text(encoding="utf-8")))
        bandwidth = bench.read()
        args.folder.mkdir(parents=True, exist_ok=True)
        for name, (title, ops, find) in FAMILIES.items():
            series, peaks = find(bench), bench.peaks(ops)
            if not series or not peaks:
                print(f"{name}: not in this run")
                continue
            subtitle = f"{bench.threads} threads; bounds measured in the same run"
            path = args.folder / f"{name}.svg"
            path.write_text(draw(title, subtitle, bandwidth, peaks, series, name.startswith("gemm")), encoding="utf-8")
            print(path)
    except (OSError, ValueError, KeyError, BadInput) as error:
        print(f"error: {args.json}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
