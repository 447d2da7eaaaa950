"""Goal: what happens to the network between the processes of a cluster cannot be seen in an answer.

Method: every process in a network namespace of its own (namespaces.py); clients stream answers while a worker is cut off,
both ways and one way, loses its router alone, or all links lose and delay packets. Every token and the bits of every log
probability must be those of one undisturbed process, and no request may fail. Each fault prints what was measured, in ms:
detect (until a call of the frontend has timed out, was overtaken by another worker's or has lost its link), masked (the
longest gap between two tokens of a stream; usual: before the fault), rejoin (from the healing until every worker is a member
with a link again), failed, mismatched.

    partition_test.py NETEMU [unittest's arguments]
"""

import http.client
import json
import re
import sys
import threading
import time
import unittest

import cluster as clusters
import conclave_process as conclave
import kill_matrix
import namespaces

NETEMU = ""
NODES = ["router", "frontend", "w0", "w1", "w2"]
RECOVER = ["--recover-time", "500ms"]
# Until a fault that lasts has had all its consequences: a lease of 1.5 s ends, the placement changes.
FAULT_S = 3.0
REJOIN_MAX_S = 30
# What a process may grow by while its links are slow. A frontend's queue to one worker ends at 8 MiB.
GROWTH_MAX = 64 << 20
RESENT = re.compile(r'^moe_dispatch_calls_total\{event="(?:timeout|link_lost|hedge_won)"\} (\S+)$', re.MULTILINE)


def bodies() -> list[dict]:
    return [kill_matrix.body_of("demo", f"word {index}", has_image=index % 2 == 0) for index in range(6)]


class Streams:
    """Clients that stream answers until `stop`; keeps when each token came."""

    def __init__(self, process, requests: list[dict], clients: int = 3):
        self.answers: list[tuple[int, kill_matrix.Answer]] = []
        self.failures: list[str] = []
        self._process, self._requests = process, requests
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._next = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self):
        while not self._stopping.is_set():
            with self._lock:
                index = self._next % len(self._requests)
                self._next += 1
            try:
                answer, failure = kill_matrix.ask(self._process, self._requests[index]), None
            except (OSError, AssertionError, ValueError, http.client.HTTPException) as error:
                answer, failure = None, f"question {index}: {type(error).__name__}: {error}"
            with self._lock:
                if answer is None:
                    self.failures.append(failure)
                else:
                    self.answers.append((index, answer))

    def wait_for(self, count: int, timeout: float = 60):
        """Until so many more answers (or failures) have come."""
        start = len(self.answers) + len(self.failures)
        clusters.wait_until(lambda: len(self.answers) + len(self.failures) >= start + count, f"{count} answers", timeout)

    def stop(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=90)
            if thread.is_alive():
                raise AssertionError("a request hangs")

    def gaps_ms(self, begin: float, end: float) -> list[float]:
        """Between two tokens, or a request and its first token, of all that touch the span."""
        return [(later - earlier) * 1000 for _, answer in self.answers
                for earlier, later in zip(answer.times, answer.times[1:]) if later >= begin and earlier <= end]


def undisturbed(requests: list[dict]) -> list[str]:
    """The keys of a single process's answers."""
    with conclave.Server("--threads", "1") as server:
        return [kill_matrix.ask(server, body).key for body in requests]


