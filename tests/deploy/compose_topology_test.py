"""Goal: the cluster of the compose file starts, answers, is watched, and loses nothing when a worker is killed or stopped.

Method: compose.yaml itself, without docker: a machine of namespaces per service does what the file says (compose_project.py).
Debian's Prometheus is in place of its image, with the file's arguments. Grafana is not in Debian: only its mounts are looked at.
"""

import re
import shutil
import sys
import time
import unittest
import urllib.parse

import deploy_files as deploy
import cluster
import machines
import namespaces
from compose_project import FILE, Project, seconds
import yaml

sys.path.insert(0, str(deploy.ROOT / "tests" / "monitoring"))
import expressions  # noqa: E402
import prometheus_api  # noqa: E402

conclave = deploy.conclave
# Metrics of a gate, of an engine and of links.
ASKED = ("moe_expert_tokens_total", "conclave_generation_tokens_total", "moe_cluster_links")


class Api:
    def __init__(self, address: str):
        self.url = f"http://{address}"

    def chat(self, body: dict, timeout: float = 60) -> conclave.Response:
        return conclave.http_request(self.url, "POST", "/v1/chat/completions", body, timeout=timeout)


class ComposeTopologyTest(unittest.TestCase):
    def ports(self, project: Project, prefix: str) -> list[str]:
        return [port.rpartition(":")[0] for name, service in project.services.items() if name.startswith(prefix)
                for port in service["ports"]]

    def test_the_whole_life_of_the_cluster(self):
        names = [name for name in yaml.safe_load(FILE.read_text())["services"] if name != "grafana"]
        with Project(names) as project:
            try:
                self.live(project)
            except BaseException:
                for name in names:
                    print(f"--- {name}\n{project.log(name)[-3000:] if name in project.logs else 'not started'}")
                raise

    def live(self, project: Project):
        begin = time.monotonic()
        project.up()
        took = time.monotonic() - begin
        apis = [Api(port) for port in self.ports(project, "frontend")]
        self.assertEqual(len(apis), 2)
        samples = conclave.samples()[:6]
        load = cluster.Load(apis, cluster.bodies_of(samples), clients=4)
        try:
            load.wait_for(8)
            # One that was slow to answer just after the start is "suspect" for a while.
            cluster.wait_until(lambda: len(re.findall(r"\blive\b", project.run(
                "router", "conclave", "cluster", "status", "--router", "router:7000"))) == 3, "three workers are live", 30)
            self.assertIn('links_by_channel{channel="ucx"} 3', project.run("frontend-1", "bash", "-c", self.metrics_of()))
            self.kill_a_worker(project, load)
            watched = self.wait_for_prometheus(project)
            drained = self.stop_a_worker(project, load)
        finally:
            load.stop()
        self.assertEqual(load.failures, [])
        answers = {}
        for index, key in load.answers:
            self.assertEqual(answers.setdefault(index, key), key, "the same question, another answer")
        stopped = self.stop_all(project)
        print(f"up {took:.0f} s, watched {watched:.0f} s, drained {drained:.2f} s, down {stopped:.0f} s, {len(load.answers)} answers ",
              end="")

    @staticmethod
    def metrics_of() -> str:
        # The image has no curl; the health check of the image opens its connection like this.
        return r"exec 3<>/dev/tcp/127.0.0.1/9000; printf 'GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n' >&3; cat <&3"

    def kill_a_worker(self, project: Project, load: cluster.Load):
        container = project.containers["worker-2"]
        container.kill()
        load.wait_for(8)
        cluster.wait_until(lambda: container.restarts == 1, "worker-2 is started again", 10)
        project.wait_healthy("worker-2")
        self.assertEqual({name: other.restarts for name, other in project.containers.items() if other.restarts}, {"worker-2": 1})

    def wait_for_prometheus(self, project: Project) -> float:
        """All targets are up, and dashboards have data; the time until then."""
        begin = time.monotonic()
        (port,) = self.ports(project, "prometheus")
        api = prometheus_api.Api(urllib.parse.urlsplit(f"//{port}").port)
        wanted = {f"{name}:9000" for name in project.services if name != "prometheus"}

        def are_up() -> bool:
            targets = api.get("/api/v1/targets")["activeTargets"]
            return {urllib.parse.urlsplit(target["scrapeUrl"]).netloc for target in targets if target["health"] == "up"} == wanted
        cluster.wait_until(are_up, f"Prometheus sees {sorted(wanted)}", 60)
        self.assertGreater(len(api.get("/api/v1/rules")["groups"]), 1, "rules are loaded from where the file mounts them")
        asked = [expression for expression in expressions.of_dashboards()
                 if expression.kind != "annotation" and any(name in expression.text for name in ASKED)]
        self.assertGreater(len(asked), 5)
        left = {expression.where: expression.text for expression in asked}

        def have_data() -> bool:
            for where in [where for where, text in left.items() if api.has_data(text)]:
                del left[where]
            return not left
        with self.subTest("dashboards"):
            try:
                cluster.wait_until(have_data, "panels have data", 60)
            except AssertionError:
                self.fail(f"no data: {left}")
        return time.monotonic() - begin

    def stop_a_worker(self, project: Project, load: cluster.Load) -> float:
        """SIGTERM is a drain: its experts are on the others, well within the grace time, and nobody notices."""
        code, took = project.containers["worker-1"].stop()
        self.assertEqual(code, 0, project.log("worker-1")[-2000:])
        self.assertLess(took, 25, "it does not wait for the end of its --drain-timeout when others can take over")
        load.wait_for(8)
        return took

    def stop_all(self, project: Project) -> float:
        begin = time.monotonic()
        ended = project.down()
        for name, (code, took) in ended.items():
            grace = seconds(project.services[name].get("stop_grace_period", "10s"))
            self.assertEqual(code, 0, f"{name}: {project.log(name)[-2000:]}")
            self.assertLess(took, grace, name)
        return time.monotonic() - begin

    def test_grafana_is_given_what_it_reads(self):
        """Its own names: /etc/grafana/provisioning is its default, dashboards are where the provider says, and Prometheus is
        a service on one of its networks."""
        file = yaml.safe_load(FILE.read_text())
        grafana = file["services"]["grafana"]
        mounts = {target: (FILE.parent / source).resolve() for source, target, *_ in
                  (volume.split(":") for volume in grafana["volumes"]) if source.startswith(".")}
        provisioning = mounts["/etc/grafana/provisioning"]
        for folder in ("datasources", "dashboards"):
            self.assertTrue(list((provisioning / folder).glob("*.yaml")), folder)
        (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
        url = urllib.parse.urlsplit(source["url"])
        self.assertTrue(set(file["services"][url.hostname]["networks"]) & set(grafana["networks"]))
        self.assertTrue(any(port.endswith(f":{url.port}") for port in file["services"][url.hostname]["ports"]))
        (provider,) = yaml.safe_load((provisioning / "dashboards" / "conclave.yaml").read_text())["providers"]
        self.assertTrue(list(mounts[provider["options"]["path"]].glob("*.json")))


if __name__ == "__main__":
    reason = machines.why_not() or next((f"no {tool}" for tool in ("prometheus", "wget") if not shutil.which(tool)), None)
    if reason:
        deploy.skip(reason)
    namespaces.enter()
    deploy.main()
