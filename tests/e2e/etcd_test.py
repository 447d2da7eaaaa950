"""Goal: with the router's state in etcd one router leads, another stands by, and what happens to the leader or to etcd
cannot be seen in an answer; no deposed router writes or commands, and no epoch comes twice.

Method: a real etcd, two routers, workers and a frontend that know both; clients ask the recorded questions while the
leader is killed, stopped for longer than its lease and resumed, and while etcd is away. Every answer is compared with
one of a single undisturbed process. Who wrote which state under which term is read from etcd itself.
"""

import base64
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import cluster as clusters
import conclave_process as conclave

ETCD = shutil.which("etcd")
SAMPLES = [sample for sample in conclave.samples() if sample["image"]][:12]
BODIES = clusters.bodies_of(SAMPLES)
LEASE_S = 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Etcd:
    """One member with its data in a folder of its own; `stop` and `start` keep the data."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="conclave-etcd-")
        self.client, self.peer = free_port(), free_port()
        self.address = f"127.0.0.1:{self.client}"
        self.process = None
        self.start()

    def start(self):
        client, peer = f"http://127.0.0.1:{self.client}", f"http://127.0.0.1:{self.peer}"
        with open(pathlib.Path(self._folder.name, "log"), "ab") as log:
            self.process = subprocess.Popen(
                [ETCD, "--data-dir", str(pathlib.Path(self._folder.name, "data")), "--listen-client-urls", client,
                 "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                 "--initial-cluster", f"default={peer}", "--unsafe-no-fsync"], stdout=log, stderr=log)
        clusters.wait_until(self.is_healthy, "etcd answers")

    def is_healthy(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(pathlib.Path(self._folder.name, "log").read_text()[-2000:])
        try:
            return conclave.http_request(f"http://{self.address}", "GET", "/health", timeout=2).status == 200
        except OSError:
            return False

    def stop(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.stop()
        self._folder.cleanup()

    def get(self, key: str, revision: int = 0) -> dict | None:
        """The entry of a key, with its bytes; at an older revision of the store if one is given."""
        body = {"key": base64.b64encode(key.encode()).decode(), "revision": str(revision)}
        answer = conclave.http_request(f"http://{self.address}", "POST", "/v3/kv/range", body).json()
        for entry in answer.get("kvs", []):
            return {**entry, "value": base64.b64decode(entry.get("value", ""))}
        return None

    def history(self, key: str, since: int) -> list[dict]:
        """Every value that the key has had behind a revision, oldest first."""
        found = []
        entry = self.get(key)
        while entry is not None and int(entry["mod_revision"]) > since:
            found.append(entry)
            entry = self.get(key, int(entry["mod_revision"]) - 1)
        return found[::-1]


class Pair(clusters.Cluster):
    """A cluster whose router is one of two."""

    def __init__(self, etcd: Etcd):
        self.etcd = etcd
        self.routers: list[clusters.Router] = []
        self.epochs: list[int] = []
        super().__init__(workers=3, frontends=1)
        self.wait_for_replicas(2)

    def start_routers(self):
        first = self.add_router()
        clusters.wait_until(lambda: is_leader(first), "the first router leads")
        self.control = f"{first.control},{self.add_router().control}"

    def add_router(self, listen: str = "127.0.0.1:0") -> clusters.Router:
        self.routers.append(clusters.Router("--etcd", self.etcd.address, "--etcd-lease", f"{LEASE_S}s", listen=listen))
        return self.routers[-1]

    def close(self):
        super().close()
        for router in self.routers:
            router.kill()

    def leader(self) -> clusters.Router | None:
        leading = [router for router in self.routers if router.process.poll() is None and is_leader(router)]
        return leading[0] if leading else None

    def status(self) -> dict:
        """As the operator sees it; epochs that are seen only grow."""
        found = super().status()
        if self.epochs and found["epoch"] < self.epochs[-1]:
            raise AssertionError(f"epoch {found['epoch']} behind {self.epochs[-1]}")
        self.epochs.append(found["epoch"])
        return found

    def logs(self) -> str:
        routers = "\n".join(f"--- router {router.control}\n{router.log()[-4000:]}" for router in self.routers)
        return routers + "\n" + super().logs()


def health(router: clusters.Router) -> tuple[int, str]:
    try:
        response = conclave.http_request(router.ready["admin"], "GET", "/health/ready", timeout=2)
    except OSError:
        return 0, "away"
    return response.status, response.json()["status"]


def is_leader(router: clusters.Router) -> bool:
    return health(router)[0] == 200


def status_of(router: clusters.Router):
    return conclave.run("cluster", "status", "--json", "--router", router.control, "--timeout", "2s")


class EtcdTest(conclave.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.expected = clusters.undisturbed(BODIES)

    def setUp(self):
        self.etcd = Etcd()
        self.addCleanup(self.etcd.close)

    def under_load(self, pair: Pair, disturb):
        """Runs `disturb` amid clients' requests and checks every answer."""
        load = clusters.Load(pair.frontends, BODIES)
        try:
            load.wait_for(8)
            disturb()
            load.wait_for(16)
        finally:
            load.stop()
        self.assertEqual(load.failures, [], pair.logs())
        for index, key in load.answers:
            self.assertEqual(key, self.expected[index], f"question {index}")

    def wait_for_members(self, pair: Pair):
        clusters.wait_until(lambda: len(pair.status()["workers"]) == 3 and pair.status()["frontends"],
                            "workers and frontend are members of the new leader")
        pair.wait_for_replicas(2)

    def test_a_standby_says_so_and_takes_over_at_once_from_a_leader_that_leaves(self):
        first = clusters.Router("--etcd", self.etcd.address)
        self.addCleanup(first.kill)
        clusters.wait_until(lambda: is_leader(first), "the first leads")
        second = clusters.Router("--etcd", f"http://127.0.0.1:{free_port()},http://{self.etcd.address}")
        self.addCleanup(second.kill)
        clusters.wait_until(lambda: f"the leader is {first.control}" in status_of(second).stderr, "the leader is named")
        refused = status_of(second)
        self.assertEqual(refused.returncode, 5, refused)
        self.assertRegex(refused.stderr.splitlines()[-1], "^error: standby: ")
        self.assertEqual(health(second), (503, "standby"))
        both = conclave.run("cluster", "status", "--json", "--router", f"{second.control},{first.control}")
        self.assertEqual(both.returncode, 0, both)
        term = json.loads(both.stdout)["term"]
        start = time.monotonic()
        self.assertEqual(first.stop(signal.SIGTERM), 0, first.log())
        clusters.wait_until(lambda: is_leader(second), "the second leads", LEASE_S)
        print(f"takeover after SIGTERM: {time.monotonic() - start:.2f} s", file=sys.stderr)
        clusters.wait_until(lambda: json.loads(status_of(second).stdout or "{}").get("term", 0) > term, "a higher term")

    def test_leaders_that_die_hang_and_lose_etcd(self):
        with Pair(self.etcd) as pair:
            with self.subTest("kill -9"):
                old = pair.leader()
                pair.status()

                def kill():
                    start = time.monotonic()
                    old.kill()
                    clusters.wait_until(pair.leader, "the standby leads")
                    print(f"takeover after kill -9: {time.monotonic() - start:.2f} s", file=sys.stderr)
                    self.wait_for_members(pair)
                    print(f"all members there: {time.monotonic() - start:.2f} s", file=sys.stderr)

                self.under_load(pair, kill)
                self.assertGreater(pair.epochs[-1] >> 32, pair.epochs[0] >> 32)
                pair.routers.remove(old)
                pair.add_router(old.control)

            with self.subTest("SIGSTOP beyond the lease, SIGCONT"):
                zombie = pair.leader()
                since = 0

                def hang():
                    nonlocal since
                    zombie.send_signal(signal.SIGSTOP)
                    clusters.wait_until(lambda: any(is_leader(router) for router in pair.routers if router != zombie),
                                        "the standby leads")
                    self.wait_for_members_of(pair, zombie)
                    leader_key = self.etcd.get("/conclave/default/leader")
                    since = int(leader_key["create_revision"])
                    zombie.send_signal(signal.SIGCONT)
                    clusters.wait_until(lambda: health(zombie) == (503, "standby"), "the zombie stands by")
                    # An answer as a leader would be worth more than its health page.
                    self.assertRegex(status_of(zombie).stderr.splitlines()[-1], "^error: standby: ")

                self.under_load(pair, hang)
                self.assertIn("deposed", zombie.log())
                leader = pair.leader()
                self.assertNotEqual(leader, zombie)
                self.assertEqual(self.etcd.get("/conclave/default/leader")["value"].decode(), leader.control)
                terms = {entry["value"] for entry in self.etcd.history("/conclave/default/term", since - 1)}
                self.assertEqual(len(terms), 1, "one term since the new leader took over")
                self.wait_for_members(pair)

            with self.subTest("etcd is away"):
                self.etcd.stop()
                self.under_load(pair, lambda: clusters.wait_until(
                    lambda: pair.leader() is None, "nobody leads without etcd", 4 * LEASE_S))
                self.etcd.start()
                self.under_load(pair, lambda: clusters.wait_until(pair.leader, "one leads again"))
                self.wait_for_members(pair)

            with self.subTest("no epoch comes twice"):
                terms = [entry["value"] for entry in self.etcd.history("/conclave/default/term", 0)]
                numbers = [int(term) for term in terms]
                self.assertEqual(numbers, sorted(numbers))
                self.assertEqual(pair.epochs, sorted(pair.epochs))

    def wait_for_members_of(self, pair: Pair, away: clusters.Router):
        """All members have come to the router that is not stopped: asking the other would only hang."""
        router = next(router for router in pair.routers if router != away)

        def is_whole() -> bool:
            answer = status_of(router)
            found = json.loads(answer.stdout) if answer.returncode == 0 else {}
            return len(found.get("workers", [])) == 3 and bool(found.get("frontends"))

        clusters.wait_until(is_whole, "workers and frontend are members of the new leader")

    def test_wrong_settings(self):
        cases = [(("--etcd", "127.0.0.1"), "usage", 2), (("--etcd", "https://127.0.0.1:1"), "usage", 2),
                 (("--etcd", "192.0.2.1:2379"), "usage", 2), (("--etcd", "127.0.0.1:0"), "usage", 2),
                 (("--etcd", "127.0.0.1:1,127.0.0.1:1"), "usage", 2),
                 (("--etcd", "127.0.0.1:1", "--state-dir", "x"), "usage", 2),
                 (("--etcd", "127.0.0.1:1", "--etcd-lease", "2500ms"), "usage", 2),
                 (("--etcd", "127.0.0.1:1", "--etcd-lease", "1s"), "usage", 2)]
        for args, reason, code in cases:
            with self.subTest(args=args):
                result = conclave.run("router", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", *args)
                self.assertEqual(result.returncode, code, result)
                self.assertRegex(result.stderr.splitlines()[-1], f"^error: {reason}: ")

    def test_without_etcd_a_router_stands_by(self):
        with conclave.Router("--etcd", f"127.0.0.1:{free_port()}") as router:
            clusters.wait_until(lambda: "etcd_unreachable" in status_of(router).stderr, "it says why")
            self.assertEqual(health(router), (503, "standby"))
            self.assertEqual(router.stop(signal.SIGTERM), 0, router.log())

    def test_a_state_that_this_router_must_not_touch_ends_it(self):
        body = {"key": base64.b64encode(b"/conclave/default/term").decode(), "value": base64.b64encode(b"x").decode()}
        conclave.http_request(f"http://{self.etcd.address}", "POST", "/v3/kv/put", body)
        with conclave.Router("--etcd", self.etcd.address) as router:
            self.assertEqual(router.wait(), 6, router.log())
            self.assertRegex(router.log().splitlines()[-1], "^error: state_corrupt: ")


if __name__ == "__main__":
    if ETCD is None:
        print("skipped: no etcd; tools/setup.sh test installs it")
        sys.exit(77)
    unittest.main()
