"""The precision that training takes, and the threads."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.processors import usable_cores
from tests.conftest import DEADLINE_S
from tests.training.commands import run
from tests.training.phantoms import write_phantoms
from tests.training.test_training_document import write_tiny_ablations
from training import compute
from training.compute import autocast, precision_name, use_threads
from training.prior import PriorOptions, PriorTrainer, read_tokens
from training.segmenter import SegmenterOptions, SegmenterTrainer
from training.tokenizer import TokenizerOptions, TokenizerTrainer

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("small_features")]

CPU = torch.device("cpu")
FASTER = {"bf16": (0.01, 0.02), "fp32": (0.4, 0.04)}
"""Seconds in bf16 and in fp32 of a trial that chooses the one."""


@pytest.fixture(autouse=True)
def chosen_anew() -> Iterator[None]:
    compute.precision.cache_clear()
    yield
    compute.precision.cache_clear()


def try_as(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = dict(zip((torch.bfloat16, torch.float32), FASTER[chosen], strict=True))
    compute.precision.cache_clear()
    monkeypatch.setattr(compute, "tried", lambda: seconds)


@pytest.mark.parametrize("chosen", FASTER)
def test_the_faster_precision_is_taken_and_said_once(
    chosen: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try_as(chosen, monkeypatch)
    assert precision_name(CPU) == precision_name(CPU) == chosen
    with autocast(CPU):
        made = torch.ones(2, 2) @ torch.ones(2, 2)
    assert made.dtype == (torch.bfloat16 if chosen == "bf16" else torch.float32)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"precision: {chosen} on {torch.get_num_threads()} threads")


@pytest.mark.parametrize("chosen", FASTER)
def test_every_training_multiplies_in_the_precision_that_was_chosen(
    chosen: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A convolution's or a product's result shows what autocast did."""
    try_as(chosen, monkeypatch)
    seen: set[torch.dtype] = set()

    def see(module: torch.nn.Module) -> None:
        kinds = (torch.nn.Conv2d, torch.nn.Linear)
        for layer in module.modules():
            if isinstance(layer, kinds):
                layer.register_forward_hook(lambda _, __, made: seen.add(made.dtype))

    images, masks = torch.zeros(4, 64, 64, 3).byte(), torch.zeros(4, 64, 64).bool()
    segmenter = SegmenterTrainer(SegmenterOptions(2, 0), images, masks)
    tokenizer = TokenizerTrainer(TokenizerOptions("test", 2, 2, 1e-3, 0.3, 0, ()))
    prior = PriorTrainer(PriorOptions(2, 2, 1e-3, 0.3, 0), read_tokens(runs))
    steps = (
        (segmenter.network, segmenter.train_step),
        (tokenizer.tokenizer, lambda: tokenizer.train_step(
            torch.zeros(2, 3, 64, 64), torch.zeros(2, 1, 64, 64), 1e-3)),
        (prior.prior, lambda: prior.train_step(1e-3)),
    )  # fmt: skip
    for network, step in steps:
        seen.clear()
        see(network)
        step()
        assert (torch.bfloat16 in seen) == (chosen == "bf16"), type(network)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), each=24, a_group=8)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of all stages."""
    folder = tmp_path_factory.mktemp("run")
    run("tokenizer", "--size", "test", "--steps", 2, "--data", data, "--workdir", folder)
    run("tokens", "--data", data, "--workdir", folder)
    run("prior", "--steps", 2, "--workdir", folder)
    judge = folder / "checkpoint" / "segmenter.safetensors"
    run("export", "--workdir", folder, "--out", judge.parent)
    run("segmenter", "--image-size", 64, "--steps", 2, "--data", data, "--out", judge)
    return folder


def test_a_state_that_was_made_in_another_precision_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a move to another machine."""
    state, options = tmp_path / "state", TokenizerOptions("test", 2, 2, 1e-3, 0.3, 0, ())
    images, masks = torch.zeros(4, 64, 64, 3).byte(), torch.zeros(4, 64, 64).bool()
    try_as("bf16", monkeypatch)
    TokenizerTrainer(options).save(state)
    SegmenterTrainer(SegmenterOptions(2, 0), images, masks).save(tmp_path / "segmenter", "these")
    TokenizerTrainer(options).load(state)
    assert "its steps were made in" not in capsys.readouterr().out
    try_as("fp32", monkeypatch)
    TokenizerTrainer(options).load(state)
    SegmenterTrainer(SegmenterOptions(2, 0), images, masks).resume(tmp_path / "segmenter", "these")
    said = capsys.readouterr().out
    for name in ("state", "segmenter"):
        assert f"{tmp_path / name}: its steps were made in bf16, further steps use fp32" in said


HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


@pytest.mark.skipif(not HAS_AVX512, reason="needs AVX-512, which it holds back")
def test_a_processor_held_back_to_avx2_trains_in_fp32(data: Path, tmp_path: Path) -> None:
    """There bf16 takes ten times as long. The trial is a real one."""
    words = ("--data", str(data), "--image-size", "64", "--steps", "2")
    done = subprocess.run(
        [sys.executable, "-m", "training.segmenter", *words, "--out", str(tmp_path / "s")],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    assert "precision: fp32 on" in done.stdout


def test_threads_are_those_of_torch_and_of_every_library() -> None:
    from threadpoolctl import threadpool_info

    before = torch.get_num_threads()
    try:
        use_threads(1)
        assert torch.get_num_threads() == 1
        assert all(each["num_threads"] == 1 for each in threadpool_info())
    finally:
        use_threads(before)


LIMIT = 2 if usable_cores() > 2 else 1
BUSY = 0.2
"""Of the busiest thread's time: a thread that took more took part in the work."""
SHORT = "--checkpoint C --data D --out O --samples 8"
COMMANDS = {
    "segmenter": "--data D --image-size 64 --steps 20 --out O/s.safetensors",
    "tokenizer": "--data D --size test --steps 20 --workdir O",
    "tokens": "--data D --workdir R",
    "prior": "--steps 20 --workdir R",
    "evaluate": f"{SHORT} --sections samples,reconstruction",
    "sweep": f"{SHORT} --guidance 1 --temperature 1",
    "ablate": "--data D --workdir O --config A --rows full",
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_limit_of_cores_is_kept(command: str, data: Path, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "run")
    places = {"D": data, "R": tmp_path / "run", "C": runs / "checkpoint", "O": tmp_path}
    places["A"] = tmp_path / "tiny.toml"
    write_tiny_ablations(places["A"])
    words = ["".join(str(places.get(c, c)) for c in word) for word in COMMANDS[command].split()]
    torch.set_num_threads(LIMIT + 1)  # what it would go on with
    before, ended = thread_ticks(), threading.Event()
    ticks: dict[str, int] = {}

    def look() -> None:
        while not ended.wait(0.02):
            ticks.update(thread_ticks())

    watch = threading.Thread(target=look)
    watch.start()
    try:
        output = run(command, *words, threads=LIMIT)
    finally:
        ended.set()
        watch.join()
    ticks.pop(str(watch.native_id), None)
    spent = [count - before.get(name, 0) for name, count in ticks.items()]
    busy = [each for each in spent if each > BUSY * max(spent)]
    assert len(busy) <= LIMIT, f"{len(busy)} threads were busy: {sorted(spent)}"
    assert "precision" not in output or f"on {LIMIT} threads" in output


@pytest.fixture
def one_core() -> Iterator[Path]:
    """A control group that allows one core, of version 1 or 2."""
    old = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").exists()
    group = Path("/sys/fs/cgroup", *(["cpu"] if old else []), f"pathar-test-{os.getpid()}")
    name, limit = ("cpu.cfs_quota_us", "100000") if old else ("cpu.max", "100000 100000")
    try:
        group.mkdir()
        (group / name).write_text(limit)
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield group
    group.rmdir()


def test_a_container_s_limit_is_kept(one_core: Path, data: Path, tmp_path: Path) -> None:
    words = f"--data {data} --image-size 64 --steps 2 --out {tmp_path / 's'}"
    enter = f"echo $$ > {one_core / 'cgroup.procs'} && exec "
    kept = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        ["sh", "-c", f"{enter}{sys.executable} -m training.segmenter {words}"],
        env=kept,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    assert "on 1 threads" in done.stdout


def thread_ticks() -> dict[str, int]:
    """The processor time that each thread of this process has had."""
    found = {}
    for task in Path("/proc/self/task").glob("*/stat"):
        try:
            fields = task.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[task.parent.name] = int(fields[11]) + int(fields[12])
    return found
