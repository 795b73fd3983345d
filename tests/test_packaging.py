"""What pyproject.toml, the Makefile and files for other tools say."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("model", "runtime", "store", "worker", "service", "pathar", "training", "benchmarks")


def test_the_client_alone_pulls_no_torch_and_no_server() -> None:
    names = {re.split(r"[<>=\[ ]", line)[0] for line in PROJECT["project"]["dependencies"]}
    assert names == {"httpx", "numpy", "pillow", "shtab", "tqdm"}


@pytest.mark.processes
@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ("vendor.github-workflows", ".github/workflows/ci.yml"),
        ("vendor.citation-file-format", "CITATION.cff"),
    ],
)
def test_files_for_other_tools_are_as_their_schemas_say(schema: str, name: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_help_lists_every_target_that_people_call() -> None:
    text = (ROOT / "Makefile").read_text()
    called = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split()
    described = re.findall(r"^(\w+):.*  ## ", text, re.MULTILINE)
    assert sorted(called) == sorted(described)
