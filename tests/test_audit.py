"""No version that CI pins or has installed has a known vulnerability, as pip-audit hears from PyPI.

Where a mirror of PyPI does not tell of vulnerabilities, pip-audit finds none in anything. So it is
asked of a release that is known to have one first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import DEADLINE_S
from tests.system import missing
from tests.test_packaging import ROOT

CONSTRAINTS = ROOT / "constraints.txt"
VULNERABLE = {"urllib3": "1.26.4"}
OWN = {"pathar", "pip"}


def pins() -> dict[str, str]:
    """What constraints.txt pins."""
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(each.name): str(each.specifier).lstrip("=") for each in found}


def installed() -> dict[str, str]:
    """What runs the tests, with the public part of versions."""
    found = {canonicalize_name(each.name): each.version for each in distributions()}
    return {name: Version(v).public for name, v in found.items() if name not in OWN}


def audit(folder: Path, releases: Mapping[str, str]) -> dict[str, Any]:
    """What pip-audit says of each release, by its name."""
    path = folder / "releases.txt"
    path.write_text("".join(f"{name}=={version}\n" for name, version in releases.items()))
    told = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *told, "-r", str(path)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    if not done.stdout.startswith("{"):
        pytest.skip(f"NOT AUDITED: the database of vulnerabilities did not answer: {done.stderr}")
    return {each["name"]: each for each in json.loads(done.stdout)["dependencies"]}


@pytest.mark.processes
@pytest.mark.parametrize("releases", [pins(), installed()], ids=["pinned", "installed"])
def test_no_release_has_a_known_vulnerability(releases: dict[str, str], tmp_path: Path) -> None:
    if os.environ.get("PATHAR_TEST_SYSTEM") != "1":
        missing("it asks PyPI, which PATHAR_TEST_SYSTEM=1 asks for")
    [known] = audit(tmp_path, VULNERABLE).values()
    if not known.get("vulns"):
        pytest.skip(f"NOT AUDITED: the database of vulnerabilities cannot be reached: {known}")
    found = audit(tmp_path, releases)
    assert set(found) == set(releases)
    bad = {name: each for name, each in found.items() if each.get("vulns") != []}
    assert bad == {}


def test_what_is_installed_is_pinned() -> None:
    """But for what torch brings by itself for GPUs, and what is installed by its own line."""
    needed, todo = set[str](), [("pathar", ("all", "embedded", "traces", "s3", "dev", "training"))]
    versions = {canonicalize_name(each.name): each for each in distributions()}
    while todo:
        name, extras = todo.pop()
        for text in versions[name].requires or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                continue
            each = canonicalize_name(requirement.name)
            if each in versions and (each not in needed or requirement.extras):
                needed.add(each)
                todo.append((each, tuple(requirement.extras)))
    assert {"torch", "anyio", "jinja2"} <= needed
    assert {
        n for n in needed - set(pins()) - OWN if not n.startswith(("nvidia-", "cuda-"))
    } == set()
