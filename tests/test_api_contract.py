"""Schemathesis against the OpenAPI document of a running service.

No answer may be a 5xx, break the document or let anybody in without a key; requests are also made
in sequences, since the operations hang together. PATHAR_TEST_EXAMPLES sets how many examples each
operation gets; `make fuzz` gives 1,000.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pathar.test_cli import pathar
from tests.running import Up

EXAMPLES = os.environ.get("PATHAR_TEST_EXAMPLES", "25")
GENEROUS = ("--rate", "1000000000", "--waiting", "1000000000", "--stored", "1000000000000")


@pytest.fixture
def up(test_checkpoint: Path) -> Iterator[Up]:
    running = Up(test_checkpoint, PATHAR_MAX_N="2", PATHAR_RESULT_TTL="120")
    try:
        yield running.ready()
    finally:
        running.close()


def test_the_service_does_what_its_openapi_document_says(up: Up, tmp_path: Path) -> None:
    made = pathar("keys", "make", "fuzz", *GENEROUS, PATHAR_HOME=str(up.home))
    assert made.returncode == 0, made.stderr
    url = up.run()["url"]
    words = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
        *("--header", f"Authorization: Bearer {made.stdout.strip()}"),
        *("--max-examples", EXAMPLES, "--seed", "1", "--no-color"),
        *("--checks", "all", "--generation-database", "none"),
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert "No issues found" in done.stdout, done.stdout[-5_000:]
    assert up.serves()
