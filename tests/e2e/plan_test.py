"""Goal: what a router records is what happened, and `conclave plan` says what would have happened otherwise.

Method: a cluster of real processes is recorded while clients ask the recorded questions and a worker is killed; the file is
saved during the recording and after it, replayed with several wishes, cut and damaged.
"""

import json
import pathlib
import subprocess
import tempfile
import time
import unittest

import cluster as clusters
import conclave_process as conclave

BODIES = clusters.bodies_of([sample for sample in conclave.samples() if sample["image"]][:6])


def plan(trace: pathlib.Path, *args: str) -> subprocess.CompletedProcess:
    return conclave.run("plan", "--trace", str(trace), *args)


class PlanTest(conclave.TestCase):
    def of(self, trace: pathlib.Path, *args: str) -> dict:
        result = plan(trace, "--json", *args)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def refused(self, code: int, reason: str, *args: str):
        result = conclave.run("plan", *args)
        self.assertEqual((result.returncode, result.stdout), (code, ""), result.stderr)
        self.assertRegex(result.stderr, rf"^error: {reason}: [^\n]+\n$")
        return result.stderr

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="conclave-plan-")
        cls.trace = pathlib.Path(cls.folder.name) / "routing.trace"
        cls.early = pathlib.Path(cls.folder.name) / "early.trace"
        with clusters.Cluster(workers=3) as cluster:
            cluster.wait_for_replicas(2)
            cls.nothing = cluster.command("record", "save", str(cls.trace))
            cls.not_started = cluster.command("record", "stop")
            cls.started = cluster.command("record", "start", "--json")
            load = clusters.Load(cluster.frontends, BODIES)
            try:
                clusters.wait_until(lambda: cls.windows_with_rows(cluster) >= 6, "a recording of 6 s")
                cls.again = cluster.command("record", "start", "--json")
                cls.saved_early = cluster.command("record", "save", str(cls.early))
                cluster.workers["w2"].kill()
                cluster.wait_for_replicas(2)
                load.wait_for(12)
            finally:
                load.stop()
            cls.failures = load.failures
            # The last rows are on their way: workers report once a second.
            clusters.wait_until(lambda: cls.rows_settle(cluster), "rows stop coming")
            cls.stopped = cluster.command("record", "stop", "--json")
            cls.status = cluster.status()
            cls.status_text = cluster.command("status").stdout
            cls.saved = cluster.command("record", "save", str(cls.trace), "--json")
            cls.unwritable = cluster.command("record", "save", "/nowhere/at/all")

    @staticmethod
    def windows_with_rows(cluster) -> int:
        recording = cluster.status()["recording"]
        return recording["windows"] if recording["rows"] else 0

    seen = 0

    @classmethod
    def rows_settle(cls, cluster) -> bool:
        time.sleep(1.5)
        rows = cluster.status()["recording"]["rows"]
        is_settled, cls.seen = rows == cls.seen and rows > 0, rows
        return is_settled

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_recording_says_how_far_it_is(self):
        self.assertEqual(self.failures, [])
        for early in (self.nothing, self.not_started):
            self.assertEqual(early.returncode, 2, early.stdout)
            self.assertIn("error: no_recording: ", early.stderr)
        self.assertTrue(json.loads(self.started.stdout)["is_recording"], self.started.stderr)
        self.assertGreater(json.loads(self.again.stdout)["rows"], 0, "a second start began anew")
        stopped = json.loads(self.stopped.stdout)
        self.assertFalse(stopped["is_recording"] or stopped["is_full"])
        self.assertEqual(self.status["recording"], stopped)
        self.assertIn(f"recording has stopped: {stopped['windows']} windows, {stopped['rows']} rows", self.status_text)
        self.assertEqual(json.loads(self.saved.stdout)["bytes"], stopped["bytes"])
        self.assertEqual(self.trace.stat().st_size, stopped["bytes"])
        # A window without rows takes 15 bytes or so, one with all 8 experts of the demo about 100.
        self.assertLess(stopped["bytes"], 2000 + 150 * stopped["windows"])
        self.assertEqual(self.unwritable.returncode, 3, self.unwritable.stderr)
        self.assertIn("error: file_write_error: /nowhere/at/all: ", self.unwritable.stderr)

    def test_the_replay_has_every_row_and_what_happened(self):
        report = self.of(self.trace)
        stopped = json.loads(self.stopped.stdout)
        self.assertEqual(sum(report["rows"].values()), stopped["rows"])
        self.assertEqual(report["windows"], stopped["windows"])
        # Questions about pictures; answers are text.
        self.assertTrue(report["rows"]["prefill_image"] > 0 and report["rows"]["decode_text"] > 0, report["rows"])
        self.assertEqual(report["rows"]["decode_image"], 0)
        self.assertEqual((report["end"], report["experts"], report["workers_planned"]), ("stopped", 8, 3))
        # w2 was killed: the router moved experts, and the replayed one does too.
        self.assertGreater(report["recorded"]["rebalances"], 0)
        self.assertGreater(report["recorded"]["loads"], 0)
        self.assertEqual(report["planned"]["loads"], report["recorded"]["loads"])
        self.assertEqual(report["recorded"]["unserved"], 0)
        for course in ("recorded", "kept", "planned"):
            self.assertTrue(1 <= report[course]["imbalance"] < 3, report[course])
        workers = {worker["name"]: worker for worker in report["workers"]}
        self.assertEqual(set(workers), {"w0", "w1"})
        # Two workers hold all 8 experts twice: nothing is lost with one of them.
        self.assertEqual([workers["w0"][key] for key in ("recorded", "recorded_alone", "planned", "planned_alone")],
                         [8, 0, 8, 0])

        text = plan(self.trace).stdout
        for part in ("recorded: ", "imbalance", "rows unserved", "LAYER", "HOTTEST", "LOST WITH IT", "3 workers, 8 experts"):
            self.assertIn(part, text)
        self.assertEqual(text, plan(self.trace).stdout)
        self.assertEqual(plan(self.trace, "--json").stdout, plan(self.trace, "--json").stdout)

    def test_a_file_saved_while_recording_is_a_recording(self):
        report = self.of(self.early)
        self.assertEqual(report["end"], "goes_on")
        self.assertEqual({worker["name"] for worker in report["workers"]}, {"w0", "w1", "w2"})
        self.assertLess(report["windows"], self.of(self.trace)["windows"])

    def test_what_if(self):
        without = self.of(self.early, "--without", "w1")
        self.assertEqual(without["workers_planned"], 2)
        self.assertNotIn(-1, [worker["planned"] for worker in without["workers"] if worker["name"] != "w1"])
        self.assertEqual([worker["planned"] for worker in without["workers"] if worker["name"] == "w1"], [-1])
        self.assertGreater(without["planned"]["loads"], 0, "its experts go to the others")
        self.assertEqual(without["planned"]["unserved"], 0, "every expert had another replica")

        single = self.of(self.early, "--workers", "1")
        self.assertEqual((single["workers_planned"], single["workers"][0]["planned_alone"]), (1, 8))
        self.assertEqual(single["planned"]["imbalance"], 1)

        added = self.of(self.early, "--add", "2")
        self.assertEqual(added["workers_planned"], 5)
        names = {worker["name"]: worker for worker in added["workers"]}
        self.assertGreater(names["new-1"]["planned"] + names["new-2"]["planned"], 0, "new workers get their part")

        once = self.of(self.early, "--workers", "4", "--replicas", "1", "--memory", "1GiB",
                       "--rebalance-interval", "1s", "--full")
        self.assertEqual((once["replicas_wanted"], once["planned"]["rebalances"] > 0), (1, True))

    def test_impossible_wishes_are_refused(self):
        trace = str(self.early)
        self.refused(2, "placement_over_capacity", "--trace", trace, "--memory", "4KiB")
        self.assertIn("(w0, w1, w2)", self.refused(2, "worker_unknown", "--trace", trace, "--without", "w9"))
        self.refused(2, "placement_worker", "--trace", trace, "--without", "w0,w1,w2")
        self.refused(2, "usage", "--trace", trace, "--without", "w0,")
        self.refused(2, "usage", "--trace", trace, "--workers", "2", "--add", "1")
        self.refused(2, "usage")

    def test_bad_files_are_refused_and_cut_ones_read(self):
        whole = self.trace.read_bytes()
        other = pathlib.Path(self.folder.name) / "other.trace"
        self.refused(3, "trace_file", "--trace", "/nowhere/at/all")
        self.refused(3, "trace_file", "--trace", self.folder.name)
        for content in (b"", b"hello", whole[:20], whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], whole + whole):
            other.write_bytes(content)
            self.assertIn("other.trace: byte ", self.refused(3, "trace_corrupt", "--trace", str(other)))
        other.write_bytes(whole[:-40])
        report = self.of(other)
        self.assertEqual(report["end"], "cut")
        self.assertLess(report["windows"], self.of(self.trace)["windows"])
        self.assertIn("the file breaks off", plan(other).stdout)


if __name__ == "__main__":
    unittest.main()
