"""Goal: what happens to a process of a cluster cannot be seen in an answer.

Method: a router, workers and frontends as real processes, every expert on two workers; clients ask the recorded
questions while workers are killed, stopped, drained and added, and while the router is away. Every answer's tokens and
log probabilities must be those of a single undisturbed process, and no request may fail.
"""

import pathlib
import re
import signal
import time
import unittest

import cluster as clusters
import conclave_process as conclave

SAMPLES = [sample for sample in conclave.samples() if sample["image"]][:12]
BODIES = clusters.bodies_of(SAMPLES)


class ClusterTest(conclave.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.expected = clusters.undisturbed(BODIES)

    def under_load(self, cluster, disturb, answers: int = 24, frontends=None):
        """Runs `disturb` amid clients' requests; checks every answer and returns the load."""
        load = clusters.Load(frontends or cluster.frontends, BODIES)
        try:
            load.wait_for(8)
            disturb()
            load.wait_for(answers)
        finally:
            load.stop()
        self.assertEqual(load.failures, [], cluster.logs())
        self.assertGreaterEqual(len(load.answers), answers)
        for index, key in load.answers:
            self.assertEqual(key, self.expected[index], f"question {index}")
        return load

    def test_workers_that_die_hang_leave_and_come_are_masked(self):
        with clusters.Cluster(workers=3, frontends=2) as cluster:
            cluster.wait_for_replicas(2)

            with self.subTest("nothing happens"):
                self.under_load(cluster, lambda: None)

            with self.subTest("kill -9"):
                self.under_load(cluster, cluster.workers["w0"].kill)
            cluster.wait_for_replicas(2)

            with self.subTest("a worker joins"):
                self.under_load(cluster, lambda: cluster.add_worker("w3"))
                self.assertIn("w3", [worker["name"] for worker in cluster.status()["workers"]])

            with self.subTest("SIGSTOP, SIGCONT"):
                victim = cluster.workers["w1"]

                def hang():
                    victim.send_signal(signal.SIGSTOP)
                    time.sleep(3)
                    victim.send_signal(signal.SIGCONT)

                self.under_load(cluster, hang)
            cluster.wait_for_replicas(2)

            with self.subTest("SIGTERM drains"):
                victim = cluster.workers["w2"]
                self.under_load(cluster, lambda: victim.send_signal(signal.SIGTERM))
                self.assertEqual(victim.wait(), 0, victim.log())
            cluster.wait_for_replicas(2)

            with self.subTest("drain by command, and kill-safe"):
                safe = cluster.command("kill-safe", "w3")
                self.assertEqual(safe.returncode, 0, safe.stdout + safe.stderr)
                self.under_load(cluster, lambda: self.assertEqual(cluster.command("drain", "w3").returncode, 0))

            with self.subTest("a frontend dies"):
                survivor = cluster.frontends[0]
                self.under_load(cluster, cluster.frontends[1].kill, frontends=[survivor])

    def test_a_router_that_is_away_is_not_missed(self):
        with clusters.Cluster(workers=3, frontends=1) as cluster:
            cluster.wait_for_replicas(2)
            epoch = cluster.status()["epoch"]
            with self.subTest("killed, a worker killed meanwhile"):
                cluster.router.kill()
                self.under_load(cluster, cluster.workers["w0"].kill)
            with self.subTest("back with its state"):
                self.under_load(cluster, cluster.restart_router)
                clusters.wait_until(lambda: len(cluster.status()["workers"]) >= 2, "the workers are members again")
                cluster.wait_for_replicas(2)
                self.assertGreater(cluster.status()["epoch"], epoch)
            with self.subTest("back without its state"):
                epoch = cluster.status()["epoch"]
                cluster.router.kill()
                self.under_load(cluster, lambda: cluster.restart_router(keep_state=False))
                cluster.wait_for_replicas(2)
                self.assertGreater(cluster.status()["epoch"], epoch)

    def test_a_lost_single_replica_is_an_error_until_a_worker_holds_it_again(self):
        with clusters.Cluster(workers=1, frontends=1, frontend_args=["--rescue-memory", "0B"]) as cluster:
            frontend = cluster.frontends[0]
            self.assertEqual(clusters.answer_key(frontend.chat(BODIES[0])), self.expected[0])
            cluster.workers["w0"].kill()
            response = frontend.chat(BODIES[0])
            self.assertEqual(response.status, 503, response)
            self.assertIn("retry-after", response.headers)
            self.assertEqual(frontend.request("GET", "/health/ready").status, 503)
            cluster.add_worker("w1")
            clusters.wait_until(cluster.is_ready, "the new worker serves every expert")
            self.assertEqual(clusters.answer_key(frontend.chat(BODIES[0])), self.expected[0])

    def test_a_frontend_computes_what_no_worker_serves(self):
        with clusters.Cluster(workers=1, frontends=1) as cluster:
            frontend = cluster.frontends[0]
            self.under_load(cluster, cluster.workers["w0"].kill)
            with self.subTest("and goes on alone"):
                begin = time.monotonic()
                self.assertEqual(clusters.answer_key(frontend.chat(BODIES[1])), self.expected[1])
                self.assertLess(time.monotonic() - begin, 10)
                self.assertGreater(rescued(frontend), 0)
            with self.subTest("until a worker is there again"):
                self.under_load(cluster, lambda: cluster.add_worker("w1"))
                clusters.wait_until(cluster.is_ready, "the new worker serves every expert")
                self.assertEqual(clusters.answer_key(frontend.chat(BODIES[2])), self.expected[2])
                before = rescued(frontend)
                self.assertEqual(clusters.answer_key(frontend.chat(BODIES[3])), self.expected[3])
                self.assertEqual(rescued(frontend), before)

    def test_every_recorded_answer_comes_through_mutual_tls(self):
        samples = conclave.samples()
        with clusters.Cluster(workers=3, frontends=2, tls=True) as cluster:
            for index, (sample, body) in enumerate(zip(samples, clusters.bodies_of(samples))):
                response = cluster.frontends[index % 2].chat(body)
                self.assertEqual(response.status, 200, response)
                self.assertEqual(response.content, sample["answer"], sample["question"])
            with self.subTest("no certificate, no answer"):
                self.assertEqual(conclave.run("cluster", "status", "--router", cluster.control).returncode, 5)
            with self.subTest("a frontend's certificate is no operator's"):
                result = conclave.run("cluster", "status", "--router", cluster.control, *cluster.tls("frontend"))
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertIn("peer_role", result.stderr)

    def test_every_recorded_answer_comes_over_every_channel(self):
        samples = conclave.samples()
        for name, args, env, expected in [("shared memory", ("--channel", "ucx"), {}, {"ucx": 2, "grpc": 0}),
                                          ("loopback TCP", ("--channel", "ucx"), {"UCX_TLS": "tcp"},
                                           {"ucx": 2, "grpc": 0}),
                                          ("the best there is", (), {}, {"ucx": 2, "grpc": 0}),
                                          ("grpc", ("--channel", "grpc"), {}, {"ucx": 0, "grpc": 2})]:
            with self.subTest(name), clusters.Cluster(workers=2, frontends=1, args=args, env=env) as cluster:
                frontend = cluster.frontends[0]
                clusters.wait_until(lambda: frontend.channels() == expected, f"links {expected}")
                for sample, body in zip(samples, clusters.bodies_of(samples)):
                    response = frontend.chat(body)
                    self.assertEqual(response.status, 200, response)
                    self.assertEqual(response.content, sample["answer"], sample["question"])

    def test_a_worker_that_dies_is_masked_over_ucx(self):
        for name, env in [("shared memory", {}), ("loopback TCP", {"UCX_TLS": "tcp"})]:
            with self.subTest(name), clusters.Cluster(workers=2, frontends=1, args=("--channel", "ucx"),
                                                      env=env) as cluster:
                cluster.wait_for_replicas(2)
                self.under_load(cluster, cluster.workers["w0"].kill)
                clusters.wait_until(lambda: cluster.frontends[0].channels() == {"ucx": 1, "grpc": 0}, "one link")

    def test_a_pair_without_a_common_channel_says_so(self):
        with clusters.Router() as router, clusters.Worker(router.control, "w0", "--channel", "grpc"), \
                clusters.Frontend(router.control, "--channel", "ucx") as frontend:
            clusters.wait_until(lambda: "expected it to offer ucx" in frontend.log(), "the reason is logged")
            self.assertEqual(frontend.request("GET", "/health/ready").status, 503)

    def test_serve_spawns_a_whole_cluster_and_takes_it_down(self):
        with conclave.Server("--spawn", "2", "--threads", "1") as server:
            clusters.wait_until(lambda: server.request("GET", "/health/ready").status == 200, "served")
            for index, body in enumerate(BODIES[:4]):
                self.assertEqual(clusters.answer_key(server.chat(body)), self.expected[index])
            children = children_of(server.process.pid)
            self.assertEqual(len(children), 3, server.log())
            self.assertEqual(server.stop(), 0, server.log())
            clusters.wait_until(lambda: not any(is_running(child) for child in children), "the children are gone")
        with conclave.Server("--spawn", "2", "--threads", "1") as server:
            children = children_of(server.process.pid)
            server.kill()
            clusters.wait_until(lambda: not any(is_running(child) for child in children), "the children are gone")


def rescued(frontend) -> float:
    """Calls that the frontend computed itself."""
    page = conclave.http_request(frontend.ready["admin"], "GET", "/metrics").body.decode()
    return float(re.search(r'^moe_dispatch_calls_total\{event="rescued"\} (\S+)', page, re.MULTILINE)[1])


def children_of(pid: int) -> list[int]:
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


if __name__ == "__main__":
    unittest.main(verbosity=2)
