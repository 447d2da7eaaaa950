"""Goal: a service manager hears that a process lives exactly as long as the threads that do its work go on.

Method: the real processes with a socket of the test as $NOTIFY_SOCKET and a watchdog of a second, and failpoints that hang the
engine, a worker's compute thread and a router's core while everything else of the process, its admin listener too, goes on.
"""

import pathlib
import signal
import tempfile
import threading
import time
import unittest

import deploy_files as deploy
import cluster
import service_manager

conclave = deploy.conclave
INTERVAL_S = 1.0
# Several pings, one every half of the interval, on a machine that has much else to do.
PATIENCE_S = 20.0
# A hang is seen at the second look, at most; then there has to be silence. The kill of a service manager comes an interval after
# the last ping.
SILENCE_S = 3 * INTERVAL_S
BODY = {"model": "demo", "messages": [conclave.user("Hello")], "temperature": 0, "max_tokens": 4}


class Listener(service_manager.NotifySocket):
    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="conclave-notify-")
        self.path = pathlib.Path(self._folder.name) / "notify"
        super().__init__(self.path)

    def environment(self, interval: str = str(int(INTERVAL_S * 1e6)), **more: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self.path), "WATCHDOG_USEC": interval, **more}

    def pings(self, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        count = 0
        while (left := deadline - time.monotonic()) > 0:
            count += "WATCHDOG" in self.wait(left)
        return count

    def wait_silent(self) -> bool:
        """Whether pings end and stay away."""
        deadline = time.monotonic() + PATIENCE_S
        while self.wait(SILENCE_S):
            if time.monotonic() > deadline:
                return False
        return True

    def close(self):
        super().close()
        self._folder.cleanup()


class WatchdogTest(conclave.TestCase):
    def setUp(self):
        self.listener = Listener()
        self.addCleanup(self.listener.close)

    def process(self, kind, *args: str, env: dict[str, str] | None = None):
        process = kind(*args, env=env or self.listener.environment())
        self.addCleanup(process.kill)
        return process

    def plain(self, kind, *args: str):
        process = kind(*args)
        self.addCleanup(process.kill)
        return process

    def assert_lives(self):
        for _ in range(3):
            self.assertEqual(self.listener.wait(PATIENCE_S), {"WATCHDOG": "1"})

    def assert_hangs(self, process, thread: str):
        self.assertTrue(self.listener.wait_silent(), "it goes on telling that it lives")
        self.assertEqual(conclave.http_request(process.ready["admin"], "GET", "/health/live").status, 200, "other threads do")
        self.assertRegex(process.log(), f'no sign of life.*{thread}')

    def assert_whole_life(self, process, extend_s: int):
        """From READY to the end."""
        self.assertEqual(self.listener.wait(PATIENCE_S), {"READY": "1"})
        self.assert_lives()
        process.send_signal(signal.SIGTERM)
        while (message := self.listener.wait(PATIENCE_S)) == {"WATCHDOG": "1"}:
            pass
        self.assertEqual(message, {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": str(extend_s * 1_000_000)})
        self.assertEqual(process.wait(), 0)

    def test_serve(self):
        self.assert_whole_life(self.process(conclave.Server, "--threads", "1", "--drain-timeout", "20s"), 30)

    def test_router(self):
        self.assert_whole_life(self.process(conclave.Router), 10)

    def test_worker(self):
        router = self.plain(conclave.Router, "--recover-time", "100ms")
        worker = self.process(lambda *args, env: cluster.Worker(router.control, "w", *args, env=env), "--drain-timeout", "1s")
        self.assert_whole_life(worker, 11)

    def test_an_engine_that_works_lives_and_one_that_hangs_does_not(self):
        server = self.process(conclave.Server, "--threads", "1")
        self.assertEqual(self.listener.wait(PATIENCE_S), {"READY": "1"})
        stop = threading.Event()

        def ask():
            while not stop.is_set():
                server.chat({**BODY, "max_tokens": 100, "ignore_eos": True})
        asking = threading.Thread(target=ask)
        asking.start()
        self.assert_lives()
        self.assert_lives()
        stop.set()
        asking.join()
        cluster.arm(server, "f.sampled=sleep:600000")
        # Nobody has asked it anything: it has nothing to do, and that is no hang.
        self.assert_lives()
        self.assert_lives()
        with self.assertRaises(OSError):
            server.chat(BODY, timeout=1)
        self.assert_hangs(server, "engine")

    def test_an_engine_that_waits_for_a_slow_worker_is_no_hang(self):
        router = self.plain(conclave.Router, "--recover-time", "100ms")
        # Four attempts of a call, one behind the other at the worker, take less than half of the interval; the answer more.
        self.plain(lambda: cluster.Worker(router.control, "w", env={"CONCLAVE_FAILPOINTS": "w.before_compute=sleep:300"}))
        frontend = self.process(lambda *args, env: cluster.Frontend(router.control, *args, env=env), "--rescue-memory", "0B",
                                env=self.listener.environment("4000000"))
        self.assertEqual(self.listener.wait(PATIENCE_S), {"READY": "1"})
        cluster.wait_until(lambda: frontend.request("GET", "/health/ready").status == 200, "the frontend is ready")
        asking = threading.Thread(target=lambda: frontend.chat({**BODY, "max_tokens": 8, "ignore_eos": True}))
        asking.start()
        while asking.is_alive():
            self.assertEqual(self.listener.wait(PATIENCE_S), {"WATCHDOG": "1"})
        asking.join()
        self.assertNotIn("no sign of life", frontend.log())

    def test_a_worker_that_hangs(self):
        router = self.plain(conclave.Router, "--recover-time", "100ms")
        worker = self.process(lambda *args, env: cluster.Worker(router.control, "w", *args, env=env))
        self.plain(lambda: cluster.Worker(router.control, "other"))
        frontend = self.plain(lambda: cluster.Frontend(router.control))
        cluster.wait_until(lambda: frontend.channels()["ucx"] + frontend.channels()["grpc"] == 2, "both are linked")
        cluster.arm(worker, "w.before_compute=sleep:600000")
        for _ in range(4):
            self.assertEqual(frontend.chat(BODY).status, 200, "the other one has its experts")
        self.assert_hangs(worker, "compute-0")

    def test_a_router_that_hangs(self):
        router = self.process(conclave.Router, "--recover-time", "100ms")
        workers = [self.plain(lambda name=name: cluster.Worker(router.control, name)) for name in ("w0", "w1")]
        self.assertEqual(len(workers), 2)
        cluster.arm(router, "r.drain_begin=sleep:600000")
        draining = threading.Thread(target=lambda: conclave.run("cluster", "drain", "w0", "--router", router.control))
        draining.start()
        self.assert_hangs(router, "router-core")
        router.kill()
        draining.join()

    def test_what_is_not_understood_is_said_and_ignored(self):
        for usec, pid, named in (("soon", "", "WATCHDOG_USEC"), ("0", "", "WATCHDOG_USEC"), ("1000000", "me", "WATCHDOG_PID")):
            with self.subTest(usec=usec, pid=pid):
                server = self.process(conclave.Router, env=self.listener.environment(usec, WATCHDOG_PID=pid))
                self.assertEqual(self.listener.wait(PATIENCE_S), {"READY": "1"})
                self.assertEqual(self.listener.pings(1.5 * INTERVAL_S), 0)
                self.assertRegex(server.log(), f"the watchdog is off: {named}.*expected")
                server.kill()

    def test_the_watchdog_of_another_process(self):
        router = self.process(conclave.Router, env=self.listener.environment(WATCHDOG_PID="1"))
        self.assertEqual(self.listener.wait(PATIENCE_S), {"READY": "1"})
        self.assertEqual(self.listener.pings(1.5 * INTERVAL_S), 0)
        self.assertNotIn("watchdog", router.log())


if __name__ == "__main__":
    deploy.main()
