"""Goal: the committed dashboards are what their script writes, hold no key that Grafana does not know, and ask nothing that
Prometheus cannot parse.

Method: reads them into the models of the Foundation SDK and writes them again; what it does not know is lost on the way.
promtool parses every expression as a recording rule. Grafana itself is not started: it is no Debian package.
"""

import copy
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import unittest

import expressions
import yaml

try:
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models import dashboard as models
except ImportError:
    print("skipped: no grafana-foundation-sdk in .venv; tools/test.sh installs it from tests/requirements.txt")
    sys.exit(77)


def script():
    spec = importlib.util.spec_from_file_location("dashboards", expressions.DEPLOY / "grafana" / "dashboards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def round_trip(content: dict) -> dict:
    return json.loads(json.dumps(models.Dashboard.from_json(copy.deepcopy(content)), cls=JSONEncoder))


def unparsable(found: list[expressions.Expression]) -> list[str]:
    """What promtool does not take as the expression of a recording rule."""
    rules = [{"record": f"check:e{index}:none", "expr": expression.text} for index, expression in enumerate(found)]
    with tempfile.NamedTemporaryFile("w", suffix=".yml", encoding="utf-8") as file:
        json.dump({"groups": [{"name": "expressions", "rules": rules}]}, file)
        file.flush()
        checked = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True, timeout=60)
    if checked.returncode == 0:
        return []
    numbers = set(map(int, re.findall(r'"check:e(\d+):none"', checked.stdout + checked.stderr)))
    return [f"{found[number].where}: {found[number].text}" for number in sorted(numbers)] or [checked.stdout + checked.stderr]


class DashboardsTest(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        plugins.register_default_plugins()

    def test_the_committed_files_are_what_the_script_writes(self):
        written = script().texts()
        self.assertEqual(sorted(written), sorted(expressions.DASHBOARDS.glob("*.json")))
        for path, text in written.items():
            self.assertEqual(path.read_text(encoding="utf-8"), text, f"run deploy/grafana/dashboards.py: {path.name}")

    def test_no_key_is_unknown_to_the_models(self):
        for name, content in expressions.dashboards().items():
            with self.subTest(dashboard=name):
                self.assertEqual(round_trip(content), content)

    def test_a_misspelt_key_would_be_found(self):
        content = expressions.dashboards()["cluster.json"]
        panel = expressions.panels_of(content)[0]
        for place, right, wrong in [(content, "refresh", "refrehs"), (panel, "gridPos", "gridpos"),
                                    (panel["targets"][0], "expr", "expression"), (panel["options"], "colorMode", "colormode"),
                                    (panel["fieldConfig"]["defaults"], "unit", "units")]:
            with self.subTest(key=wrong):
                place[wrong] = place.get(right, 1)
                self.assertNotEqual(round_trip(content), content)
                del place[wrong]

    def test_every_panel_says_what_it_shows_and_what_to_do(self):
        runbook = (expressions.ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
        alerts = {rule["alert"] for rule in expressions.rules() if "alert" in rule}
        for name, content in expressions.dashboards().items():
            panels = expressions.panels_of(content)
            self.assertEqual(len({panel["title"] for panel in panels}), len(panels), f"{name}: titles are unique")
            for panel in panels:
                with self.subTest(dashboard=name, panel=panel["title"]):
                    self.assertIn("When it is bad: ", panel["description"])
                    self.assertEqual(panel["datasource"], {"type": "prometheus", "uid": "${datasource}"})
                    # Names of alerts are written as one word with capitals inside.
                    for alert in re.findall(r"\b(?:[A-Z][a-z]+){2,}\b|\bKVNearFull\b", panel["description"]):
                        self.assertIn(alert, alerts)
                        self.assertIn(f"## {alert}\n", runbook)

    def test_panels_fill_their_rows_and_do_not_overlap(self):
        for name, content in expressions.dashboards().items():
            taken = {}
            for panel in content["panels"]:
                box = panel["gridPos"]
                self.assertLessEqual(box["x"] + box["w"], 24, f"{name}: {panel['title']}")
                for cell in [(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])]:
                    self.assertNotIn(cell, taken, f"{name}: {panel['title']} lies on {taken.get(cell)}")
                    taken[cell] = panel["title"]

    def test_provisioning_names_what_there_is(self):
        folder = expressions.DEPLOY / "grafana" / "provisioning"
        [source] = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))["datasources"]
        scraped = yaml.safe_load((expressions.PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))["global"]
        self.assertEqual(source["type"], "prometheus")
        self.assertEqual(source["jsonData"]["timeInterval"], scraped["scrape_interval"])
        [provider] = yaml.safe_load((folder / "dashboards" / "conclave.yaml").read_text(encoding="utf-8"))["providers"]
        self.assertEqual(provider["type"], "file")
        self.assertIn(provider["options"]["path"], (expressions.DEPLOY / "README.md").read_text(encoding="utf-8"))

    def test_every_expression_parses(self):
        self.assertEqual(unparsable(expressions.of_dashboards() + expressions.of_rules()), [])

    def test_an_expression_that_does_not_parse_would_be_found(self):
        broken = expressions.Expression("panel", "broken", "sum by (layer (x)")
        good = expressions.of_dashboards()[:2]
        self.assertEqual(unparsable([good[0], broken, good[1]]), ["broken: sum by (layer (x)"])
        with self.assertRaises(ValueError):
            expressions.replaced("rate(x[$__rate_intervall])", expressions.VARIABLES)

    def test_no_ratio_is_summed(self):
        ratios = r"usage_perc|imbalance|:ratio|_ratio\b|fair_ratio"
        for expression in expressions.of_dashboards() + expressions.of_rules():
            for argument in re.findall(r"\bsum(?: by \([^)]*\))? ?\(([^()]*(?:\([^()]*\))?[^()]*)\)", expression.text):
                self.assertNotRegex(argument, ratios, expression.where)


if __name__ == "__main__":
    expressions.need("promtool")
    unittest.main(verbosity=2)
