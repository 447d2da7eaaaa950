"""Goal: the chart renders to sound Kubernetes objects, whatever its values are, and refuses values that it does not know.

Method: Helm itself (helm_python) lints and renders it with several sets of values; kubernetes_validate checks every built-in
object strictly against the schemas of two releases; objects of operators are checked against the fields that they have; the
commands of the pods are given to the real binary; and what must hold between objects (probes, grace times, ports, policies,
selectors) is checked on what came out.
"""

import json
import re
import shlex
import tempfile
import unittest

import deploy_files as deploy
import yaml

try:
    import helm_python
    import kubernetes_validate
except ImportError as error:
    deploy.skip(f"no {error.name}; tools/test.sh installs it from tests/requirements.txt")

KUBERNETES = ("1.28", "1.34")
MODEL = {"path": "/model/stablelm", "volume": {"persistentVolumeClaim": {"claimName": "checkpoints", "readOnly": True}}}
ISSUER = {"enabled": True, "issuerRef": {"name": "conclave-ca"}}
VALUES = {
    "default": {},
    "everything": {
        "model": MODEL, "clusterId": "prod", "channel": "ucx", "trustedNetwork": True,
        "image": {"repository": "registry.example.org/conclave", "tag": "1.2.3", "pullSecrets": [{"name": "registry"}]},
        "frontend": {"autoscaling": {"enabled": True, "targetWaitingRequests": 5}, "grpc": {"enabled": True, "readinessProbe": True},
                     "drainSeconds": 120, "preStopSeconds": 15, "kvMemory": "4GiB", "threads": 4,
                     "nodeSelector": {"pool": "cpu"}, "tolerations": [{"key": "cpu", "operator": "Exists"}],
                     "priorityClassName": "serving", "podAnnotations": {"a": "b"}, "podLabels": {"team": "vision"},
                     "service": {"type": "LoadBalancer", "annotations": {"a": "b"}}},
        "worker": {"drainSeconds": 90, "memory": "6GiB", "extraArgs": ["--core-dumps"],
                   "extraEnv": [{"name": "UCX_LOG_LEVEL", "value": "info"}]},
        "networkPolicy": {"apiFrom": [{"namespaceSelector": {"matchLabels": {"team": "edge"}}}],
                          "metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]},
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}, "prometheusRule": {"enabled": True},
        "grafana": {"dashboards": {"enabled": True}}, "keda": {"enabled": True},
    },
    "tls": {"tls": {"enabled": True}, "model": MODEL, "frontend": {"grpc": {"enabled": True}}},
    "tls_cert_manager": {"tls": {"enabled": True, "certManager": ISSUER, "secrets": {"router": "mine"}}},
    "two_routers": {"router": {"replicas": 2, "etcd": {"endpoints": ["etcd:2379"], "lease": "5s"}},
                    "networkPolicy": {"enabled": False}, "trustedNetwork": False},
    "no_volumes": {"router": {"persistence": {"enabled": False}}, "frontend": {"rescueMemory": "0B"}},
    "names": {"fullnameOverride": "moe", "nameOverride": "experts", "clusterDomain": "k8s.example.org"},
}
# Fields of objects that Kubernetes itself does not know, as far as the chart uses them: {} stands for any value.
ANY = {}
OPERATORS = {
    "PodMonitor": {"selector": {"matchLabels": ANY}, "podMetricsEndpoints": [
        {"port": ANY, "path": ANY, "interval": ANY, "relabelings": [{"sourceLabels": ANY, "targetLabel": ANY, "replacement": ANY}]}]},
    "PrometheusRule": {"groups": [{"name": ANY, "interval": ANY, "rules": [
        {"record": ANY, "alert": ANY, "expr": ANY, "for": ANY, "labels": ANY, "annotations": ANY}]}]},
    "ScaledObject": {
        "scaleTargetRef": {"apiVersion": ANY, "kind": ANY, "name": ANY}, "minReplicaCount": ANY, "maxReplicaCount": ANY,
        "pollingInterval": ANY, "cooldownPeriod": ANY, "fallback": {"failureThreshold": ANY, "replicas": ANY},
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": ANY}},
        "triggers": [{"type": ANY, "metricType": ANY, "metadata": {"serverAddress": ANY, "query": ANY, "threshold": ANY}}]},
    "Certificate": {"secretName": ANY, "issuerRef": {"name": ANY, "kind": ANY}, "duration": ANY,
                    "privateKey": {"algorithm": ANY, "size": ANY}, "usages": ANY, "uris": ANY, "dnsNames": ANY},
}


