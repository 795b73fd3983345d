"""The README's examples, run as they stand against a running service, in an empty folder."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import Up

README = (Path(__file__).parents[1] / "README.md").read_text()
DEFAULT_URL = "http://127.0.0.1:8000"
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CURL = re.findall(r"^    curl (?:.*\\\n)*.*$", README, re.MULTILINE)


def at(stack: Up, text: str) -> str:
    assert DEFAULT_URL in text
    return text.replace(DEFAULT_URL, stack.run()["url"])


def test_the_readme_has_examples() -> None:
    assert len(PYTHON) >= 2
    assert len(CURL) >= 1


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python(code: str, stack: Up, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", at(stack, code)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", CURL, ids=range(len(CURL)))
def test_curl(command: str, stack: Up, tmp_path: Path) -> None:
    words = shlex.split(at(stack, command.replace("\\\n", "")))
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["images"]
