"""Child processes: their logs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pathar.processes import LOG_BYTES, Child, ProcessPlan
from tests.running import wait_until

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]


def talk(log: Path) -> Child:
    """A child that has said something and ended."""
    child = Child(
        ProcessPlan("talker", [sys.executable, "-c", "print('here I am')"], os.environ, log)
    )
    wait_until(lambda: child.process.poll() is not None)
    return child


def test_a_large_log_is_set_aside_at_a_start_in_place_of_the_one_before(tmp_path: Path) -> None:
    log, aside = tmp_path / "talker.log", tmp_path / "talker.log.1"
    log.write_bytes(b"x" * LOG_BYTES)
    assert talk(log).said("here I am")
    assert not aside.exists()
    for size in (log.stat().st_size, LOG_BYTES + 1):
        log.write_bytes(b"x" * size)
        child = talk(log)
        assert aside.stat().st_size == size
        assert child.said("here I am")
        assert log.read_text() == "here I am\n"


def test_the_size_is_in_the_document() -> None:
    assert f"over {LOG_BYTES >> 20} MiB" in (ROOT / "docs" / "reference.md").read_text()
