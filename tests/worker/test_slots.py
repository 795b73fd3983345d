"""A worker asked for more slots than fit says so at start, whoever started it.

The checkpoint is so deep that 4096 slots need terabytes: more than any machine has.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from model.config import NAMED_SIZES
from model.memory import RESERVE_BYTES, main_memory
from pathar.errors import UsageError
from pathar.generate import Wanted, draw_here
from tests.conftest import DEADLINE_S, random_checkpoint
from tests.running import Up, environment
from tests.worker.conftest import WorkerProcess

REFUSAL = r"PATHAR_SLOTS='4096': expected as many as fit, \d+: 4096 need \d{4,}\.\d\d GB of memory"

pytestmark = pytest.mark.skipif(
    main_memory() is None, reason="nothing here tells how much memory is free"
)


@pytest.fixture(scope="module")
def deep_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer, prior = NAMED_SIZES["test"]
    sizes = (replace(tokenizer, image_size=512), replace(prior, layers=128, heads=4, width=128))
    return random_checkpoint(tmp_path_factory.mktemp("deep"), sizes)


@pytest.mark.processes
def test_a_worker_asked_for_too_many_slots_ends_with_code_2_and_says_how_many_fit(
    deep_checkpoint: Path, tmp_path: Path
) -> None:
    env = environment(deep_checkpoint, PATHAR_SLOTS="4096")
    worker = WorkerProcess(env, tmp_path / "log")
    assert worker.process.wait(DEADLINE_S) == 2
    assert re.match(rf"worker: {REFUSAL} and \d+\.\d\d GB are free\n$", worker.log())


@pytest.mark.processes
def test_pathar_up_shows_what_its_worker_said(deep_checkpoint: Path) -> None:
    up = Up(deep_checkpoint, PATHAR_SLOTS="4096")
    try:
        assert up.process.wait(DEADLINE_S) == 2
        assert re.search(REFUSAL, up.log())
    finally:
        up.close()


def test_pathar_generate_says_it_too(
    test_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", environment(test_checkpoint, PATHAR_SLOTS="4"))
    monkeypatch.setattr("model.engine.free_memory", lambda device: RESERVE_BYTES)
    wanted = Wanted(["blood"], {"n": 8, "seed": 1}, Path(), None)
    with pytest.raises(UsageError, match="PATHAR_SLOTS='4': expected as many as fit, 0: 4 need"):
        next(draw_here(wanted))
