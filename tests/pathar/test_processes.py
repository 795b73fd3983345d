"""Child processes: their logs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pathar import processes
from pathar.processes import LOG_BYTES, OLD_LOGS, Child, ProcessPlan
from tests.running import wait_until

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]


def talk(log: Path, program: str) -> Child:
    """A child that has said something and ended."""
    child = Child(ProcessPlan("talker", [sys.executable, "-c", program], os.environ, log))
    wait_until(lambda: child.process.poll() is not None)
    return child


def text(log: Path) -> str:
    return log.read_text() if log.exists() else ""


def test_a_log_rotates_while_its_child_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LOG_BYTES", 10_000)
    log = tmp_path / "talker.log"
    program = "for number in range(10_000): print('line', number)\nprint('the end')"
    child = talk(log, program)
    wait_until(lambda: "the end" in text(log))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "talker.log", "talker.log.1", "talker.log.2", "talker.log.3"
    ]  # fmt: skip
    assert all(path.stat().st_size <= 10_000 for path in tmp_path.iterdir())
    kept = "".join(text(tmp_path / f"talker.log{end}") for end in (".3", ".2", ".1", ""))
    lines = kept.splitlines()
    assert lines[-1] == "the end"
    first = int(lines[0].split()[1])
    assert lines[:-1] == [f"line {number}" for number in range(first, 10_000)]
    assert child.said("the end")
    assert child.last_lines() == "line 9998 | line 9999 | the end"


def test_a_log_that_cannot_be_written_stops_no_child(tmp_path: Path) -> None:
    """/dev/full answers every write as a full disk does. The child says more than a pipe holds."""
    log = tmp_path / "talker.log"
    log.symlink_to("/dev/full")
    program = "for number in range(20_000): print('line', number, flush=number % 1000 == 0)"
    child = talk(log, program)
    assert child.process.returncode == 0
    wait_until(lambda: child.said("line 19999"), "the last line")
    log.unlink()
    again = talk(log, "print('here I am')")
    wait_until(lambda: "here I am" in text(log), "a line in the log")
    assert again.said("here I am")


def test_a_child_starts_anew_with_what_it_says(tmp_path: Path) -> None:
    log = tmp_path / "talker.log"
    child = talk(log, "import os; print('I am', os.getpid())")
    wait_until(lambda: child.said("I am"))
    first = child.last_lines()
    wait_until(
        lambda: (child.restart_if_dead(), child.last_lines() not in ("", first))[1], "another start"
    )
    assert not child.said(first)
    assert first in text(log)
    child.process.wait()


def test_the_size_is_in_the_document() -> None:
    document = (ROOT / "docs" / "reference.md").read_text()
    assert f"{OLD_LOGS} old files of {LOG_BYTES >> 20} MiB" in document
