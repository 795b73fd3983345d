"""Every stage, killed twice while it writes a state, ends with the bytes of an undisturbed run."""

import importlib
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import training.run
import training.tokenizer
from tests.conftest import DEADLINE_S
from tests.training.commands import run
from tests.training.phantoms import write_phantoms
from training.run import ProgressLog, Saves

pytestmark = pytest.mark.processes

PROCESSES = multiprocessing.get_context("forkserver")
"""They begin with torch loaded, which takes longer than all that they do."""
START_CODEBOOKS = 20
"""In place of 120 steps, all of which are alike."""
TOKENIZER = ("--size", "test", "--batch", 2, "--steps", 30, "--every", 200)
PRIOR = ("--batch", 2, "--steps", 8, "--every", 3)
SEGMENTER = ("--image-size", 64, "--steps", 8)


def die(said: Path, last: int, stage: str, words: Sequence[str]) -> None:
    """Run a stage that saves and says something at every step, and die of kill -9 in the middle of
    writing its `last` state."""
    save_file, written = training.run.save_file, 0

    def save_half(tensors: Mapping[str, Any], path: Path, meta: Mapping[str, Any]) -> None:
        nonlocal written
        written += 1
        if written == last:
            path.write_bytes(b"half of a state")
            os.kill(os.getpid(), signal.SIGKILL)
        save_file(tensors, path, meta)

    training.tokenizer.START_CODEBOOKS = START_CODEBOOKS
    training.run.SAVE_S = training.run.SAY_S = 0.0
    training.run.save_file = save_half
    with said.open("w", buffering=1) as stream, redirect_stdout(stream), redirect_stderr(stream):
        importlib.import_module(f"training.{stage}").main(words)


def kill(last: int, stage: str, *words: object) -> str:
    """Run a stage until it is killed; what it said."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        process = PROCESSES.Process(target=die, args=(said, last, stage, [*map(str, words)]))
        process.start()
        process.join(DEADLINE_S)
        assert process.exitcode == -signal.SIGKILL, said.read_text()
        return said.read_text()


@pytest.fixture(scope="module", autouse=True)
def loaded() -> Iterator[None]:
    stages = ("segmenter", "tokenizer", "tokens", "prior")
    slow = ("torch._dynamo", "monai.networks.nets.unet")
    PROCESSES.set_forkserver_preload([*(f"training.{each}" for each in stages), *slow])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.tokenizer, "START_CODEBOOKS", START_CODEBOOKS)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), each=24)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through all stages that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run("segmenter", *SEGMENTER, "--data", data, "--out", folder / "teacher.safetensors")
    run("tokenizer", *TOKENIZER, "--data", data, "--workdir", folder)
    run("tokens", "--data", data, "--workdir", folder)
    run("prior", *PRIOR, "--workdir", folder)
    return folder


@pytest.mark.parametrize(
    ("stage", "settings", "needs", "made", "goes_on"),
    [
        ("segmenter", SEGMENTER, (), "teacher", "from step 4"),
        ("tokenizer", TOKENIZER, (), "tokenizer", "from step 23"),
        ("tokens", (), ("tokenizer",), "tokens", "resumes after 4 chunks"),
        ("prior", PRIOR, ("tokenizer", "tokens"), "prior", "from step 4"),
    ],
    ids=["teacher", "tokenizer", "tokens", "prior"],
)
def test_killed_twice_it_goes_on_to_the_very_same_bytes(
    stage: str,
    settings: tuple[object, ...],
    needs: tuple[str, ...],
    made: str,
    goes_on: str,
    data: Path,
    whole: Path,
    tmp_path: Path,
) -> None:
    for name in needs:
        shutil.copy(whole / f"{name}.safetensors", tmp_path)
    end = tmp_path / f"{made}.safetensors"
    places = ("--out", end) if stage == "segmenter" else ("--workdir", tmp_path)
    words = (*settings, *(("--data", data) if stage != "prior" else ()), *places)
    # The tokenizer first in the middle of its collection of latents, then after its codebooks'.
    first, second = (19, 6) if stage == "tokenizer" else (3, 3)
    said = kill(first, stage, *words)
    assert f"{stage} 1/" in said
    kill(second, stage, *words)
    assert goes_on in run(stage, *words)
    assert end.read_bytes() == (whole / end.name).read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".state", ".partial")]


def test_a_state_of_other_settings_or_patches_is_not_gone_on_from(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "teacher.safetensors"
    words = ("--data", data, "--out", out)
    kill(3, "segmenter", *SEGMENTER, "--seed", 5, *words)
    assert "not used" in run("segmenter", *SEGMENTER, *words)
    assert out.read_bytes() == (whole / out.name).read_bytes()
    shutil.copy(whole / "tokenizer.safetensors", tmp_path)
    other = write_phantoms(tmp_path / "other", each=4)
    kill(2, "tokens", "--data", other, "--workdir", tmp_path)
    assert "not used" in run("tokens", "--data", data, "--workdir", tmp_path)
    assert (tmp_path / "tokens.safetensors").read_bytes() == (
        whole / "tokens.safetensors"
    ).read_bytes()


def test_states_and_lines_are_due_by_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("training.run.time.monotonic", lambda: now)
    saves, progress = Saves(), ProgressLog(None, "slow")
    for now in (59.0, 61.0):
        assert saves.due() == (now > 60)
        assert progress.due(7)
    saves.done()
    progress.report(7, 10, 1)
    assert not saves.due()
    assert not progress.due(8)
    assert progress.due(50)
    assert not ProgressLog(None, "quiet", every=0).due(50)
