"""What `pathar doctor` finds of torch, the checkpoint and the decoder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pathar.checks import engine
from pathar.checks.installation import Finding
from pathar.doctor import examine
from tests.pathar.findings import NOWHERE
from tests.running import environment
from tests.test_packaging import ROOT

pytestmark = pytest.mark.processes


def findings_of_engine(checkpoint: Path, **settings: str) -> list[Finding]:
    return list(examine(environment(checkpoint, **settings), (engine.engine,)))


def test_a_damaged_checkpoint_and_a_device_that_is_not_there(
    test_checkpoint: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(test_checkpoint, copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    found = findings_of_engine(copy, PATHAR_DEVICE="cuda:77")
    assert [(f.check, f.verdict) for f in found] == [("device", "failed"), ("checkpoint", "failed")]
    assert "damaged" in found[1].found


def test_a_process_that_dies_on_torch_is_told_from_one_that_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    path = f"{tmp_path}:{ROOT}"
    [found] = findings_of_engine(NOWHERE, PYTHONPATH=path)
    assert found.verdict == "failed"
    assert "SIGILL" in found.found


def test_the_compiled_decoder_is_held_against_torch(
    test_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.checkpoint import load_checkpoint
    from model.native_decoder import libraries

    if not libraries():
        pytest.skip("the compiled decode step is not built")
    checkpoint = load_checkpoint(test_checkpoint)
    for variant in libraries():
        assert engine.compare(checkpoint, variant) == ""
    monkeypatch.setattr(engine, "CLOSE", 1e-9)  # bf16 is not that close
    assert "far from torch's" in engine.compare(checkpoint, next(iter(libraries())))
