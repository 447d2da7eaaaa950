"""Goal: every kind of `conclave bench` measures the demo and says so in a JSON that scripts may rely on.

Method: each kind with one round; the figures are checked against each other, never against a speed.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

import conclave_process as conclave
from conclave_process import run

IMAGE = str(conclave.SAMPLES / "four-large.jpg")
SPREAD = {"median", "min", "max", "samples"}


class BenchTest(conclave.TestCase):
    def measure(self, *args: str) -> dict:
        result = run("bench", *args, "-m", str(conclave.MODEL), "--repeat", "1", "--json", timeout=60)
        self.assertEqual(result.returncode, 0, result)
        report = json.loads(result.stdout)
        self.assertEqual(report["bench"], args[0])
        self.assertEqual(report["model"]["parameters"], 2_181_440)
        self.assertEqual(report["run"]["repeat"], 1)
        self.assertTrue(report["build"]["compiler"] and report["build"]["flags"])
        # Before the round and after every case of it.
        read = report["bounds"]["read_bytes_per_second"]
        self.assertEqual(set(read), SPREAD)
        self.assertGreaterEqual(len(read["samples"]), 2)
        self.assertGreater(read["min"], 0)
        for case in report["cases"]:
            self.assertEqual(set(case["seconds"]), SPREAD, case)
            self.assertEqual(len(case["seconds"]["samples"]), 1, case)
            self.assertGreater(case["seconds"]["median"], 0, case)
            if "tokens" in case:
                self.assertAlmostEqual(case["tokens_per_second"]["median"] * case["seconds"]["median"], case["tokens"],
                                       delta=1e-6 * case["tokens"])
        return report

    def test_decode(self):
        report = self.measure("decode", "--context", "100", "--tokens", "4")
        (case,) = report["cases"]
        self.assertEqual((case["name"], case["rows"], case["tokens"], case["context"]), ("decode", 1, 4, 100))
        self.assertEqual(case["bound"], "memory")
        self.assertGreater(case["share"]["median"], 0)
        # 1,168,128 parameters are activated, the embedding of 640 x 128 among them, and read in bf16 (gates and norms in
        # f32), besides keys and values of 100 to 103 positions and the row's own.
        weights = 2 * (1_168_128 - 640 * 128)
        kv = 4 * 2 * 128 * 2 * 102.5
        self.assertAlmostEqual(case["bytes"]["median"] / 4, weights + kv, delta=20_000)

    def test_prefill_in_chunks_costs_what_it_costs_at_once(self):
        whole, = self.measure("prefill", "--prompt", "96")["cases"]
        chunked, = self.measure("prefill", "--prompt", "96", "--prefill-chunk", "40")["cases"]
        self.assertEqual((whole["rows"], chunked["rows"]), (96, 40))
        self.assertEqual(whole["operations"]["median"], chunked["operations"]["median"])
        self.assertLess(whole["bytes"]["median"], chunked["bytes"]["median"])
        self.assertEqual(whole["bound"], "arithmetic")

    def test_a_step_of_more_rows_reads_more_experts_and_no_more_than_all(self):
        cases = self.measure("step", "--rows", "1,2,64", "--tokens", "2", "--context", "3")["cases"]
        self.assertEqual([case["rows"] for case in cases], [1, 2, 64])
        self.assertEqual([case["tokens"] for case in cases], [2, 4, 128])
        # Without keys and values, a row has two experts of each of two layers, and 64 rows surely all four.
        expert = 2 * 3 * 128 * 320
        kv = [4 * 2 * 128 * 2 * rows * 4.5 + rows * 256 for rows in (1, 2, 64)]
        bytes_of = [case["bytes"]["median"] / 2 - of_kv for case, of_kv in zip(cases, kv)]
        self.assertGreaterEqual(bytes_of[1], bytes_of[0])
        self.assertAlmostEqual(bytes_of[2] - bytes_of[0], 4 * expert, delta=1)

    def test_image(self):
        for args in ((), ("--image", IMAGE)):
            report = self.measure("image", *args)
            self.assertEqual([case["name"] for case in report["cases"]], ["preprocess", "encode"])
            self.assertGreater(report["cases"][1]["operations"]["median"], 1e6)

    def test_load(self):
        report = self.measure("load")
        seconds = {case["name"]: case["seconds"]["median"] for case in report["cases"]}
        self.assertEqual(list(seconds), ["open", "load", "first-token", "total"])
        self.assertAlmostEqual(seconds["open"] + seconds["load"] + seconds["first-token"], seconds["total"], places=6)
        self.assertIn("disk_bytes_of_first_round", report["extras"])

    def test_modes_and_paths(self):
        report = self.measure("decode", "--tokens", "2", "--dtype", "f32", "--isa", "scalar", "--threads", "1")
        self.assertEqual((report["run"]["dtype"], report["run"]["isa"], report["run"]["threads"]), ("f32", "scalar", 1))
        self.assertIsNone(report["bounds"]["f32_fma_operations_per_second"])

    def test_rounds_without_bounds(self):
        result = run("bench", "decode", "-m", str(conclave.MODEL), "--repeat", "2", "--tokens", "2", "--bounds=false", "--json")
        self.assertEqual(result.returncode, 0, result)
        report = json.loads(result.stdout)
        self.assertIsNone(report["bounds"]["read_bytes_per_second"])
        self.assertIsNone(report["cases"][0]["share"])
        self.assertEqual(len(report["cases"][0]["tokens_per_second"]["samples"]), 2)

    def test_text(self):
        result = run("bench", "decode", "-m", str(conclave.MODEL), "--repeat", "1", "--tokens", "2")
        self.assertEqual(result.returncode, 0, result)
        for word in ("read", "bf16_gemm", "load average", "% of memory"):
            self.assertIn(word, result.stdout)

    def assert_fails(self, *args: str, code: int, names: str):
        result = run("bench", *args)
        self.assertEqual((result.returncode, result.stdout), (code, ""), result)
        self.assertRegex(result.stderr, r"(?m)^error: ")
        self.assertIn(names, result.stderr)

    def test_mistakes(self):
        model = ("-m", str(conclave.MODEL))
        self.assert_fails(code=2, names="decode, prefill, step, image or load")
        self.assert_fails("serve", code=2, names='"serve"')
        self.assert_fails("decode", "--rows", "1", code=2, names="--rows")
        for rows in ("", "0", "1,", "1,,2", "1;2", "5000"):
            self.assert_fails("step", *model, f"--rows={rows}", code=2, names="--rows")
        self.assert_fails("decode", *model, "--context", "600", code=2, names="512 positions")
        self.assert_fails("prefill", *model, "--prompt", "600", code=2, names="512 positions")
        self.assert_fails("decode", *model, "--repeat", "0", code=2, names="--repeat")
        self.assert_fails("decode", "-m", "/nowhere", code=4, names="/nowhere")
        self.assert_fails("image", *model, "--image", "/nowhere.png", code=2, names="/nowhere.png")

    def test_settings_are_checked_without_measuring(self):
        result = run("bench", "load", "-m", str(conclave.MODEL), "--check-config")
        self.assertEqual((result.returncode, result.stdout), (0, "ok\n"), result)
        self.assert_fails("load", "-m", "/nowhere", "--check-config", code=3, names="/nowhere")


# Answers like llama-bench, with a rate of 100 times the prompt's tokens or of 7; `broken` as it says.
PEER = """#!/usr/bin/env python3
import json, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
repeat = int(flags["-r"]) - ("short" in flags.get("-x", ""))
entry = lambda prompt, made, rate: {"n_prompt": prompt, "n_gen": made, "n_threads": int(flags["-t"]), "build_commit": "abc",
                                    "samples_ts": [rate] * repeat}
