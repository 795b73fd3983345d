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
