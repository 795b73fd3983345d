"""Rules and alerts: checked and tested by promtool, each with an entry in the runbook."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.files import ROOT
from tests.deploy.promql import PROMETHEUS, alerts, rules, without_comparisons
from tests.system import program
from worker.metrics import SECONDS

TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
RUNBOOK = ROOT / "docs" / "runbook.md"


def promtool(*words: str | Path) -> None:
    done = subprocess.run([program("promtool"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.system
def test_promtool_takes_the_rules() -> None:
    promtool("check", "rules", *sorted((PROMETHEUS / "rules").glob("*.yml")))


@pytest.mark.processes
def test_the_object_for_the_operator_is_what_the_script_makes_of_the_rules() -> None:
    script, path = (
        "deploy/prometheus/kubernetes.py",
        "deploy/kubernetes/components/monitoring/rules.yaml",
    )
    made = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, check=True)
    assert made.stdout.decode() == (ROOT / path).read_text()


@pytest.mark.system
def test_promtool_takes_the_configuration() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")


@pytest.mark.system
@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_rules_do_what_they_say(file: Path) -> None:
    promtool("test", "rules", file)


def test_every_alert_is_tested_firing_and_silent() -> None:
    cases = [
        (case["alertname"], bool(case["exp_alerts"]))
        for file in TESTS
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
    ]
    assert set(cases) == {(name, fires) for name in alerts() for fires in (True, False)}


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_what_is_wrong_and_where_to_read_on(name: str) -> None:
    alert = alerts()[name]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    link = alert["annotations"]["runbook_url"]
    assert link == f"{{{{ $externalLabels.runbook }}}}#{name.lower()}"


def test_the_runbook_has_an_entry_for_every_alert_and_for_nothing_else() -> None:
    text = RUNBOOK.read_text()
    entries = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert [entry.split("\n")[0] for entry in entries] == list(alerts())
    for entry in entries:
        for part in ("**Means.**", "**Look at.**", "**Do.**"):
            assert part in entry, entry


def test_the_objective_is_a_bound_that_workers_count_by() -> None:
    bounds = {rule.get("record"): re.findall(r'le="([\d.]+)"', rule["expr"]) for rule in rules()}
    [bound] = bounds.pop("pathar:interactive_images_in_time:sum")
    assert float(bound) in SECONDS
    assert not any(bounds.values()), "it stands in one place"
    seconds = f"{float(bound):g} seconds"
    for name in ("PatharImagesLate", "PatharImagesLateForDays"):
        assert seconds in alerts()[name]["annotations"]["description"]


def test_only_comparisons_with_numbers_are_taken_out() -> None:
    expr = 'a{b=~"c", d!="e"} / f > 0.05 and on (g) (h == 0 or 0 * i)'
    assert without_comparisons(expr) == 'a{b=~"c", d!="e"} / f and on (g) (h or 0 * i)'
    assert without_comparisons("a == 0 unless b == 1") == "a unless b == 1"