class PartitionTest(conclave.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.bodies = bodies()
        cls.expected = undisturbed(cls.bodies)

    def links(self, cluster) -> int:
        page = cluster.metrics("frontend")
        return int(float(re.search(r"^moe_cluster_links (\S+)$", page, re.MULTILINE)[1]))

    def resent(self, cluster) -> float:
        return sum(float(value) for value in RESENT.findall(cluster.metrics("frontend")))

    def is_whole(self, cluster) -> bool:
        """Every worker is a member, linked, and every expert has two replicas."""
        if self.links(cluster) != 3:
            return False
        status = cluster.command("status", "--json")
        return status.returncode == 0 and json.loads(status.stdout)["replication_lowest"] >= 2

    def state(self, cluster, worker: str) -> str:
        page = cluster.metrics(worker)
        return re.search(r'^conclave_worker_state\{state="(\w+)"\} 1$', page, re.MULTILINE)[1]

    def wait_until_whole(self, cluster, timeout: float = 60):
        clusters.wait_until(lambda: self.is_whole(cluster), "all links and two replicas of every expert", timeout)

    def under_fault(self, cluster, name: str, begin, end, meanwhile=None, is_seen: bool = True) -> dict:
        """Streams over the whole of it; `begin` and `end` are the fault, `meanwhile` looks at it while it lasts."""
        streams = Streams(cluster.processes["frontend"], self.bodies)
        report = {"fault": name}
        try:
            streams.wait_for(4)
            started, before = time.monotonic(), self.resent(cluster)
            begin()
            at = time.monotonic()
            if is_seen:
                clusters.wait_until(lambda: self.resent(cluster) > before, "the frontend notices", 10)
                report["detect_ms"] = round((time.monotonic() - at) * 1000)
            if meanwhile is not None:
                meanwhile()
            streams.wait_for(3)
            left = at + FAULT_S - time.monotonic()
            clusters.wait_until(lambda: time.monotonic() >= at + FAULT_S, "the fault lasts", max(left, 0) + 10)
            end()
            healed = time.monotonic()
            clusters.wait_until(lambda: self.links(cluster) == 3, "a link to every worker", REJOIN_MAX_S)
            report["rejoin_ms"] = round((time.monotonic() - healed) * 1000)
            streams.wait_for(3)
        finally:
            streams.stop()
        mismatched = [index for index, answer in streams.answers if answer.key != self.expected[index]]
        report.update(masked_ms=round(max(streams.gaps_ms(at, healed), default=0)),
                      usual_ms=round(max(streams.gaps_ms(0, started), default=0)), answers=len(streams.answers),
                      failed=len(streams.failures), mismatched=len(mismatched))
        print(json.dumps(report), flush=True)
        self.assertEqual(streams.failures, [], cluster.logs())
        self.assertEqual(mismatched, [], cluster.logs())
        self.wait_until_whole(cluster)
        return report

    def check_cuts(self, channel: str, is_long: bool):
        args = ["--channel", channel, *(["--trusted-network"] if channel == "ucx" else [])]
        everybody = [node for node in NODES if node != "w0"]
        with namespaces.Network(NODES) as network, \
                namespaces.Cluster(network, args=args, router_args=RECOVER) as cluster:
            self.wait_until_whole(cluster)

            with self.subTest("a worker is cut off"):
                self.under_fault(cluster, f"{channel}: partition of a worker", lambda: network.cut("w0", everybody),
                                 lambda: network.heal("w0"),
                                 lambda: clusters.wait_until(lambda: self.links(cluster) == 2, "its link is given up", 20))

            with self.subTest("its answers are lost"):
                self.under_fault(cluster, f"{channel}: answers lost, calls arrive",
                                 lambda: network.cut("w0", ["frontend"], arriving=False), lambda: network.heal("w0"))
            if not is_long:
                return

            with self.subTest("its calls are lost"):
                self.under_fault(cluster, f"{channel}: calls lost, answers arrive",
                                 lambda: network.cut("w0", ["frontend"], leaving=False), lambda: network.heal("w0"))

            with self.subTest("it loses its router, not its frontend"):
                def is_fenced():
                    clusters.wait_until(lambda: self.state(cluster, "w0") == "fenced", "its lease ends", 20)

                    def is_gone():
                        status = json.loads(cluster.command("status", "--json").stdout or "{}")
                        states = {worker["name"]: worker["state"] for worker in status.get("workers", [])}
                        return states.get("w0") not in ("live", "suspect")
                    clusters.wait_until(is_gone, "the router knows it no more", 20)

                self.under_fault(cluster, f"{channel}: a worker without its router", lambda: network.cut("w0", ["router"]),
                                 lambda: network.heal("w0"), is_fenced, is_seen=False)
                self.assertEqual(self.state(cluster, "w0"), "registered")

    def test_a_cut_network_is_masked_over_grpc(self):
        self.check_cuts("grpc", is_long=True)

    def test_a_cut_network_is_masked_over_ucx(self):
        self.check_cuts("ucx", is_long=False)

    def test_of_two_routers_the_one_with_the_lower_term_is_refused(self):
        nodes = ["routera", "routerb", "frontend", "w0", "w1", "w2"]
        workers = nodes[3:]
        with namespaces.Network(nodes) as network, \
                namespaces.Cluster(network, args=["--channel", "grpc"], router_args=RECOVER) as cluster:
            def status(router: str) -> dict:
                answer = cluster.command("status", "--json", router=router)
                return json.loads(answer.stdout) if answer.returncode == 0 else {"error": answer.stderr}

            def live(router: str) -> list[str]:
                return sorted(worker["name"] for worker in status(router).get("workers", []) if worker["state"] == "live")

            clusters.wait_until(lambda: self.is_whole(cluster), "all are members of the first router")
            old_term = status("routera")["term"]
            cluster.start_router(*RECOVER, name="routerb")
            streams = Streams(cluster.processes["frontend"], self.bodies)
            try:
                streams.wait_for(3)
                # The first keeps its frontend, the workers go to the second.
                network.cut("routera", workers)
                clusters.wait_until(lambda: live("routerb") == workers and status("routerb")["state"] == "serving",
                                    "the workers are members of the second router")
                new_term = status("routerb")["term"]
                self.assertGreater(new_term, old_term)
                streams.wait_for(3)
                network.heal("routera")
                self.assertEqual(status("routera")["term"], old_term)
                # One of them comes back to the first, which learns that it is not obeyed any more.
                network.cut("w0", ["routerb"])
                clusters.wait_until(lambda: status("routera").get("state") == "standby", "the first router stands by")
                refused = cluster.command("drain", "w1", router="routera")
                self.assertRegex(refused.stderr.splitlines()[-1], "^error: stale_term: ")
                health = cluster.processes["routera"].ready["admin"]
                clusters.wait_until(lambda: conclave.http_request(health, "GET", "/health/ready").status == 503,
                                    "its health says so")
                network.heal("w0")
                clusters.wait_until(lambda: live("routerb") == workers and self.links(cluster) == 3
                                    and status("routerb")["replication_lowest"] >= 2, "all are with the second router")
                self.assertEqual(status("routerb")["term"], new_term)
                streams.wait_for(3)
            finally:
                streams.stop()
            mismatched = [index for index, answer in streams.answers if answer.key != self.expected[index]]
            print(json.dumps({"fault": "two routers", "terms": [old_term, new_term], "answers": len(streams.answers),
                              "failed": len(streams.failures), "mismatched": len(mismatched)}), flush=True)
            self.assertEqual(streams.failures, [], cluster.logs())
            self.assertEqual(mismatched, [], cluster.logs())

    def test_a_bad_network_is_masked(self):
        reason = namespaces.why_not(needs_emulator=True)
        if reason is not None:
            self.skipTest(reason)
        faults = [("1 % of all packets lost", "loss=0.01"), ("20 ms delay", "delay_us=20000"),
                  ("1 % lost, 1 % doubled, 5 ms delay, 2 ms jitter", "loss=0.01 dup=0.01 delay_us=5000 jitter_us=2000")]
        for channel, chosen in [("grpc", faults), ("ucx", faults[2:])]:
            args = ["--channel", channel, *(["--trusted-network"] if channel == "ucx" else [])]
            with self.subTest(channel), namespaces.Network(NODES, emulator=NETEMU, seed=7) as network, \
                    namespaces.Cluster(network, args=args, router_args=RECOVER) as cluster:
                self.wait_until_whole(cluster)
                for name, policy in chosen:
                    self.under_fault(cluster, f"{channel}: {name}",
                                     lambda policy=policy: network.emulate(f"set * * {policy}"),
                                     lambda: network.emulate("set * *"), is_seen=False)
                self.under_fault(cluster, f"{channel}: answers lost, by the emulator",
                                 lambda: network.emulate("set w0 frontend cut=1"), lambda: network.emulate("set * *"))
                counts = network.stats()
                print(json.dumps({"network": channel, **counts}), flush=True)
                for name in ("lost", "doubled", "cut"):
                    self.assertGreater(counts[name], 0, name)

    def resident(self, cluster) -> dict[str, int]:
        pattern = re.compile(r"^process_resident_memory_bytes (\S+)$", re.MULTILINE)
        return {name: int(float(pattern.search(cluster.metrics(name))[1])) for name in ["frontend", "w0", "w1", "w2"]}

    def test_a_slow_network_is_endured(self):
        """10 Mbit/s on every link: answers take longer, all of them come, and nothing piles up in front of a link."""
        reason = namespaces.why_not(needs_emulator=True)
        if reason is not None:
            self.skipTest(reason)
        for channel in ["grpc", "ucx"]:
            args = ["--channel", channel, *(["--trusted-network"] if channel == "ucx" else [])]
            with self.subTest(channel), namespaces.Network(NODES, emulator=NETEMU, seed=8) as network, \
                    namespaces.Cluster(network, args=args, router_args=RECOVER) as cluster:
                self.wait_until_whole(cluster)
                before: dict[str, int] = {}

                def begin(cluster=cluster, network=network, before=before):
                    before.update(self.resident(cluster))
                    network.emulate("set * * rate_mbit=10")

                self.under_fault(cluster, f"{channel}: 10 Mbit/s", begin, lambda network=network: network.emulate("set * *"),
                                 is_seen=False)
                growth = {name: after - before[name] for name, after in self.resident(cluster).items()}
                print(json.dumps({"network": channel, "growth_mib": {k: round(v / 2**20, 1) for k, v in growth.items()}}),
                      flush=True)
                self.assertLess(max(growth.values()), GROWTH_MAX, growth)


if __name__ == "__main__":
    NETEMU = sys.argv.pop(1)
    WHY_NOT = namespaces.why_not(needs_emulator=False)
    if WHY_NOT is not None:
        print(f"skipped: {WHY_NOT}")
        sys.exit(77)
    namespaces.enter()
    unittest.main(verbosity=2)
