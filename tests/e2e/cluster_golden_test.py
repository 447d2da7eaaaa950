"""Goal: a cluster computes what the original implementation computed.

Method: for every recorded case a router and three workers with the case's checkpoint, over grpc with mutual TLS and over
ucx; golden_check takes the place of a frontend, twice at once, and compares every tensor and token of the case.

    cluster_golden_test.py GOLDEN_CHECK [FOLDER with cases/]
"""

import json
import pathlib
import subprocess
import sys
import unittest

import cluster as clusters
import conclave_process as conclave

ARGS = [pathlib.Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
PROGRAM = ARGS[0]
CASES = (ARGS[1] if len(ARGS) > 1 else conclave.ROOT / "tests" / "golden" / "data") / "cases"


class ClusterGoldenTest(conclave.TestCase):
    def test_every_case_through_three_workers_with_mutual_tls(self):
        self.check("grpc", tls=True)

    def test_every_case_through_three_workers_over_ucx(self):
        self.check("ucx", tls=False)

    def check(self, channel: str, tls: bool):
        cases = sorted(case for case in CASES.iterdir() if (case / "case.json").exists())
        self.assertGreaterEqual(len(cases), 1)
        for case in cases:
            if not has_experts(case):
                print(f"{case.name}: a dense model, which has nothing for workers to do", flush=True)
                continue
            with self.subTest(case=case.name), \
                    clusters.Cluster(workers=3, frontends=0, model=case / "checkpoint", tls=tls,
                                     args=["--dtype", "f32", "--channel", channel]) as cluster:
                cluster.wait_for_replicas(2)
                checks = [subprocess.Popen([PROGRAM, "--router", cluster.control, *cluster.tls("frontend"), case],
                                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                          for _ in range(2)]
                for check in checks:
                    output, _ = check.communicate(timeout=120)
                    self.assertEqual(check.returncode, 0, output[-4000:])
                    summary = output.strip().splitlines()[-1]
                    self.assertIn(" 0 failed", summary)
                    print(f"{case.name}: {summary}", flush=True)
                calls = [worker_calls(worker) for worker in cluster.workers.values()]
                self.assertGreater(sum(calls), 0, "no worker computed anything")


def has_experts(case: pathlib.Path) -> bool:
    return json.loads((case / "checkpoint" / "config.json").read_text()).get("moe", {}).get("moe_enable", False)


def worker_calls(worker) -> float:
    page = conclave.http_request(worker.ready["admin"], "GET", "/metrics").body.decode()
    return sum(float(line.split()[-1]) for line in page.splitlines()
               if line.startswith('conclave_worker_calls_total{result="ok"'))


if __name__ == "__main__":
    sys.argv[1:] = []
    unittest.main(verbosity=2)
