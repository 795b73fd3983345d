"""Every command where `os` has no processor affinity, as on macOS and Windows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEADLINE_S
from tests.running import environment, wait_until
from tests.training.phantoms import write_phantoms

ROOT = Path(__file__).parent.parent
BENCHMARKS = ("decode", "service", "admission", "memory", "identity", "hosts")
STEPS = "--tokenizer-steps 2 --prior-steps 2 --segmenter-steps 2"


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose Pythons have no affinity."""
    folder = tmp_path_factory.mktemp("site")
    lines = "import os\ndel os.sched_getaffinity, os.sched_setaffinity\n"
    (folder / "sitecustomize.py").write_text(lines if hasattr(os, "sched_getaffinity") else "")
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), each=24, a_group=8)


@pytest.fixture(scope="module")
def trained(data: Path, without: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of all stages."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["--data", data, "--workdir", folder / "run", "--out", folder / "mine"]
    run(without, "training.train", *words, "--size", "test", *STEPS.split())
    return folder / "mine"


def run(env: dict[str, str], module: str, *words: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def test_there_is_none(without: dict[str, str]) -> None:
    check = "import os, sys; sys.exit(hasattr(os, 'sched_getaffinity'))"
    assert subprocess.run([sys.executable, "-c", check], env=without).returncode == 0


def test_a_checkpoint_is_trained(trained: Path) -> None:
    assert (trained / "segmenter.safetensors").exists()


def test_it_is_evaluated(
    trained: Path, data: Path, without: dict[str, str], tmp_path: Path
) -> None:
    words = ("--checkpoint", trained, "--data", data, "--out", tmp_path, "--samples", 8)
    run(without, "training.evaluate", *words, "--sections", "samples")
    assert (tmp_path / "samples.jpg").exists()


def test_it_is_swept(trained: Path, data: Path, without: dict[str, str], tmp_path: Path) -> None:
    words = ("--checkpoint", trained, "--data", data, "--out", tmp_path, "--samples", 8)
    run(without, "training.sweep", *words, "--guidance", 1, "--temperature", 1)
    assert (tmp_path / "sweep.json").exists()


def test_ablations_get_as_far_as_their_patches(without: dict[str, str], tmp_path: Path) -> None:
    words = ("--data", tmp_path / "nowhere", "--workdir", tmp_path / "work")
    said = run(without, "training.ablate", *words, code=1)
    assert "training.ablate: " in said
    assert "Traceback" not in said


def test_a_worker_is_ready_to_take_images(without: dict[str, str], test_checkpoint: Path) -> None:
    """It waits for a Redis that there is not once it has its threads and its engine."""
    env = environment(test_checkpoint, **{key: without[key] for key in ("PYTHONPATH",)})
    env |= {"PATHAR_THREADS": "0", "PATHAR_REDIS_URL": "redis://127.0.0.1:1"}
    process = subprocess.Popen([sys.executable, "-m", "worker"], env=env, stderr=subprocess.PIPE)
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    said = b""

    def waits() -> bool:
        nonlocal said
        said += process.stderr.read() or b"" if process.stderr else b""
        assert process.poll() is None, said.decode()
        return b"waiting for Redis" in said

    try:
        wait_until(waits, "the worker's wait for Redis")
    finally:
        process.kill()
        process.communicate()


def test_the_demo_draws(without: dict[str, str], test_checkpoint: Path, tmp_path: Path) -> None:
    env = environment(test_checkpoint, PYTHONPATH=without["PYTHONPATH"], PATHAR_THREADS="0")
    run(env, "pathar", "demo", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "contact_sheet.png").exists()


def test_pairs_are_drawn_without_a_service(
    without: dict[str, str], test_checkpoint: Path, tmp_path: Path
) -> None:
    env = environment(test_checkpoint, PYTHONPATH=without["PYTHONPATH"], PATHAR_THREADS="0")
    run(env, "pathar", "generate", "--label", "histology", "--out", tmp_path)
    assert list(tmp_path.glob("*_mask.png"))


def test_the_doctor_counts_cores(without: dict[str, str], test_checkpoint: Path) -> None:
    env = environment(test_checkpoint, PYTHONPATH=without["PYTHONPATH"], PATHAR_THREADS="0")
    done = subprocess.run(
        [sys.executable, "-m", "pathar", "doctor"], env=env, capture_output=True, text=True
    )
    assert "cores; a worker takes" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_parse(name: str, without: dict[str, str]) -> None:
    assert "usage" in run(without, f"benchmarks.{name}", "--help")
