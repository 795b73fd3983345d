from __future__ import annotations

import re
import signal
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.request import ModelInfo
from tests.conftest import DEADLINE_S
from tests.worker.conftest import Jobs, WorkerProcess, ask, ended, wait_until


def refusal(log: Path, checkpoint: Path, **settings: str) -> str:
    """What a worker says that ends with code 2."""
    worker = WorkerProcess({"PATHAR_CHECKPOINT": str(checkpoint), **settings}, log)
    assert worker.process.wait(DEADLINE_S) == 2, worker.log()
    return worker.log()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("key", "value"),
    [("PATHAR_SLOTS", "none"), ("PATHAR_DEVICE", "abacus"), ("PATHAR_CHECKPOINT", "/")],
)
def test_a_bad_setting_ends_the_worker_with_code_2(
    key: str, value: str, slow_checkpoint: Path, tmp_path: Path
) -> None:
    said = refusal(tmp_path / "log", slow_checkpoint, **{key: value})
    assert value in said
    assert "Traceback" not in said


@pytest.mark.processes
def test_a_bad_url_of_redis_ends_the_worker_with_code_2_and_stays_unseen(
    slow_checkpoint: Path, tmp_path: Path
) -> None:
    url = {"PATHAR_REDIS_URL": "redis://:s3cr#et@redis:6379/0"}
    said = refusal(tmp_path / "log", slow_checkpoint, **url)
    assert "PATHAR_REDIS_URL" in said
    assert "s3cr" not in said
    assert len(said.splitlines()) == 1


def test_the_ready_line_says_what_decides_the_bits(
    start_worker: Callable[..., WorkerProcess], info: ModelInfo
) -> None:
    line = start_worker(slots=3).ready().log()
    served = rf"model {info.name} {info.version[:12]}, device cpu, [\w ]+ decoder in \w+, "
    assert re.search(served, line)
    assert f"3 slots, 1 threads, numerics {info.numerics}" in line


def test_an_idle_worker_leaves_at_once_with_code_0(
    start_worker: Callable[..., WorkerProcess],
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        assert start_worker().ready().stop(number) == 0


def test_a_signal_while_the_model_loads_is_no_crash(
    start_worker: Callable[..., WorkerProcess],
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        worker = start_worker(fresh=True)
        wait_until(lambda pid=worker.process.pid: handles_sigterm(pid))  # type: ignore[misc]
        assert worker.stop(number) == 0
        assert worker.log() == ""


def handles_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))


def test_metrics_are_served_on_the_port_that_was_asked_for(
    start_worker: Callable[..., WorkerProcess],
    jobs: Jobs,
    info: ModelInfo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("PATHAR_WORKER_METRICS_PORT", str(port))
    start_worker(slots=3).ready()
    ended(jobs, jobs.submit(ask(2), info).id)
    kind = {"label": "histology", "priority": "interactive", "model": info.name}
    images = "pathar_images_total", *sorted({"status": "finished", **kind}.items())
    free = "pathar_slots", ("model", info.name), ("state", "free")
    found = {}

    def told() -> bool:  # soon, for an image is given out before it is counted
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            families = text_string_to_metric_families(answer.read().decode())
            samples = [sample for family in families for sample in family.samples]
            found.update({(s.name, *sorted(s.labels.items())): s.value for s in samples})
        return (found[images], found[free]) == (2, 3)

    wait_until(told)
    for stage in ("queue", "decode", "vq_decode", "png", "store", "total"):
        times = {"stage": stage, **kind}
        assert found["pathar_image_seconds_count", *sorted(times.items())] == 2
    model = ("model", info.name)
    steps, rows = (found[f"pathar_{name}_total", model] for name in ("steps", "step_rows"))
    assert info.grid_size**2 + 1 <= steps <= rows == 2 * (info.grid_size**2 + 1)
    assert found["pathar_tokens_total", model] == 2 * 2 * info.grid_size**2
