"""How busy the device is: the kernel's columns, read between one question and the next."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch

from worker.device_use import Cores, use_of

TICKS = 100 * (os.cpu_count() or 1)
"""More than a window's, at the kernel's usual 100 a second."""


def ticks(busy: int, idle: int) -> str:
    """All columns of busy time alike; guests' time is in user's already."""
    return f"cpu  {busy} {busy} {busy} {idle} {idle} {busy} {busy} {busy} 77 77\ncpu0 1 2 3\n"


@pytest.fixture
def stat(tmp_path: Path) -> Path:
    path = tmp_path / "stat"
    path.write_text(ticks(500, 500))
    return path


def test_the_share_is_that_between_two_questions(stat: Path) -> None:
    cores = Cores(stat)
    stat.write_text(ticks(500 + TICKS, 500))
    assert cores.use() == 1
    stat.write_text(ticks(500 + TICKS, 500 + TICKS))
    assert cores.use() == 0
    stat.write_text(ticks(500 + 2 * TICKS, 500 + 4 * TICKS))
    assert cores.use() == pytest.approx(6 / 12)


def test_a_second_question_at_once_is_answered_alike(stat: Path) -> None:
    """Two Prometheus servers may scrape one worker."""
    cores = Cores(stat)
    assert cores.use() == 0, "no time has passed yet"
    stat.write_text(ticks(501, 500))
    assert [cores.use(), cores.use()] == [1, 1]
    stat.write_text(ticks(501, 503))
    assert cores.use() == pytest.approx(6 / 12)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_a_busy_core_of_this_machine_is_seen() -> None:
    use = use_of(torch.device("cpu"))
    until = time.process_time() + 1
    while time.process_time() < until:
        pass
    assert 0.5 / (os.cpu_count() or 1) < use() <= 1


def test_where_the_kernel_tells_nothing_asking_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Cores(tmp_path / "stat").use()