def unknown_fields(value, shape, path="spec"):
    if shape == ANY:
        return
    if isinstance(shape, list):
        for index, part in enumerate(value):
            yield from unknown_fields(part, shape[0], f"{path}[{index}]")
        return
    for key, part in value.items():
        if key not in shape:
            yield f"{path}.{key}"
        else:
            yield from unknown_fields(part, shape[key], f"{path}.{key}")


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def values_of(words: list[str]) -> dict:
    """Of the words --set of a command line."""
    values: dict = {}
    for flag, setting in zip(words, words[1:]):
        if flag == "--set":
            path, _, value = setting.partition("=")
            *outer, last = path.split(".")
            place = values
            for key in outer:
                place = place.setdefault(key, {})
            place[last] = yaml.safe_load(value)
    return values


class HelmTest(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.chart = helm_python.Chart.load(deploy.CHART)
        cls.addClassCleanup(cls.chart.close)
        cls.stage = deploy.Stage()
        cls.addClassCleanup(cls.stage.close)
        cls.rendered = {name: cls.render(values) for name, values in VALUES.items()}

    @classmethod
    def render(cls, values) -> dict:
        """Objects by (kind, name)."""
        objects = {}
        for path, text in cls.chart.render(values, name="prod", namespace="ml").items():
            if path.endswith(".txt"):
                continue
            for item in yaml.safe_load_all(text):
                if item:
                    key = item["kind"], item["metadata"]["name"]
                    if key in objects:
                        raise AssertionError(f"twice: {key}")
                    objects[key] = item
        return objects

    def pods(self):
        for name, objects in self.rendered.items():
            for (kind, _), item in objects.items():
                if kind in ("Deployment", "StatefulSet"):
                    spec = item["spec"]["template"]["spec"]
                    yield f"{name}: {item['metadata']['name']}", item, spec, spec["containers"][0]

    def test_the_guides_commands(self):
        """Values that the chart has, and objects that it makes."""
        text = deploy.GUIDE.read_text(encoding="utf-8").partition("\n## Kubernetes\n")[2].partition("\n## ")[0]
        lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if re.match(r" {4,6}\w", line)]
        self.assertGreater(len(lines), 6)
        with_tls = self.rendered["tls"]
        tried = set()
        for line in lines:
            words = shlex.split(line)
            tried.add(words[0])
            with self.subTest(line):
                if words[0] == "helm":
                    self.assertEqual(words[2:4], ["prod", "deploy/helm/conclave"])
                    self.assertEqual(words[words.index("--namespace") + 1], "ml")
                    self.assertTrue(self.render(values_of(words)))
                    self.assertEqual(helm_python.lint(deploy.CHART, values_of(words))["errors"], [])
                elif words[0] == "kubectl":
                    self.assertEqual(words[1:3], ["-n", "ml"])
                    self.assertEqual(self.why_no_kubectl(words[3:], with_tls), None)
                elif words[0] == "DAYS=365":
                    with tempfile.TemporaryDirectory(prefix="conclave-guide-") as folder:
                        words[words.index("tls")] = folder
                        made = deploy.run_tool(deploy.ROOT / words[1], *words[2:])
                        self.assertEqual(made.returncode, 0, made.stderr)
                    router = next(arg.partition("=")[2] for arg in with_tls["StatefulSet", "prod-conclave-worker"]["spec"]["template"]
                                  ["spec"]["containers"][0]["args"] if arg.startswith("--router="))
                    self.assertEqual(words[-1], "*." + router.partition(".")[2].rpartition(":")[0])
                else:
                    self.fail("neither helm, kubectl nor issue.sh")
        self.assertEqual(tried, {"helm", "kubectl", "DAYS=365"})

    def why_no_kubectl(self, words: list[str], objects: dict) -> str | None:
        """What of the chart a command names that there is not; None: nothing."""
        kinds = {"statefulset": "StatefulSet", "deployment": "Deployment", "svc": "Service"}
        if words[:2] == ["port-forward", "pod/prod-conclave-router-0"]:
            spec = objects["StatefulSet", "prod-conclave-router"]["spec"]["template"]["spec"]
            ports = [port["containerPort"] for port in spec["containers"][0]["ports"]]
            return None if int(words[2].partition(":")[2]) in ports else words[2]
        if words[0] in ("rollout", "port-forward"):
            kind, _, name = words[2 if words[0] == "rollout" else 1].partition("/")
            found = objects.get((kinds[kind], name))
            if found is not None and words[0] == "port-forward":
                port = int(words[2].partition(":")[2])
                return None if port in [each["port"] for each in found["spec"]["ports"]] else f"port {port}"
            return None if found is not None else name
        if words[0] == "exec":
            name, _, number = words[1].rpartition("-")
            found = objects.get(("StatefulSet", name))
            return None if found and int(number) < found["spec"]["replicas"] and words[2:4] == ["--", "conclave"] else words[1]
        if words[:3] == ["create", "secret", "generic"]:
            secrets = {volume["secret"]["secretName"]: volume["secret"] for item in objects.values() if "template" in item["spec"]
                       for volume in item["spec"]["template"]["spec"]["volumes"] if "secret" in volume}
            keys = {word.partition("=")[2].partition("=")[0] for word in words[4:]}
            return None if words[3] in secrets and keys == {"tls.crt", "tls.key", "ca.crt"} else f"{words[3]}: {keys}"
        return words[0]

    def test_the_admin_listener_stays_inside(self):
        """Metrics, health and the page have no authentication: no Service has their port, policies name who may come."""
        for name, objects in self.rendered.items():
            for (kind, found), item in objects.items():
                if kind == "Service":
                    self.assertNotIn("admin", [port["targetPort"] for port in item["spec"]["ports"]], f"{name}: {found}")
                if kind in ("Ingress", "HTTPRoute"):
                    self.fail(f"{name}: {found}: who publishes it decides what")

    def test_lint(self):
        for name, values in VALUES.items():
            found = helm_python.lint(deploy.CHART, values)
            bad = [message for message in found["messages"] if message["severity"] > 1]
            self.assertEqual((bad, found["errors"]), ([], []), name)

    def test_every_object_is_valid(self):
        count = 0
        for name, objects in self.rendered.items():
            self.assertGreater(len(objects), 5, name)
            for (kind, _), item in objects.items():
                with self.subTest(values=name, object=item["metadata"]["name"], kind=kind):
                    if kind in OPERATORS:
                        self.assertEqual(list(unknown_fields(item["spec"], OPERATORS[kind])), [])
                        continue
                    for version in KUBERNETES:
                        kubernetes_validate.validate(item, version, strict=True)
                    count += 1
        print(f"{count} objects valid")

    def test_commands(self):
        commands = set()
        for where, _, _, container in self.pods():
            self.assertNotIn("command", container, where)
            commands.add((container["args"][0], tuple(container["args"])))
            with self.subTest(where):
                deploy.try_command(self, self.stage, container["args"], where=where)
        self.assertEqual({role for role, _ in commands}, {"router", "worker", "frontend"})

    def test_probes_are_split(self):
        for where, _, _, container in self.pods():
            live, ready, start = (container[f"{kind}Probe"] for kind in ("liveness", "readiness", "startup"))
            self.assertEqual(live["httpGet"], {"path": "/health/live", "port": "admin"}, where)
            self.assertEqual(start["httpGet"]["path"], "/health/live", where)
            self.assertGreaterEqual(start["failureThreshold"] * start["periodSeconds"], 600, where)
            if "two_routers: prod-conclave-router" in where:
                self.assertEqual(ready["httpGet"]["path"], "/health/live", "one that stands by would never be ready")
            elif "everything: prod-conclave-frontend" in where:
                self.assertEqual(ready["grpc"]["port"], 50051)
            else:
                self.assertEqual(ready["httpGet"]["path"], "/health/ready", where)

    def test_pods_get_the_time_that_they_need_to_drain(self):
        for where, _, spec, container in self.pods():
            if "router" in where.split("-")[-1]:
                continue
            drain = next(seconds(arg.split("=")[1]) for arg in container["args"] if arg.startswith("--drain-timeout="))
            hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
            self.assertEqual(hook[0], "sleep")
            self.assertGreater(spec["terminationGracePeriodSeconds"], drain + int(hook[1]) + 5, where)
            if "frontend" in where:
                self.assertGreaterEqual(int(hook[1]), 5, where)

    def test_pods_are_confined(self):
        for where, _, spec, container in self.pods():
            self.assertTrue(spec["securityContext"]["runAsNonRoot"], where)
            self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"}, where)
            self.assertFalse(spec["automountServiceAccountToken"], where)
            containers = [container, *spec.get("initContainers", [])]
            for each in containers:
                context = each["securityContext"]
                self.assertTrue(context["readOnlyRootFilesystem"], where)
                self.assertFalse(context["allowPrivilegeEscalation"], where)
                self.assertEqual(context["capabilities"], {"drop": ["ALL"]}, where)
            mounts = {mount["name"] for each in containers for mount in each["volumeMounts"]}
            claims = {"state"} if "router" in where else set()
            self.assertEqual(mounts - claims, {volume["name"] for volume in spec["volumes"]} - claims, where)
            if "router" not in where:
                shm = next(volume for volume in spec["volumes"] if volume["name"] == "shm")
                self.assertEqual(shm["emptyDir"]["medium"], "Memory", where)
            dockerfile = (deploy.DEPLOY / "docker" / "Dockerfile").read_text()
            self.assertIn(f"USER {spec['securityContext']['runAsUser']}:", dockerfile)

    def test_services_policies_and_budgets_select_the_pods(self):
        for name, objects in self.rendered.items():
            pods = {item["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]:
                    item["spec"]["template"]["metadata"]["labels"] for (kind, _), item in objects.items()
                    if kind in ("Deployment", "StatefulSet")}
            for (kind, title), item in objects.items():
                role = title.rsplit("-", 1)[-1]
                spec = item["spec"] if "spec" in item else {}
                wanted = {"Service": spec.get("selector"),
                          "NetworkPolicy": spec.get("podSelector", {}).get("matchLabels"),
                          "PodDisruptionBudget": (spec.get("selector") or {}).get("matchLabels")}.get(kind)
                if wanted is not None:
                    self.assertLessEqual(wanted.items(), pods[role].items(), f"{name}: {title}")
            budgets = {title for kind, title in objects if kind == "PodDisruptionBudget"}
            self.assertEqual(len(budgets), 3, name)

    def test_ucx_ports_are_open_between_frontends_and_workers_only(self):
        for name, objects in self.rendered.items():
            policies = {title.rsplit("-", 1)[-1]: item["spec"]["ingress"] for (kind, title), item in objects.items()
                        if kind == "NetworkPolicy"}
            trusts = any("--trusted-network" in container["args"] for where, _, _, container in self.pods()
                         if where.startswith(f"{name}:"))
            if name == "two_routers":
                self.assertEqual((policies, trusts), ({}, False))
                continue
            peers = {"worker": "frontend", "frontend": "worker"}
            for role, rules in policies.items():
                ucx = [rule for rule in rules if any("endPort" in port for port in rule["ports"])]
                self.assertEqual(len(ucx), 1 if trusts and role in peers else 0, f"{name}: {role}")
                for rule in ucx:
                    (peer,) = rule["from"]
                    self.assertEqual(peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"], peers[role])
                    self.assertNotIn("namespaceSelector", peer)
            for where, _, _, container in self.pods():
                if where.startswith(f"{name}:") and "router" not in where.split(": ")[1]:
                    env = {entry["name"]: entry.get("value") for entry in container["env"]}
                    self.assertEqual(env.get("UCX_TCP_PORT_RANGE"), "42000-42063" if trusts else None, where)

    def test_tls_mounts_the_secret_of_the_role(self):
        for name, router in (("tls", "prod-conclave-router-tls"), ("tls_cert_manager", "mine")):
            found = {}
            for where, _, spec, container in self.pods():
                if where.startswith(f"{name}:"):
                    secret = next(volume["secret"] for volume in spec["volumes"] if volume["name"] == "tls")
                    found[where] = secret["secretName"]
                    # root:fsGroup, which may read: what conclave takes of a key, and nothing wider.
                    self.assertEqual(int(str(secret["defaultMode"])), 0o440, where)
                    self.assertEqual(spec["securityContext"]["fsGroup"], spec["securityContext"]["runAsGroup"], where)
                    self.assertNotIn("initContainers", spec, where)
                    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
                    for file in ("tls.crt", "tls.key", "ca.crt"):
                        self.assertTrue(any(arg.endswith(f"={mounts['tls']}/{file}") for arg in container["args"]), file)
                    self.assertNotIn("--trusted-network", container["args"])
            self.assertEqual(sorted(found.values()), sorted([router, "prod-conclave-worker-tls", "prod-conclave-frontend-tls"]))
        objects = self.rendered["tls_cert_manager"]
        worker = objects["Certificate", "prod-conclave-worker"]["spec"]
        self.assertEqual(worker["uris"], ["conclave://prod-conclave/worker/worker"])
        advertise = next(arg.partition("=")[2] for where, _, _, container in self.pods() for arg in container["args"]
                         if where == "tls_cert_manager: prod-conclave-worker" and arg.startswith("--advertise="))
        self.assertEqual(advertise.replace("$(POD_NAME)", "*"), worker["dnsNames"][1] + ":7100")
        routers = next(arg.partition("=")[2] for where, _, _, container in self.pods() for arg in container["args"]
                       if where == "tls_cert_manager: prod-conclave-worker" and arg.startswith("--router="))
        self.assertEqual(routers.replace("prod-conclave-router-0.", "*.", 1),
                         objects["Certificate", "prod-conclave-router"]["spec"]["dnsNames"][1] + ":7000")

    def test_the_admin_key_is_a_file_of_the_router(self):
        spec = self.render({"router": {"adminKeySecret": "page-key"}})["StatefulSet", "prod-conclave-router"]["spec"]["template"]["spec"]
        volume = next(volume for volume in spec["volumes"] if volume["name"] == "admin-key")
        mount = next(mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "admin-key")
        self.assertEqual((volume["secret"]["secretName"], int(str(volume["secret"]["defaultMode"]))), ("page-key", 0o440))
        self.assertIn(f"--admin-key-file={mount['mountPath']}/admin.key", spec["containers"][0]["args"])

    def test_autoscalers_own_the_number_of_replicas(self):
        objects = self.rendered["everything"]
        self.assertNotIn("replicas", objects["Deployment", "prod-conclave-frontend"]["spec"])
        self.assertNotIn("replicas", objects["StatefulSet", "prod-conclave-worker"]["spec"])
        scaled = objects["ScaledObject", "prod-conclave-worker"]["spec"]
        self.assertGreaterEqual(scaled["minReplicaCount"], 2, "fewer than the replicas of an expert")
        metrics = (deploy.ROOT / "docs" / "metrics.md").read_text()
        for metric in re.findall(r"conclave_\w+", scaled["triggers"][0]["metadata"]["query"]):
            self.assertIn(f"`{metric}`", metrics)
        monitor = objects["PodMonitor", "prod-conclave"]["spec"]["podMetricsEndpoints"][0]
        self.assertTrue(all(monitor["port"] in {port["name"] for port in container["ports"]} for _, _, _, container in self.pods()))

    def test_dashboards_and_rules_come_along(self):
        objects = self.rendered["everything"]
        dashboards = sorted((deploy.DEPLOY / "grafana" / "dashboards").glob("*.json"))
        maps = [item for (kind, _), item in objects.items() if kind == "ConfigMap"]
        self.assertEqual(sorted(name for item in maps for name in item["data"]), [path.name for path in dashboards])
        for path in dashboards:
            item = next(item for item in maps if path.name in item["data"])
            self.assertEqual(json.loads(item["data"][path.name]), json.loads(path.read_text()))
            self.assertEqual(item["metadata"]["labels"]["grafana_dashboard"], "1")
            self.assertLess(len(path.read_bytes()), 1 << 20, "a ConfigMap holds 1 MiB")
        rules = [group["name"] for path in sorted((deploy.DEPLOY / "prometheus" / "rules").glob("*.yml"))
                 for group in yaml.safe_load(path.read_text())["groups"]]
        rendered = objects["PrometheusRule", "prod-conclave"]["spec"]["groups"] or []
        self.assertEqual([group["name"] for group in rendered], rules)

    def test_wrong_values_are_refused(self):
        for values, expected in [
            ({"fronted": {}}, "fronted"),
            ({"frontend": {"replica": 3}}, "replica"),
            ({"networkPolicy": {"ucxPorts": {"frist": 1}}}, "frist"),
            ({"model": {"dtype": "fp8"}}, "dtype"),
            ({"worker": {"replicas": "three"}}, "replicas"),
            ({"worker": {"memory": "6Gi"}}, "memory"),
            ({"router": {"etcd": {"lease": "500ms"}}}, "lease"),
        ]:
            with self.assertRaises(helm_python.HelmError, msg=values) as raised:
                self.chart.validate_schema(values)
            self.assertIn(expected, str(raised.exception))
        for values, expected in [
            ({"router": {"replicas": 2}}, "router.etcd.endpoints"),
            ({"networkPolicy": {"enabled": False}}, "trustedNetwork"),
            ({"channel": "ucx", "trustedNetwork": False}, "channel"),
            ({"tls": {"enabled": True}, "frontend": {"grpc": {"enabled": True, "readinessProbe": True}}}, "kubelet"),
            ({"tls": {"enabled": True, "certManager": {"enabled": True}}}, "issuerRef"),
            ({"model": {"volume": {"emptyDir": {}}}}, "model.path"),
            ({"model": {"volume": {"emptyDir": {}}, "path": "/elsewhere"}}, "mounted at /model"),
        ]:
            with self.assertRaises(helm_python.HelmError, msg=values) as raised:
                self.render(values)
            self.assertIn(expected, str(raised.exception))

    def test_every_value_has_a_comment_and_a_schema(self):
        schema = json.loads((deploy.CHART / "values.schema.json").read_text())
        lines = (deploy.CHART / "values.yaml").read_text().splitlines()

        def walk(values, shape, path):
            for key, value in values.items():
                self.assertIn(key, shape["properties"], path)
                if isinstance(value, dict) and "properties" in shape["properties"][key]:
                    self.assertFalse(shape["properties"][key]["additionalProperties"], f"{path}.{key}")
                    walk(value, shape["properties"][key], f"{path}.{key}")

        walk(yaml.safe_load("\n".join(lines)), schema, "")
        for index, line in enumerate(lines):
            # What resources have is Kubernetes' own.
            if re.match(r"\s*(?!requests|limits)[A-Za-z]+:( .*)?$", line) and index:
                self.assertTrue(has_comment(lines, index), f"values.yaml:{index + 1}: no comment: {line}")

    def test_notes(self):
        for name, values in VALUES.items():
            notes = self.chart.render(values, name="prod", namespace="ml")["conclave/templates/NOTES.txt"]
            self.assertIn("-n ml", notes, name)
            self.assertEqual("conclave://" in notes, bool(values.get("tls")), name)


def has_comment(lines: list[str], index: int) -> bool:
    """A comment above the key or in its line, or keys below it that have theirs."""
    indent = len(lines[index]) - len(lines[index].lstrip())
    below = lines[index + 1] if index + 1 < len(lines) else ""
    return ("  # " in lines[index] or lines[index - 1].strip().startswith("#")
            or ("#" in below and len(below) - len(below.lstrip()) > indent))


if __name__ == "__main__":
    deploy.main()
