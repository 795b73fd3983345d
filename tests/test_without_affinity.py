"""Where `os` has no processor affinity, as on macOS and Windows: one place asks for it, and every
command runs without.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEADLINE_S
from tests.running import environment, wait_until
from tests.test_packaging import PACKAGES, ROOT
from tests.training import commands
from tests.training.phantoms import write_phantoms

pytestmark = pytest.mark.processes

STEPS = "--tokenizer-steps 2 --prior-steps 2 --segmenter-steps 2"
BENCHMARKS = ("decode", "service", "admission", "memory", "identity", "hosts")


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose Pythons have no affinity."""
    folder = tmp_path_factory.mktemp("site")
    lines = "import os\ndel os.sched_getaffinity, os.sched_setaffinity\n"
    (folder / "sitecustomize.py").write_text(lines if hasattr(os, "sched_getaffinity") else "")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PATHAR_THREADS": "0"}


def run(env: dict[str, str], *words: object, codes: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode in codes, done.stdout
    return done.stdout


def test_one_place_asks_for_it() -> None:
    """Commands of training take their threads from there; benchmarks place processes by it."""
    sources = (path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    asking = {path.relative_to(ROOT) for path in sources if "sched_" in path.read_text()}
    assert {path for path in asking if path.parts[0] != "benchmarks"} == {
        Path("model/processors.py")
    }


def test_training_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every stage, what judges the checkpoint, and ablations as far as their patches."""
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name, raising=False)
    data = write_phantoms(tmp_path / "phantoms", each=24, a_group=8)
    made, out = tmp_path / "mine", tmp_path / "out"
    words = ("--data", data, "--workdir", tmp_path / "run", "--out", made, "--size", "test")
    commands.run("train", *words, *STEPS.split())
    assert (made / "segmenter.safetensors").exists()
    judged = ("--checkpoint", made, "--data", data, "--out", out, "--samples", 8)
    commands.run("evaluate", *judged, "--sections", "samples")
    assert (out / "samples.jpg").exists()
    commands.run("sweep", *judged, "--guidance", 1, "--temperature", 1)
    assert (out / "sweep.json").exists()
    nowhere = ("--data", tmp_path / "nowhere", "--workdir", tmp_path / "work")
    assert "training.ablate: " in commands.run("ablate", *nowhere, code=1)


def test_a_worker_is_ready_to_take_images(without: dict[str, str], test_checkpoint: Path) -> None:
    """It waits for a Redis that there is not once it has its threads and its engine."""
    env = environment(test_checkpoint, **without) | {"PATHAR_REDIS_URL": "redis://127.0.0.1:1"}
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


def test_benchmarks_load(without: dict[str, str]) -> None:
    modules = ", ".join(f"benchmarks.{name}" for name in BENCHMARKS)
    check = f"import os, {modules}; print(hasattr(os, 'sched_getaffinity'))"
    assert run({**os.environ, **without}, "-c", check).split() == ["False"]


def test_the_demo_draws(without: dict[str, str], test_checkpoint: Path, tmp_path: Path) -> None:
    """On one thread: which ones a worker takes is asked above."""
    env = environment(test_checkpoint, **{**without, "PATHAR_THREADS": "1"})
    run(env, "-m", "pathar", "demo", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "contact_sheet.png").exists()


def test_the_doctor_counts_cores(without: dict[str, str], test_checkpoint: Path) -> None:
    said = run(environment(test_checkpoint, **without), "-m", "pathar", "doctor", codes=(0, 1))
    assert "cores; a worker takes" in said
    assert "Traceback" not in said
