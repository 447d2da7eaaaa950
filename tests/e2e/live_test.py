"""Goal: the live picture (docs/live.md) tells the truth, over HTTP and over the control address, and nobody changes a cluster
over HTTP without the key.

Method: real processes. Counters are compared, exactly, with what the answers say of their gates; a worker is killed under load
and the incident compared with what happened; every refusal is provoked.
"""

import collections
import http.client
import json
import os
import pathlib
import tempfile
import threading
import time
import unittest
import urllib.parse

import cluster as clusters
import conclave_process as conclave
import routed

KEY = "a-key-of-operators-0123456789"


def get(admin: str, path: str):
    response = conclave.http_request(admin, "GET", path)
    if response.status != 200:
        raise AssertionError(f"GET {path}: {response}")
    return response.json()


class Events:
    """A reader of /moe/events: the picture, kept up to date by deltas. Use as a context manager."""

    def __init__(self, admin: str):
        url = urllib.parse.urlparse(admin)
        self._connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
        self._connection.request("GET", "/moe/events")
        self._response = self._connection.getresponse()
        if self._response.status != 200 or not self._response.headers["Content-Type"].startswith("text/event-stream"):
            raise AssertionError(f"{self._response.status} {self._response.headers}")
        self.picture: dict = {}
        self.bytes_of_deltas: list[int] = []
        self.read()

    def read(self):
        """One message."""
        event, data = "", ""
        while True:
            line = self._response.readline().decode()
            if not line:
                raise AssertionError("the stream has ended")
            if line == "\n":
                break
            key, _, value = line.rstrip("\n").partition(": ")
            if key == "event":
                event = value
            elif key == "data":
                data = value
        message = json.loads(data)
        if event == "snapshot":
            self.picture = message
            return
        if event != "delta" or message["seq"] != self.picture["seq"] + 1:
            raise AssertionError(f"{event} {message['seq']} behind {self.picture['seq']}")
        self.bytes_of_deltas.append(len(data))
        self._apply(message)

    def _apply(self, delta: dict):
        if delta.get("model"):
            experts = sum(layer["experts"] for layer in delta["model"]["layers"])
            self.picture.update(rows=[0] * experts * 8, weights=[0] * experts * 2, probabilities=[0] * experts)
        for key in ("rows", "weights", "probabilities"):
            changes = delta.pop(key, [])
            for index, value in zip(changes[::2], changes[1::2]):
                self.picture[key][index] = value
        for key in ("workers", "incidents"):
            entries = {entry["id"]: entry for entry in self.picture[key]}
            entries.update({entry["id"]: entry for entry in delta.pop(key, [])})
            self.picture[key] = [entries[id] for id in sorted(entries)]
        gone = delta.pop("workers_gone", [])
        self.picture["workers"] = [worker for worker in self.picture["workers"] if worker["id"] not in gone]
        self.picture["events"] = (self.picture["events"] + delta.pop("events", []))[-500:]
        self.picture.update(delta)

    def wait_until(self, condition, what: str, timeout: float = 30):
        deadline = time.monotonic() + timeout
        while not condition(self.picture):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout} s: {what}")
            self.read()

    def close(self):
        self._connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def chosen(picture: dict, modality: int | None = None) -> dict[tuple[int, int, int], int]:
    """(index of the MoE layer, expert, rank) -> rows, of a picture."""
    rows: collections.Counter = collections.Counter()
    unit = 0
    for layer, spec in enumerate(picture["model"]["layers"]):
        for expert in range(spec["experts"]):
            for rank in range(2):
                for phase in range(2):
                    for m in range(2):
                        if modality in (None, m):
                            rows[layer, expert, rank] += picture["rows"][unit * 8 + rank * 4 + phase * 2 + m]
            unit += 1
    return {key: value for key, value in rows.items() if value > 0}


def questions(count: int) -> list[dict]:
    """With and without a picture, in turn."""
    samples = conclave.samples()
    pairs = zip([sample for sample in samples if sample["image"]], [sample for sample in samples if not sample["image"]])
    return [{"model": "demo", "messages": conclave.sample_messages(sample), "temperature": 0, "return_routed_experts": True,
             "conclave": {"return_gate_probabilities": True}}
            for pair in pairs for sample in pair][:count]


def total(counters) -> collections.Counter:
    sums: collections.Counter = collections.Counter()
    for counter in counters:
        sums += counter
    return sums


