"""What is asked of Prometheus: every expression of the dashboard and of the rules."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import yaml

from tests.deploy.files import ROOT

DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "pathar.json"
PROMETHEUS = ROOT / "deploy" / "prometheus"
COMPARISON = re.compile(r"\s(?:==|!=|>=|<=|>|<)\s[\d.]+")
SELECTOR = re.compile(r"\b(?:pathar[\w:]+|process_\w+|up\b|ALERTS\b)(?:\{[^}]*\})?")


@dataclass(frozen=True)
class Asked:
    """An expression and where it stands."""

    where: str
    expr: str


def rules() -> list[dict[str, Any]]:
    """All recording rules and alerts."""
    files = sorted((PROMETHEUS / "rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def dashboard() -> dict[str, Any]:
    """The dashboard as committed."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    """Its panels, without the titles of rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def of_rules() -> list[Asked]:
    return [Asked(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]


def of_dashboard() -> list[Asked]:
    shown = [Asked(p["title"], target["expr"]) for p in panels() for target in p["targets"]]
    annotations = dashboard()["annotations"]["list"]
    return shown + [Asked(each["name"], each["expr"]) for each in annotations]


def without_comparisons(expr: str) -> str:
    """What an alert looks at: its expression without the comparisons with numbers, which leave
    nothing while all is well. `and`, `or` and how labels are matched stay, and so does what stands
    after `unless`, which without its comparison would take all away."""
    asked, unless, but = expr.partition(" unless ")
    return COMPARISON.sub("", asked) + unless + but


def selectors(expr: str) -> set[str]:
    """The series that an expression selects. `or` and `vector(0)` may hide that there are none."""
    return set(SELECTOR.findall(expr))