if "crash" in flags.get("-x", ""):
    sys.exit("out of luck")
if flags["-n"] != "0":
    print("loading ...", json.dumps([entry(0, int(flags["-n"]), 7.0)]))
else:
    print(json.dumps([entry(int(n), 0, 100.0 * int(n)) for n in flags["-p"].split(",")]))
"""


class CompareTest(conclave.TestCase):
    """bench/compare.py with a peer that answers like llama-bench."""

    def compare(self, *flags: str, folder: str) -> subprocess.CompletedProcess:
        peer = pathlib.Path(folder, "llama-bench")
        peer.write_text(PEER, encoding="utf-8")
        peer.chmod(0o755)
        return subprocess.run(
            [sys.executable, str(conclave.ROOT / "bench" / "compare.py"), "--conclave", conclave.BINARY, "--model",
             str(conclave.MODEL), "--peer", str(peer), "--peer-model", str(peer), "--threads", "1", "--repeat", "1",
             "--prompt", "64", "--tokens", "2", *flags], capture_output=True, text=True, timeout=120, check=False)

    def test_ratios_of_every_round(self):
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder, "out.json")
            result = self.compare("--cases", "decode", "step", "--rows", "1,4", "--json", str(out), "--", "-fa", "1", folder=folder)
            self.assertEqual(result.returncode, 0, result)
            report = json.loads(out.read_text(encoding="utf-8"))
        self.assertEqual([case["name"] for case in report["cases"]], ["decode, 1 stream", "step of 1", "step of 4"])
        for case, rate in zip(report["cases"], (7, 100, 400)):
            self.assertEqual(case["peer_tokens_per_second"], [rate] * 3)
            for ours, ratio in zip(case["conclave_tokens_per_second"], case["ratios"]):
                self.assertAlmostEqual(ours / rate, ratio)
        self.assertEqual(len(report["read_bytes_per_second"]), 6)
        for said in ("read bandwidth", "-fa 1", "build_commit abc", "step of 4"):
            self.assertIn(said, result.stdout)

    def test_a_peer_that_does_something_else(self):
        with tempfile.TemporaryDirectory() as folder:
            for broken, said in (("short", "expected 1 rates"), ("crash", "out of luck")):
                result = self.compare("--cases", "prefill", "--", "-x", broken, folder=folder)
                self.assertEqual((result.returncode, result.stdout), (1, ""), result)
                self.assertIn(said, result.stderr)


class RooflineTest(conclave.TestCase):
    """bench/roofline.py with the JSON of a made-up run."""

    @staticmethod
    def document(with_bounds: bool) -> dict:
        def entry(name: str, **counters: float) -> dict:
            return {"name": name, "run_type": "iteration", "label": "avx2", **counters}

        bounds = [entry("BoundsBeforeRead/streams:1/prefetch:0/threads:2/iterations:3", **{"B/s": 8e9}),
                  entry("BoundsAfterRead/streams:8/prefetch:1/threads:2/iterations:3", **{"B/s": 10e9}),
                  entry("BoundsBeforePeak/isa:1/op:0/threads:2/iterations:1", **{"op/s": 1e11})]
        gemm = [entry(f"MatMulBf16/isa:1/m:{m}/k:2048/n:5632/threads:{threads}/real_time", **{"op/s": rate, "B/s": rate / m})
                for m, rate, threads in ((1, 1e10, 2), (64, 1e11, 2), (64, 9e12, 1))]
        return {"benchmarks": (bounds if with_bounds else []) + gemm}

    def draw(self, document: dict, folder: str) -> subprocess.CompletedProcess:
        source = pathlib.Path(folder, "kernels.json")
        source.write_text(json.dumps(document), encoding="utf-8")
        return subprocess.run([sys.executable, str(conclave.ROOT / "bench" / "roofline.py"), str(source), folder],
                              capture_output=True, text=True, timeout=60, check=False)

    def test_points_at_the_bounds_lie_on_the_lines(self):
        with tempfile.TemporaryDirectory() as folder:
            result = self.draw(self.document(True), folder)
            self.assertEqual(result.returncode, 0, result)
            picture = xml.etree.ElementTree.parse(pathlib.Path(folder, "gemm_bf16.svg")).getroot()
        tag = "{http://www.w3.org/2000/svg}"
        # The better bounds count: 10 GB/s of reads and 100 Gop/s, with the ridge at 10 operations per byte.
        start, ridge = (tuple(map(float, word.split())) for word in
                        picture.find(f"./{tag}path[@class='roof']").get("d").split(" H")[0][1:].split(" L"))
        points = [(float(mark.get("cx")), float(mark.get("cy"))) for mark in picture.iter(f"{tag}circle")]
        points, legend = points[:-1], points[-1]
        self.assertEqual(len(points), 2)  # with all threads; the last is the legend's
        self.assertLess(legend[1], points[0][1])
        slope = (ridge[1] - start[1]) / (ridge[0] - start[0])
        self.assertAlmostEqual(points[0][1], start[1] + slope * (points[0][0] - start[0]), delta=0.5)
        self.assertAlmostEqual(points[1][1], ridge[1], delta=0.5)
        self.assertGreater(points[1][0], ridge[0])

    def test_a_run_without_bounds_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            result = self.draw(self.document(False), folder)
        self.assertEqual(result.returncode, 3, result)
        self.assertIn("BoundsBeforeRead", result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
