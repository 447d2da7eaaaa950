"""Goal: a Prometheus with the shipped configuration gets an answer to everything that dashboards and rules ask, and what the
heat map shows is what the requests did.

Method: Debian's Prometheus scrapes a router, a frontend and three workers every second while clients ask about pictures and
without them, each with return_routed_experts. Then every expression of deploy/ is asked; the rows by layer and expert are
compared, exactly, with those of the answers; and a worker is killed, which annotations and alerts have to show.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse

import expressions
import prometheus_api
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import cluster as clusters  # noqa: E402
import conclave_process as conclave  # noqa: E402
import routed  # noqa: E402

SHORT = {"__rate_interval": "10s", "__range": "1m", "__interval": "1s"}

# Annotations without data while all is well, and why. The part before the comparison has to have data all the same.
NOTHING_YET = {
    "Worker lost": "no worker has died",
    "New epoch": "all was placed before the first scrape",
    "Plan for balance": "takes half a minute of uneven load",
}


def is_nothing_yet(expression: expressions.Expression) -> bool:
    return expression.kind == "annotation" and expression.where.split(": ")[1] in NOTHING_YET


class Prometheus(prometheus_api.Api):
    """Debian's server with the project's configuration, its addresses and periods replaced. Use as a context manager."""

    def __init__(self, targets: dict[str, list[str]]):
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="conclave-prometheus-")
        folder = pathlib.Path(self._folder.name)
        config = yaml.safe_load((expressions.PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(expressions.PROMETHEUS / path) for path in config["rule_files"]]
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": targets.pop(job["job_name"])}]
        if targets:
            raise AssertionError(f"prometheus.yml has no job for {sorted(targets)}")
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self._log = open(folder / "log", "w+b")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             "--web.listen-address=127.0.0.1:0"], stdout=self._log, stderr=subprocess.STDOUT)
        try:
            clusters.wait_until(self._is_listening, "Prometheus listens", 30)
            clusters.wait_until(lambda: self.status_of("/-/ready")[0] == 200, "Prometheus is ready", 30)
        except BaseException:
            print(self.log())
            self.close()
            raise

    def _is_listening(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"Prometheus ended with {self.process.returncode}")
        found = re.search(r'msg="Listening on" address=127\.0\.0\.1:(\d+)', self.log())
        self.port = int(found[1]) if found else 0
        return self.port > 0

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()
        self._folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def over_ranks(rows: collections.Counter) -> collections.Counter:
    """(index of the MoE layer, expert) -> rows, whichever choice of the row the expert was."""
    sums: collections.Counter = collections.Counter()
    for (layer, expert, _), count in rows.items():
        sums[layer, expert] += count
    return sums


class Asking:
    """Two clients that ask one question after the other, ten in a second each at most, until `stop`."""

    def __init__(self, frontend, bodies: list[dict]):
        self.rows = collections.Counter()
        self.answers = collections.Counter()  # with and without a picture
        self.failures: list[str] = []
        self._frontend = frontend
        self._bodies = bodies
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(client,), daemon=True) for client in range(2)]
        for thread in self._threads:
            thread.start()

    def _run(self, client: int):
        number = client
        while not self._stopping.wait(0.1):
            body = self._bodies[number % len(self._bodies)]
            number += 2
            response = self._frontend.chat(body)
            with self._lock:
                if response.status != 200:
                    self.failures.append(repr(response))
                    continue
                self.rows += routed.rows(response.json()["choices"][0])
                self.answers["image_url" in json.dumps(body["messages"])] += 1

    def stop(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=60)
            if thread.is_alive():
                raise AssertionError("a request hangs")


def questions() -> list[dict]:
    """With and without a picture, in turn."""
    samples = conclave.samples()
    pairs = zip([sample for sample in samples if sample["image"]], [sample for sample in samples if not sample["image"]])
    return [{"model": "demo", "messages": conclave.sample_messages(sample), "temperature": 0, "return_routed_experts": True}
            for pair in pairs for sample in pair]


def call_grpc(address: str):
    """A call, whose counters do not exist before."""
    import grpc
    with grpc.insecure_channel(address) as channel:
        channel.unary_unary("/conclave.v1.InferenceService/GetModel")(b"", timeout=30)


class LiveTest(conclave.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.resources = []
        try:
            # Nobody listens on port 9: the counters of spans are there all the same.
            cls.cluster = clusters.Cluster(workers=3, frontends=1, frontend_args=[
                "--grpc-listen", "127.0.0.1:0", "--otlp-endpoint", "http://127.0.0.1:9"])
            cls.resources.append(cls.cluster)
            cls.cluster.wait_for_replicas(2)
            cls.frontend = cls.cluster.frontends[0]
            cls.prometheus = Prometheus({
                "conclave-router": [address(cls.cluster.router)], "conclave-frontend": [address(cls.frontend)],
                "conclave-worker": [address(worker) for worker in cls.cluster.workers.values()]})
            cls.resources.append(cls.prometheus)
            cls.wait_for_scrapes()
            cls.asking = Asking(cls.frontend, questions())
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        for resource in reversed(cls.resources):
            resource.close()

    @classmethod
    def wait_for_scrapes(cls):
        """Until every process has been scraped after this call."""
        now = time.time()
        # Of a comparison it would be the time of the question.
        clusters.wait_until(lambda: len([0 for _, at in cls.prometheus.ask("timestamp(up)") if at > now]) == 5,
                            "all five are scraped", 20)

    def heat_map_rows(self) -> dict[tuple[int, int], int]:
        """(index of the MoE layer, expert) -> what the counters behind the first heat map say."""
        heat_map = expressions.of_dashboard("experts.json", expressions.dashboards()["experts.json"])[0]
        selector = re.search(r"moe_expert_tokens_total\{[^}]*\}", heat_map.text)[0]
        found = self.prometheus.ask(f"sum by (layer, expert) ({selector})")
        layers = sorted({int(labels["layer"]) for labels, _ in found})
        return {(layers.index(int(labels["layer"])), int(labels["expert"])): int(value) for labels, value in found}

    def chosen_rows(self) -> dict[tuple[int, int, int], int]:
        """(index of the MoE layer, expert, rank) -> what the frontend counted at its gates."""
        found = self.prometheus.ask('sum by (layer, expert, rank) (moe_expert_tokens_total{rank!=""})')
        layers = sorted({int(labels["layer"]) for labels, _ in found})
        return {(layers.index(int(labels["layer"])), int(labels["expert"]), {"top1": 0, "top2": 1}[labels["rank"]]): int(value)
                for labels, value in found if value > 0}

    def resent(self) -> float:
        return sum(value for _, value in self.prometheus.ask('moe_dispatch_calls_total{event!="first"}'))

    def wait_for_alert(self, name: str, state: str):
        clusters.wait_until(lambda: self.prometheus.ask(f'ALERTS{{alertname="{name}",alertstate="{state}"}}'),
                            f"{name} is {state}", 15)

    # In the order of their names: the last ones break the cluster.

    def test_1_everything_that_dashboards_and_rules_ask_has_data(self):
        asked = [expression for expression in expressions.of_dashboards(SHORT) + expressions.of_rules()
                 if expression.kind != "alert"]
        self.assertGreater(len(asked), 120)
        missing: list[expressions.Expression] = []

        def all_have_data() -> bool:
            call_grpc(self.frontend.ready["grpc"])
            missing[:] = [expression for expression in missing or asked
                          if not is_nothing_yet(expression) and not self.prometheus.has_data(expression.text)]
            return not missing

        try:
            clusters.wait_until(all_have_data, "every expression has data", 20)
        except AssertionError:
            self.fail("\n".join(["no data:", *(f"{expression.where}: {expression.text}" for expression in missing)]))
        listed = [expression for expression in asked if is_nothing_yet(expression)]
        self.assertEqual(len(listed), 3 * len(NOTHING_YET))
        for expression in listed:
            self.assertTrue(expression.text.endswith(" > 0"), expression)
            self.assertTrue(self.prometheus.has_data(expression.text.removesuffix(" > 0")), expression)

    def test_2_every_rule_evaluates(self):
        found = [rule for group in self.prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]]
        self.assertEqual(len(found), len(expressions.rules()))
        self.assertEqual([rule for rule in found if rule["health"] != "ok" or rule.get("lastError")], [])
        for expression in expressions.of_rules():
            self.prometheus.ask(expression.text)
        # The demo's loads on three workers are as even as they are.
        firing = {labels["alertname"] for labels, _ in self.prometheus.ask('ALERTS{alertstate="firing"}')}
        self.assertEqual(firing, set())

    def test_3_the_heat_map_shows_what_the_answers_say(self):
        # A call that is sent twice may be computed twice. Where that happened, the next questions are compared.
        counted_before, resent_before = {}, 0.0
        everything: collections.Counter = collections.Counter()
        for _ in range(3):
            clusters.wait_until(lambda: min(self.asking.answers[False], self.asking.answers[True]) >= 20,
                                "20 answers of each kind", 30)
            self.asking.stop()
            self.wait_for_scrapes()
            counted, resent = self.heat_map_rows(), self.resent()
            self.assertEqual(self.asking.failures, [])
            # At the gates every row counts once, whatever becomes of its calls.
            everything += self.asking.rows
            self.assertEqual(self.chosen_rows(), dict(everything))
            answered = over_ranks(self.asking.rows)
            new = {unit: rows - counted_before.get(unit, 0) for unit, rows in counted.items()}
            if new == answered or resent == resent_before:
                break
            self.assertEqual([unit for unit, rows in answered.items() if new[unit] < rows], [], "rows were lost")
            counted_before, resent_before = counted, resent
            type(self).asking = Asking(self.frontend, questions())
        print(f"{self.asking.answers[True]} answers about pictures, {self.asking.answers[False]} without; rows by layer and "
              f"expert: {sorted(new.items())}")
        self.assertEqual(new, dict(answered))
        self.assertEqual(len(new), 8)

    def test_4_loads_over_their_fair_share_have_the_mean_1(self):
        heat_map = expressions.of_dashboard("experts.json", expressions.dashboards()["experts.json"], SHORT)[0]
        by_layer = collections.defaultdict(list)
        for labels, value in self.prometheus.ask(heat_map.text):
            by_layer[labels["layer"]].append(value)
        self.assertEqual(sorted(by_layer), ["00", "02"])
        for values in by_layer.values():
            self.assertEqual(len(values), 4)
            self.assertAlmostEqual(sum(values) / 4, 1, places=9)

    def test_5_a_dead_worker_is_shown(self):
        worker = self.cluster.workers.pop("w2")
        instance = address(worker)
        worker.kill()
        shown = {expression.where: expression.text for expression in expressions.of_dashboards(SHORT)}
        clusters.wait_until(lambda: (self.prometheus.has_data(shown["cluster.json: Worker lost"])
                                     and self.prometheus.has_data(shown["cluster.json: New epoch"])),
                            "the annotations have the loss and the new epoch", 20)
        states = shown["cluster.json: States of the workers: A"]
        clusters.wait_until(lambda: ({"instance": instance}, 0.0) in self.prometheus.ask(states), "the timeline has it", 10)
        self.assertEqual(sorted(value for _, value in self.prometheus.ask(states)), [0, 2, 2])
        self.wait_for_alert("WorkerLost", "firing")
        self.wait_for_alert("WorkerDown", "pending")
        waiting = self.prometheus.ask('ALERTS{alertname="WorkerDown"}')
        self.assertEqual([labels["instance"] for labels, _ in waiting], [instance])

    def test_6_experts_without_a_worker_are_shown(self):
        while self.cluster.workers:
            self.cluster.workers.popitem()[1].kill()
        self.assertEqual(self.frontend.chat(questions()[0]).status, 200)
        self.wait_for_alert("ExpertWithoutReplica", "pending")
        self.wait_for_alert("DegradedTokens", "firing")

    def test_7_a_router_that_is_gone_is_shown(self):
        self.cluster.router.kill()
        self.wait_for_alert("NoRouterLeads", "pending")


def address(process: conclave.Process) -> str:
    return urllib.parse.urlsplit(process.ready["admin"]).netloc


if __name__ == "__main__":
    expressions.need("prometheus")
    unittest.main(verbosity=2)
