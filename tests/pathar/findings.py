"""What checks of `pathar doctor` find, for the tests of each family of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pathar.checks.installation import Check, Finding
from pathar.doctor import examine
from tests.running import environment

NOWHERE = Path("/nowhere")
SECRET = "hunter2hunter2"


def look(*checks: Check, **settings: str) -> list[Finding]:
    """What some checks find, in this process."""
    return list(examine(environment(NOWHERE, **settings), checks))


def verdicts(findings: Sequence[Finding]) -> list[str]:
    return [finding.verdict for finding in findings]


def expect(check: Check, verdict: str, *words: str, **settings: str) -> Finding:
    """That a check has one finding, of that verdict, with all these words."""
    [finding] = look(check, **settings)
    assert finding.verdict == verdict, finding
    assert bool(finding.fix) == (verdict != "ok"), finding
    assert [word for word in words if word not in f"{finding.found} {finding.fix}"] == [], finding
    return finding
