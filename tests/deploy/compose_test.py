"""Goal: the compose file starts a whole cluster that drains when it is stopped, and shows nothing that it need not.

Method: docker-compose reads it where it is installed; the rest is read as YAML and compared with what the roles need: ports,
health checks, order of start and stop, grace times, mounts that exist, targets that Prometheus scrapes.
"""

import json
import re
import shlex
import shutil
import unittest

import deploy_files as deploy
import yaml

FILE = deploy.DEPLOY / "compose" / "compose.yaml"


def flag(service: dict, name: str) -> str | None:
    words = shlex.split(service["command"])
    return words[words.index(name) + 1] if name in words else None


class ComposeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.file = yaml.safe_load(FILE.read_text())
        cls.services = cls.file["services"]
        cls.conclave = {name: service for name, service in cls.services.items() if service["image"].startswith("conclave:")}

    def test_docker_compose_reads_it(self):
        if not shutil.which("docker-compose"):
            self.skipTest("no docker-compose")
        result = deploy.run_tool("docker-compose", "-f", FILE, "config")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(set(yaml.safe_load(result.stdout)["services"]), set(self.services))

    def test_who_is_there(self):
        roles = [shlex.split(service["command"])[0] for service in self.conclave.values()]
        self.assertEqual((roles.count("router"), roles.count("worker"), roles.count("frontend")), (1, 3, 2))
        self.assertEqual(set(self.services) - set(self.conclave), {"prometheus", "grafana"})
        names = [flag(service, "--name") for service in self.conclave.values() if flag(service, "--name")]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual({flag(service, "--cluster-id") for service in self.conclave.values()}, {"compose"})

    def test_only_the_loopback_of_the_machine_is_published(self):
        published = {}
        for name, service in self.services.items():
            for port in service.get("ports", []):
                host, outer, inner = port.split(":")
                self.assertEqual(host, "127.0.0.1", name)
                self.assertNotIn(outer, published.values(), name)
                published[name] = outer
                if name in self.conclave:
                    self.assertEqual(inner, flag(service, "--listen").split(":")[1], name)
        self.assertTrue(self.file["networks"]["cluster"]["internal"])
        for name, service in self.conclave.items():
            self.assertEqual("published" in service["networks"], name.startswith("frontend"), name)

    def test_addresses_fit(self):
        for name, service in self.conclave.items():
            self.assertEqual(flag(service, "--admin-listen"), "0.0.0.0:9000", name)
            if name != "router":
                self.assertEqual(flag(service, "--router"), flag(self.services["router"], "--listen"), name)
            if name.startswith("worker"):
                # Not the wildcard: UCX needs one address, and frontends have to be told one.
                self.assertEqual(flag(service, "--listen").split(":")[0], name)

    def test_health_checks_use_what_the_image_has(self):
        dockerfile = (deploy.DEPLOY / "docker" / "Dockerfile").read_text()
        for name, service in self.conclave.items():
            command, path, state = service["healthcheck"]["test"]
            self.assertEqual((command, state), ("CMD", "ready"), name)
            self.assertIn(f" {path}\n", dockerfile)
        for name in ("prometheus", "grafana"):
            self.assertEqual(self.services[name]["healthcheck"]["test"][0], "CMD")

    def test_a_stop_leaves_time_to_drain_and_goes_from_the_clients_to_the_router(self):
        for name, service in self.conclave.items():
            drain = flag(service, "--drain-timeout") or "30s"
            self.assertGreater(int(service["stop_grace_period"].rstrip("s")), int(drain.rstrip("s")) + 10, name)
            needs = set(service.get("depends_on", {}))
            workers = {other for other in self.conclave if other.startswith("worker")}
            expected = {"router": set(), "worker": {"router"}, "frontend": {"router"} | workers}[name.split("-")[0]]
            self.assertEqual(needs, expected, name)

    def test_containers_are_confined(self):
        for name, service in self.conclave.items():
            self.assertTrue(service["read_only"], name)
            self.assertEqual((service["cap_drop"], service["security_opt"]), (["ALL"], ["no-new-privileges:true"]), name)
            if name != "router":
                self.assertRegex(service["shm_size"], r"^\d+gb$", name)

    def test_a_model_can_be_brought(self):
        for name, service in self.conclave.items():
            if name == "router":
                continue
            self.assertIn("${CONCLAVE_MODEL_DIR:-model}:/model:ro", service["volumes"], name)
            # Empty, which counts as not set: the demo.
            self.assertEqual(service["environment"]["CONCLAVE_MODEL"], "${CONCLAVE_MODEL:-}", name)

    def test_mounts_and_volumes_are_there(self):
        for name, service in self.services.items():
            for volume in service.get("volumes", []):
                source = re.sub(r"^\$\{\w+:-(\w+)\}", r"\1", volume).split(":")[0]
                if not source.startswith("."):
                    self.assertIn(source, self.file["volumes"], name)
                elif (deploy.DEPLOY / "grafana" / "provisioning").exists():
                    self.assertTrue((FILE.parent / source).resolve().exists(), f"{name}: {source}")

    def test_grafana_finds_its_dashboards(self):
        folder = deploy.DEPLOY / "grafana" / "provisioning" / "dashboards"
        if not folder.exists():
            self.skipTest("no deploy/grafana/provisioning")
        mounts = [volume.split(":")[1] for volume in self.services["grafana"]["volumes"]]
        for path in folder.iterdir():
            for provider in yaml.safe_load(path.read_text())["providers"]:
                self.assertIn(provider["options"]["path"], mounts, path.name)

    def test_prometheus_scrapes_every_process(self):
        config = deploy.DEPLOY / "prometheus" / "prometheus.yml"
        if not config.exists():
            self.skipTest("no deploy/prometheus/prometheus.yml")
        found = {target for job in yaml.safe_load(config.read_text())["scrape_configs"]
                 for entry in job.get("static_configs", []) for target in entry["targets"]}
        wanted = {f"{name}:9000" for name in self.conclave}
        self.assertLessEqual(wanted, found, json.dumps(sorted(found)))


if __name__ == "__main__":
    deploy.main()