class KeyFile:
    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="conclave-key-")
        self.path = pathlib.Path(self._folder.name) / "admin.key"
        self.path.write_text(KEY + "\n", encoding="ascii")
        os.chmod(self.path, 0o600)

    def close(self):
        self._folder.cleanup()


class RouterTest(conclave.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.key = KeyFile()
        cls.cluster = clusters.Cluster(workers=3, frontends=1, router_args=["--admin-key-file", str(cls.key.path)])
        cls.cluster.wait_for_replicas(2)
        cls.admin = cls.cluster.router.ready["admin"]
        cls.frontend = cls.cluster.frontends[0]

    @classmethod
    def tearDownClass(cls):
        cls.cluster.close()
        cls.key.close()

    def post(self, path: str, body: dict, key: str | None = KEY, headers: dict[str, str] | None = None):
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
        return conclave.http_request(self.admin, "POST", path, json.dumps(body).encode(), headers)

    # In the order of their names: the last one breaks the cluster.

    def test_1_rows_are_those_of_the_answers(self):
        with Events(self.admin) as events:
            events.wait_until(lambda picture: any(f["is_reporting"] for f in picture["frontends"]), "the frontend reports", 10)
            before = chosen(events.picture)
            before_image = chosen(events.picture, 1)
            choices = []
            for body in questions(24):
                response = self.frontend.chat(body)
                self.assertEqual(response.status, 200, response)
                choices.append(response.json()["choices"][0])
            expected = total(map(routed.rows, choices))
            expected_image = total(map(routed.image_rows, choices))
            self.assertGreater(sum(expected_image.values()), 0)
            expected += collections.Counter(before)
            expected_image += collections.Counter(before_image)
            events.wait_until(lambda picture: chosen(picture) == dict(expected), "the rows of all answers", 10)
            self.assertEqual(chosen(events.picture, 1), dict(expected_image))
            # The same by another road: what the frontend says at /metrics, and what a fresh reader is told.
            snapshot = get(self.admin, "/moe/stats")
            self.assertEqual(snapshot["rows"], events.picture["rows"])
            self.assertEqual(self.metrics_rows(), dict(expected))
            paths = {kind: snapshot["pathways"][kind] for kind in ("text", "image")}
            self.assertEqual(paths["text"]["rows"] + paths["image"]["rows"],
                             sum(rows for (layer, _, rank), rows in expected.items() if layer == 0 and rank == 0))
            for kind in paths.values():
                self.assertEqual(sum(path["rows"] for path in kind["top"]) + kind["other"], kind["rows"])
            calls = sum(worker["rows"] for worker in snapshot["workers"])
            self.assertGreaterEqual(calls, paths["text"]["rows"] + paths["image"]["rows"])
            self.assertLess(max(events.bytes_of_deltas), 30_000)

    def metrics_rows(self) -> dict[tuple[int, int, int], int]:
        text = conclave.http_request(self.frontend.ready["admin"], "GET", "/metrics").body.decode()
        rows: collections.Counter = collections.Counter()
        for line in text.splitlines():
            if line.startswith("moe_expert_tokens_total{"):
                name, _, value = line.rpartition(" ")
                labels = dict(pair.split("=") for pair in name[name.index("{") + 1:-1].split(","))
                labels = {key: value.strip('"') for key, value in labels.items()}
                rows[int(labels["layer"]), int(labels["expert"]), {"top1": 0, "top2": 1}[labels["rank"]]] += int(float(value))
        layers = sorted({layer for layer, _, _ in rows})
        return {(layers.index(layer), expert, rank): value for (layer, expert, rank), value in rows.items() if value > 0}

    def test_2_gate_probabilities_belong_to_the_choices(self):
        body = questions(1)[0]
        body["messages"][-1]["content"] = body["messages"][-1]["content"]
        choice = self.frontend.chat(body).json()["choices"][0]
        (positions, layers, experts), descr, probabilities = routed.npy(choice["conclave"]["gate_probabilities"])
        (_, _, top_k), _, routes = routed.npy(choice["routed_experts"])
        self.assertEqual((descr, layers, experts, top_k), ("<f4", 2, 4, 2))
        compared = 0
        for row in range(positions * layers):
            values = probabilities[row * experts:(row + 1) * experts]
            first, second = routes[row * top_k:(row + 1) * top_k]
            if first < 0:
                continue
            self.assertAlmostEqual(sum(values), 1, places=5)
            self.assertEqual(values[first], max(values))
            self.assertEqual(values[second], sorted(values)[-2])
            compared += 1
        self.assertGreater(compared, 40)

    def test_3_a_quiet_cluster_has_little_to_say(self):
        with Events(self.admin) as events:
            for _ in range(2):
                events.read()
            del events.bytes_of_deltas[:]
            for _ in range(4):
                events.read()
            self.assertLess(sum(events.bytes_of_deltas) / 4, 2_000)

    def test_4_the_page_comes_with_its_headers(self):
        for path, kind in (("/", "text/html"), ("/app/main.js", "text/javascript"), ("/app/page.css", "text/css")):
            response = conclave.http_request(self.admin, "GET", path)
            self.assertEqual(response.status, 200, path)
            self.assertTrue(response.headers["content-type"].startswith(kind), response.headers)
            self.assertTrue(response.headers["content-security-policy"].startswith("default-src 'self'"))
        self.assertEqual(conclave.http_request(self.admin, "GET", "/app/../etc").status, 404)
        self.assertEqual(conclave.http_request(self.admin, "GET", "/moe/nothing").status, 404)

    def test_5_the_chat_goes_through(self):
        models = get(self.admin, "/v1/models")
        self.assertEqual([model["id"] for model in models["data"]], ["demo"])
        body = questions(2)[1]
        direct = self.frontend.chat(body).json()
        through = self.post("/v1/chat/completions", body, key=None)
        self.assertEqual(through.status, 200, through)
        self.assertEqual(through.json()["choices"][0]["message"], direct["choices"][0]["message"])
        streamed = self.post("/v1/chat/completions", {**body, "stream": True}, key=None)
        self.assertTrue(streamed.headers["content-type"].startswith("text/event-stream"), streamed.headers)
        self.assertTrue(streamed.body.rstrip().endswith(b"data: [DONE]"))
        refused = self.post("/v1/chat/completions", {"model": "demo"}, key=None)
        self.assertEqual(refused.status, 400)

    def test_6_nobody_changes_anything_without_the_key(self):
        drain = {"worker": "w0"}
        self.assertEqual(self.post("/moe/drain", drain, key=None).status, 401)
        self.assertEqual(self.post("/moe/drain", drain, key=KEY + "x").status, 401)
        foreign = self.post("/moe/drain", drain, headers={"Origin": "http://evil.example"})
        self.assertEqual((foreign.status, foreign.json()["error"]["code"]), (403, "cross_origin"))
        form = self.post("/moe/drain", drain, headers={"Content-Type": "text/plain"})
        self.assertEqual((form.status, form.json()["error"]["code"]), (415, "content_type_unsupported"))
        for path, body, status, code in (
                ("/moe/drain", {"worker": "nobody"}, 404, "worker_unknown"),
                ("/moe/drain", {}, 400, "message_field"),
                ("/moe/replicate", {"layer": 0, "expert": 99, "replicas": 2}, 404, "expert_unknown"),
                ("/moe/replicate", {"layer": -1, "expert": 0, "replicas": 2}, 400, "message_field"),
                ("/moe/rebalance", {"dry_run": 1}, 400, "message_field")):
            response = self.post(path, body)
            self.assertEqual((response.status, response.json()["error"]["code"]), (status, code), path)
        states = {worker["name"]: worker["state"] for worker in get(self.admin, "/moe/stats")["workers"]}
        self.assertEqual(states, {"w0": "live", "w1": "live", "w2": "live"})

    def test_7_changes_with_the_key(self):
        safe = get(self.admin, "/moe/kill-safe?worker=w0")
        self.assertEqual((safe["is_safe"], safe["at_risk"]), (True, []))
        # What would be done may be seen by everybody.
        plan = self.post("/moe/rebalance", {"dry_run": True}, key=None)
        self.assertEqual(plan.status, 200, plan)
        self.assertIn("imbalance_before", plan.json())
        with Events(self.admin) as events:
            def state(picture: dict) -> str:
                return {worker["name"]: worker["state"] for worker in picture["workers"]}["w0"]
            self.assertEqual(self.post("/moe/drain", {"worker": "w0"}).status, 200)
            events.wait_until(lambda picture: state(picture) == "drained", "w0 is drained")
            self.assertEqual(self.post("/moe/undrain", {"worker": "w0"}).status, 200)
            events.wait_until(lambda picture: state(picture) in ("live", "joining"), "w0 is back")
            events.wait_until(lambda picture: picture["cluster"]["replicas_lowest"] >= 2 and state(picture) == "live",
                              "w0 serves again", 60)
            kinds = [event["kind"] for event in events.picture["events"] if event["name"] == "w0"]
            for kind in ("joined", "live", "draining", "drained", "undrained"):
                self.assertIn(kind, kinds)

    def test_8_a_kill_is_an_incident(self):
        stopping = threading.Event()
        failures: list[str] = []
        bodies = questions(16)

        def ask(client: int):
            number = client
            while not stopping.is_set():
                response = self.frontend.chat(bodies[number % len(bodies)])
                number += 1
                if response.status != 200:
                    failures.append(repr(response))

        threads = [threading.Thread(target=ask, args=(client,), daemon=True) for client in range(3)]
        with Events(self.admin) as events:
            for thread in threads:
                thread.start()
            events.read()
            events.read()
            before = events.picture["cluster"]["epoch"]
            killed_at = time.time()
            self.cluster.workers.pop("w2").kill()
            # On a busy machine another worker may be suspected for a moment.
            def of_w2(picture: dict) -> list[dict]:
                return [incident for incident in picture["incidents"] if incident["name"] == "w2" and incident["kind"] == "dead"]
            events.wait_until(lambda picture: [i for i in of_w2(picture) if i["restored_after"] is not None],
                              "the incident is over", 30)
            stopping.set()
            for thread in threads:
                thread.join(timeout=60)
            for _ in range(4):
                events.read()
            incident, = of_w2(events.picture)
            print(json.dumps(incident))
            self.assertEqual(failures, [])
            self.assertEqual(incident["requests_failed"], 0)
            self.assertLess(abs(incident["begin"] - killed_at), 1.0)
            self.assertLess(incident["detected_after"], 2.0)
            self.assertGreaterEqual(incident["restored_after"], incident["detected_after"])
            self.assertGreaterEqual(incident["epoch_before"], before)
            self.assertGreater(incident["epoch_after"], incident["epoch_before"])
            worker, = [worker for worker in events.picture["workers"] if worker["name"] == "w2"]
            self.assertEqual(worker["state"], "dead")
            self.assertEqual(incident["rows_resent"] > 0, sum(incident["recovery"]) > 0)
            self.assertIn("dead", [event["kind"] for event in events.picture["events"] if event["name"] == "w2"])


class ServeTest(conclave.TestCase):
    def test_one_process_shows_itself(self):
        with conclave.Server("--workers", "2") as server, Events(server.ready["admin"]) as events:
            choices = [server.chat(body).json()["choices"][0] for body in questions(6)]
            expected = total(map(routed.rows, choices))
            events.wait_until(lambda picture: picture.get("model") and chosen(picture) == dict(expected), "the rows", 10)
            self.assertEqual(events.picture["role"], "serve")
            self.assertEqual([worker["state"] for worker in events.picture["workers"]], ["live", "live"])
            self.assertEqual(conclave.http_request(server.ready["admin"], "GET", "/").status, 200)
            self.assertEqual(conclave.http_request(server.ready["admin"], "GET", "/moe/status").status, 409)

    def test_spawned_workers_are_shown(self):
        key = KeyFile()
        try:
            with conclave.Server("--spawn", "2", "--threads", "1", "--admin-key-file", str(key.path)) as server:
                admin = server.ready["admin"]
                with Events(admin) as events:
                    choices = [server.chat(body).json()["choices"][0] for body in questions(6)]
                    expected = total(map(routed.rows, choices))
                    events.wait_until(lambda picture: picture.get("model") and chosen(picture) == dict(expected), "rows", 10)
                    self.assertEqual({worker["name"] for worker in events.picture["workers"]}, {"worker-0", "worker-1"})
                self.assertEqual(get(admin, "/moe/kill-safe?worker=worker-0")["name"], "worker-0")
                self.assertTrue(get(admin, "/moe/stats")["admin"]["is_enabled"])
        finally:
            key.close()


class KeyTest(conclave.TestCase):
    def test_bad_key_files_are_refused(self):
        key = KeyFile()
        try:
            os.chmod(key.path, 0o604)
            done = conclave.run("router", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
                                "--admin-key-file", str(key.path))
            self.assertEqual(done.returncode, 3)
            self.assertIn("error: admin_key: ", done.stderr)
            os.chmod(key.path, 0o600)
            key.path.write_text("short\n", encoding="ascii")
            done = conclave.run("serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
                                "--admin-key-file", str(key.path))
            self.assertEqual(done.returncode, 3)
            self.assertIn("16 to 512", done.stderr)
        finally:
            key.close()


if __name__ == "__main__":
    unittest.main(verbosity=2)
