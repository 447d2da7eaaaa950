"""Goal: `conclave router` and `conclave cluster` are what scripts may rely on: ready line, exit codes, reasons, JSON.

Method: runs the binary; what needs workers is tested with the router's own tests.
"""

import json
import pathlib
import signal
import tempfile
import unittest

import conclave_process as conclave
from conclave_process import run


def cluster(router: conclave.Router, *args: str):
    return run("cluster", *args, "--router", router.control)


def status(router: conclave.Router) -> dict:
    result = cluster(router, "status", "--json")
    assert result.returncode == 0, result
    return json.loads(result.stdout)


class RouterTest(conclave.TestCase):
    def test_it_says_where_it_listens_and_stops_cleanly(self):
        with conclave.Router() as router:
            self.assertRegex(router.ready_line,
                             r"^ready role=router admin=http://127.0.0.1:\d+ control=127.0.0.1:\d+ pid=\d+$")
            ready = conclave.http_request(router.ready["admin"], "GET", "/health/ready")
            self.assertEqual(ready.status, 200, ready)
            metrics = conclave.http_request(router.ready["admin"], "GET", "/metrics").body.decode()
            self.assertIn("conclave_router_term", metrics)
            self.assertEqual(router.stop(signal.SIGTERM), 0)
            self.assertEqual(router.rest_of_stdout(), "")

    def test_an_operator_sees_an_empty_cluster(self):
        with conclave.Router("--recover-time", "0ms", "--model", str(conclave.MODEL)) as router:
            while status(router)["state"] != "serving":
                pass
            found = status(router)
            self.assertEqual(found["workers"], [])
            first = found["experts"][0]
            expert = f"{first['layer']}:{first['expert']}"
            text = cluster(router, "status").stdout
            self.assertIn("WORKER", text)
            for args, reason, code in [(("drain", "w"), "worker_unknown", 2), (("undrain", "w"), "worker_unknown", 2),
                                       (("kill-safe", "w"), "worker_unknown", 2),
                                       (("pin", expert, "w"), "worker_unknown", 2),
                                       (("replicate", "999:0", "2"), "expert_unknown", 2)]:
                with self.subTest(args=args):
                    result = cluster(router, *args)
                    self.assertEqual(result.returncode, code, result)
                    self.assertRegex(result.stderr.splitlines()[-1], f"^error: {reason}: ")
            plan = json.loads(cluster(router, "rebalance", "--dry-run", "--json").stdout)
            self.assertEqual((plan["dry_run"], plan["moves"]), (True, []))

    def test_wrong_actions_are_usage_errors(self):
        for args in [(), ("stop",), ("drain",), ("status", "x"), ("pin", "1:0"), ("pin", "1-0", "w"),
                     ("replicate", "1:0", "x")]:
            with self.subTest(args=args):
                result = run("cluster", *args, "--router", "127.0.0.1:9", "--timeout", "300ms")
                self.assertEqual(result.returncode, 2, result)
                self.assertRegex(result.stderr.splitlines()[-1], "^error: usage: ")

    def test_no_router_is_a_network_error(self):
        result = run("cluster", "status", "--router", "127.0.0.1:9", "--timeout", "300ms")
        self.assertEqual(result.returncode, 5, result)
        self.assertRegex(result.stderr.splitlines()[-1], "^error: connect: ")

    def test_the_state_outlives_the_process(self):
        with tempfile.TemporaryDirectory() as folder:
            state = str(pathlib.Path(folder, "state"))
            with conclave.Router("--state-dir", state, "--recover-time", "0ms") as router:
                while status(router)["state"] != "serving":
                    pass
                self.assertEqual(status(router)["term"], 1)
                second = run("router", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--state-dir", state)
                self.assertEqual(second.returncode, 6, second)
                self.assertIn(f"error: state_dir_locked: pid={router.process.pid}", second.stderr)
                router.kill()
            with conclave.Router("--state-dir", state) as router:
                while status(router)["state"] != "serving":
                    pass
                self.assertEqual(status(router)["term"], 2)

    def test_wrong_settings(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as experts:
            experts.write('{"moe": {"layers": [3, 1], "experts": [4, 4]}}')
            experts.flush()
            for args, reason, code in [(("--listen", "0.0.0.0:0"), "usage", 2), (("--replicas", "0"), "usage", 2),
                                       (("--tls-cert", experts.name), "usage", 2),
                                       (("--experts", experts.name), "config_value", 3),
                                       (("--model", str(conclave.ROOT / "docs")), "model_file_missing", 4),
                                       (("--state-dir", "/nowhere/state"), "state_dir", 6),
                                       (("--tls-cert", experts.name, "--tls-key", experts.name, "--tls-ca", experts.name),
                                        "tls_config", 3)]:
                with self.subTest(args=args):
                    result = run("router", "--admin-listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", *args)
                    self.assertEqual(result.returncode, code, result)
                    self.assertRegex(result.stderr.splitlines()[-1], f"^error: {reason}: ")


if __name__ == "__main__":
    unittest.main()
