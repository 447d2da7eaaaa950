"""Every PromQL expression of deploy/: those of dashboards with their variables replaced, and those of rules."""

import dataclasses
import json
import pathlib
import re
import shutil
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DASHBOARDS = DEPLOY / "grafana" / "dashboards"

# As Grafana replaces them when everything is chosen.
VARIABLES = {"__rate_interval": "1m", "__range": "30m", "__interval": "15s", "instance": ".*", "model_name": ".*",
             "layer": ".*"}


def need(*programs: str):
    """Ends with 77, which ctest shows as skipped, when a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            print(f"skipped: there is no {program}; tools/setup.sh test installs Debian's package prometheus")
            sys.exit(77)


@dataclasses.dataclass(frozen=True)
class Expression:
    kind: str  # "panel", "annotation", "variable", "record", "alert"
    where: str  # file and title
    text: str


def replaced(text: str, variables: dict[str, str]) -> str:
    """A name that is no variable is an error, but for the $1 of label_replace."""

    def value(match):
        if match[1].isdigit():
            return match[0]
        if match[1] not in variables:
            raise ValueError(f"no such variable: {match[0]} in {text}")
        return variables[match[1]]

    return re.sub(r"\$\{?(\w+)\}?", value, text)


def dashboards() -> dict[str, dict]:
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels_of(dashboard: dict) -> list[dict]:
    """Its panels, those within rows too, without the rows."""
    panels = []
    for panel in dashboard["panels"]:
        panels += panel["panels"] if panel["type"] == "row" else [panel]
    return panels


def of_dashboard(name: str, dashboard: dict, variables: dict[str, str] | None = None) -> list[Expression]:
    variables = VARIABLES | (variables or {})
    found = []
    for panel in panels_of(dashboard):
        for target in panel["targets"]:
            found.append(Expression("panel", f"{name}: {panel['title']}: {target['refId']}",
                                    replaced(target["expr"], variables)))
    for annotation in dashboard["annotations"]["list"]:
        found.append(Expression("annotation", f"{name}: {annotation['name']}", replaced(annotation["expr"], variables)))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            values = re.fullmatch(r"label_values\((.+), *\w+\)", variable["query"])
            found.append(Expression("variable", f"{name}: ${variable['name']}", replaced(values[1], variables)))
    return found


def of_dashboards(variables: dict[str, str] | None = None) -> list[Expression]:
    return [expression for name, dashboard in dashboards().items()
            for expression in of_dashboard(name, dashboard, variables)]


def rules() -> list[dict]:
    found = []
    for path in sorted((PROMETHEUS / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            found += group["rules"]
    return found


def of_rules() -> list[Expression]:
    return [Expression("record" if "record" in rule else "alert", rule.get("record") or rule["alert"], rule["expr"])
            for rule in rules()]
