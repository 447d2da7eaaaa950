"""Goal: what deploy/prometheus holds is good for a real Prometheus, and every alert has a text that leads somewhere.

Method: promtool checks configuration and rules and runs the unit tests beside them; a few checks that it does not make.
"""

import re
import subprocess
import tempfile
import unittest

import expressions
import yaml

RUNBOOK = expressions.ROOT / "docs" / "runbook.md"


def promtool(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(["promtool", *args], cwd=expressions.PROMETHEUS, capture_output=True, text=True, timeout=120)


class RulesTest(unittest.TestCase):
    def test_configuration_and_rules_are_valid(self):
        checked = promtool("check", "config", "prometheus.yml")
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
        found = sum(map(int, re.findall(r"(\d+) rules found", checked.stdout)))
        self.assertEqual(found, len(expressions.rules()), checked.stdout)

    def test_unit_tests_of_the_rules_pass(self):
        tests = sorted(path.relative_to(expressions.PROMETHEUS) for path in (expressions.PROMETHEUS / "tests").glob("*.yml"))
        tested = promtool("test", "rules", *map(str, tests))
        self.assertEqual(tested.returncode, 0, tested.stdout + tested.stderr)
        self.assertEqual(tested.stdout.count("SUCCESS"), len(tests), tested.stdout)

    def test_every_alert_fires_in_one_unit_test_and_stays_quiet_in_another(self):
        fires, quiet = set(), set()
        for path in (expressions.PROMETHEUS / "tests").glob("*.yml"):
            for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
                for case in test.get("alert_rule_test", []):
                    (fires if case["exp_alerts"] else quiet).add(case["alertname"])
        alerts = {rule["alert"] for rule in expressions.rules() if "alert" in rule}
        self.assertEqual((fires, quiet), (alerts, alerts))

    def test_every_record_is_checked_by_a_unit_test(self):
        records = {rule["record"] for rule in expressions.rules() if "record" in rule}
        checked = yaml.safe_load((expressions.PROMETHEUS / "tests" / "recording.yml").read_text(encoding="utf-8"))
        asked = " ".join(case["expr"] for test in checked["tests"] for case in test["promql_expr_test"])
        self.assertEqual({record for record in records if not re.search(re.escape(record) + r"(?!\w)", asked)}, set())

    def test_every_alert_says_what_where_and_what_to_do(self):
        text = RUNBOOK.read_text(encoding="utf-8")
        sections = re.findall(r"^## (\w+)$", text, re.MULTILINE)
        alerts = [rule for rule in expressions.rules() if "alert" in rule]
        self.assertEqual(sections, [rule["alert"] for rule in alerts], "the runbook has the alerts, in their order")
        for rule in alerts:
            with self.subTest(alert=rule["alert"]):
                self.assertIn(rule["labels"]["severity"], {"warning", "critical"})
                self.assertEqual(set(rule["annotations"]), {"summary", "description", "runbook"})
                self.assertIn("{{ $labels.", rule["annotations"]["description"])
                self.assertEqual(rule["annotations"]["runbook"], f"docs/runbook.md#{rule['alert'].lower()}")

    def test_a_broken_rule_would_be_found(self):
        text = (expressions.PROMETHEUS / "rules" / "alerts.yml").read_text(encoding="utf-8")
        with tempfile.NamedTemporaryFile("w", suffix=".yml", encoding="utf-8") as file:
            file.write(text.replace("moe_cluster_links\n", "moe_cluster_links)\n"))
            file.flush()
            checked = promtool("check", "rules", file.name)
        self.assertNotEqual(checked.returncode, 0, checked.stdout)
        self.assertIn('"LinksMissing"', checked.stdout + checked.stderr)


if __name__ == "__main__":
    expressions.need("promtool")
    unittest.main(verbosity=2)
