"""Goal: `conclave worker` is what scripts may rely on: ready line, health, metrics, exit codes, reasons, signals.

Method: runs the binary, alone and with a router.
"""

import json
import re
import signal
import subprocess
import unittest

import cluster as clusters
import conclave_process as conclave
from conclave_process import run


class WorkerTest(conclave.TestCase):
    def test_it_is_ready_when_it_holds_what_the_router_gave_it(self):
        with clusters.Router() as router, clusters.Worker(router.control, "w") as worker:
            self.assertRegex(worker.ready_line,
                             r"^ready role=worker data=127.0.0.1:\d+ admin=http://127.0.0.1:\d+ pid=\d+$")
            ready = conclave.http_request(worker.ready["admin"], "GET", "/health/ready")
            self.assertEqual(ready.status, 200, ready)
            page = conclave.http_request(worker.ready["admin"], "GET", "/metrics").body.decode()
            self.assertIn('conclave_worker_state{state="registered"} 1', page)
            self.assertGreater(float(re.search(r"^conclave_worker_experts (\S+)", page, re.M)[1]), 0)
            for name in ["conclave_worker_queue_calls", "conclave_worker_calls_total", "conclave_worker_memory_bytes",
                         "moe_expert_tokens_total", "process_resident_memory_bytes"]:
                self.assertIn(name, page)
            documented = (conclave.ROOT / "docs/metrics.md").read_text()
            for name in set(re.findall(r"^# TYPE (conclave_worker\S+)", page, re.M)):
                self.assertIn(f"`{name}", documented)

    def test_a_worker_that_nobody_routes_to_any_more_leaves_at_once(self):
        with clusters.Router() as router, clusters.Worker(router.control, "a") as first, \
                clusters.Worker(router.control, "b"):
            first.send_signal(signal.SIGTERM)
            self.assertEqual(first.wait(timeout=25), 0, first.log())
            self.assertIn("drained", first.log())

    def test_without_a_router_it_waits_and_stops_when_asked(self):
        with subprocess.Popen(conclave.command("worker", "--router", "127.0.0.1:9", "--model", str(conclave.MODEL)),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env=conclave.clean_environment()) as process:
            try:
                while b"router lost" not in process.stderr.readline():
                    self.assertIsNone(process.poll())
                process.send_signal(signal.SIGTERM)
                self.assertEqual(process.wait(timeout=30), 0)
                self.assertEqual(process.stdout.read(), b"")
            finally:
                process.kill()

    def test_a_router_of_another_cluster_ends_it(self):
        with clusters.Router("--cluster-id", "one") as router:
            result = run("worker", "--router", router.control, "--model", str(conclave.MODEL), "--cluster-id", "two",
                         timeout=60)
            self.assertEqual(result.returncode, 5, result)
            self.assertRegex(result.stderr.splitlines()[-1], "^error: cluster_mismatch: ")
            self.assertEqual(result.stdout, "")

    def test_q8_does_not_mix_with_bf16(self):
        with clusters.Router() as router, clusters.Worker(router.control, "a", "--dtype", "q8"):
            for role, code in (("worker", 5), ("frontend", 4)):
                result = run(role, "--router", router.control, "--model", str(conclave.MODEL), "--listen", "127.0.0.1:0",
                             "--admin-listen", "127.0.0.1:0", "--dtype", "bf16", timeout=60)
                self.assertEqual(result.returncode, code, result)
                self.assertRegex(result.stderr.splitlines()[-1],
                                 "^error: cluster_mismatch: .*numeric mode: expected q8 .*found bf16 ")

    def test_wrong_settings_are_refused(self):
        for args, code, reason in [
                (("--channel", "ucx", "--listen", "10.0.0.1:0", "--insecure"), 2, "usage"), (("--name", "no spaces"), 2, "usage"),
                (("--listen", "0.0.0.0:0"), 2, "usage"), (("--listen", "0.0.0.0:0", "--insecure"), 2, "usage"),
                (("--advertise", "nowhere"), 2, "usage"), (("--memory", "4"), 2, "usage"),
                (("--tls-cert", __file__), 2, "usage"), (("--model", "/nonexistent"), 4, "model_file_missing"),
                (("--tls-cert", __file__, "--tls-key", __file__, "--tls-ca", __file__), 3, "tls_config")]:
            with self.subTest(args=args):
                result = run("worker", *args, timeout=60)
                self.assertEqual(result.returncode, code, result)
                self.assertRegex(result.stderr.splitlines()[-1], f"^error: {reason}: ")

    def test_failpoints_of_a_worker_are_masked_by_its_replicas(self):
        if not json.loads(run("version", "--json").stdout).get("failpoints"):
            self.skipTest("this build has no failpoints")
        bodies = clusters.bodies_of([sample for sample in conclave.samples() if sample["image"]][:4])
        expected = clusters.undisturbed(bodies)
        for setting, dies in [("w.before_compute=kill9@hit=5", True), ("w.mid_compute=kill9@phase=decode,hit=5", True),
                              ("w.after_reply=kill9@hit=7", True),
                              ("w.before_compute=error:ENOMEM@prob=0.2,seed=3", False)]:
            # One worker besides, so that the victim has a replica of everything.
            with self.subTest(setting=setting), clusters.Cluster(workers=1, frontends=1) as cluster:
                victim = cluster.add_worker("victim", env={"CONCLAVE_FAILPOINTS": setting})
                cluster.wait_for_replicas(2)
                load = clusters.Load(cluster.frontends, bodies)
                try:
                    load.wait_for(12)
                    if dies:
                        clusters.wait_until(lambda: victim.process.poll() is not None, "the failpoint is reached", 20)
                    load.wait_for(4)
                finally:
                    load.stop()
                self.assertEqual(load.failures, [], cluster.logs())
                for index, key in load.answers:
                    self.assertEqual(key, expected[index], f"question {index}")
                self.assertEqual(victim.process.poll(), -signal.SIGKILL if dies else None)

    def test_a_second_worker_of_the_name_takes_over_from_a_dead_one(self):
        with clusters.Router() as router:
            with clusters.Worker(router.control, "w") as first:
                first.kill()
            with clusters.Worker(router.control, "w") as second:
                self.assertIn("role=worker", second.ready_line)

    def test_what_is_checked_and_printed(self):
        checked = run("worker", "--model", str(conclave.MODEL), "--check-config")
        self.assertEqual((checked.returncode, checked.stdout), (0, "ok\n"), checked)
        printed = run("worker", "--print-config")
        self.assertEqual(printed.returncode, 0)
        self.assertIn("drain-timeout: 30s", printed.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
