"""The promise of the whole: a request's bytes never depend on what else is going on.

Real processes: Redis, worker, API, HTTP. The probe is drawn alone by an engine in this process,
then by the service alone, in a full batch of others, joined while others are half way, and after
its worker was killed and another took it over. One of the others paints two labels on a given mask.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model.engine import load_engine
from model.given import Given, Stream
from model.request import ImageRequest, SamplingSettings
from tests.running import Up, painted, png_text
from worker.drawing import draw

SLOTS = 4
TRIES = 100
"""How often a moment in the middle of a decode may be missed."""
SETTINGS: dict[str, Any] = {"cfg_scale": 2.5, "temperature": 0.9, "top_k": 20, "top_p": 0.9}
PROBE = {"label": "histology", "seed": 42, **SETTINGS}
MASK = painted(128)
GIVEN = {"mask_png": png_text(MASK)}
OTHERS: list[dict[str, Any]] = [
    {"label": "blood", "seed": 1, "cfg_scale": 1.0, "temperature": 1.3},
    {"labels": ["cervix", "cytology"], "seed": 3, "temperature": 0.0, "structure": GIVEN},
]


@pytest.fixture
def up(slow_checkpoint: Path) -> Iterator[Up]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = Up(slow_checkpoint, PATHAR_SLOTS=str(SLOTS), PATHAR_WORKER_METRICS_PORT=port)
    try:
        yield running.ready()
    finally:
        running.close()


def test_bytes_are_the_same_alone_in_a_batch_joined_in_mid_decode_and_after_takeover(
    up: Up, slow_checkpoint: Path
) -> None:
    engine = load_engine(slow_checkpoint, device="cpu", slots=1, threads=1)
    probe = ImageRequest(PROBE["label"], PROBE["seed"], SamplingSettings(**SETTINGS))
    others = SamplingSettings(**{**vars(engine.config.defaults), "temperature": 0.0})
    mask = np.packbits(MASK).tobytes()
    on_mask = Given(Stream("mask", mask))
    wanted = [ImageRequest(label, 3, others, on_mask) for label in OTHERS[-1]["labels"]]
    drawn = dict(draw(engine, [*wanted, probe]))
    expected = drawn[2]
    steps = engine.steps_per_image

    assert up.files(_finished(up, _post(up, PROBE)), 0) == expected, "alone"
    assert _last(up, _in_a_full_batch(up, steps)) == drawn, "in a full batch"
    assert up.files(_joined_in_mid_decode(up, steps), 0) == expected, "joined in mid-decode"
    assert _last(up, _taken_over(up)) == drawn, "after a takeover"


def _last(up: Up, jobs: list[str]) -> dict[int, dict[str, bytes]]:
    """What was painted, and the probe."""
    *_, painted_job, probe = jobs
    return {0: up.files(painted_job, 0), 1: up.files(painted_job, 1), 2: up.files(probe, 0)}


def _in_a_full_batch(up: Up, steps: int) -> list[str]:
    """The probe and others in all slots at once: the steps made in all prove it."""
    for _ in range(TRIES):
        before = _steps(up)
        worker = up.pid("worker")
        os.kill(worker, signal.SIGSTOP)
        jobs = [_post(up, body) for body in [*OTHERS, PROBE]]
        os.kill(worker, signal.SIGCONT)
        for job in jobs:
            _finished(up, job)
        if _steps(up) - before == steps:
            return jobs
    pytest.fail("the worker never drew all of them in one batch")


def _joined_in_mid_decode(up: Up, steps: int) -> str:
    """The probe, joined while others were half way: the steps made in all prove it."""
    for _ in range(TRIES):
        before = _steps(up)
        jobs = [_post(up, {**OTHERS[0], "n": 2}), _post(up, PROBE)]
        for job in jobs:
            _finished(up, job)
        made = _steps(up) - before
        assert steps <= made <= 2 * steps
        if steps < made < 2 * steps:
            return jobs[-1]
    pytest.fail("the probe never joined in mid-decode")


def _taken_over(up: Up) -> list[str]:
    """The probe, whose worker is killed between its start and its end."""
    worker = up.pid("worker")
    for attempt in range(TRIES):
        os.kill(worker, signal.SIGSTOP)
        jobs = [_post(up, body) for body in [*OTHERS, PROBE]]
        os.kill(worker, signal.SIGCONT)
        time.sleep(0.004 * (attempt % 25))
        os.kill(worker, signal.SIGSTOP)
        caught = _status(up, jobs[-1]) == "started"
        os.kill(worker, signal.SIGKILL if caught else signal.SIGCONT)
        for job in jobs:
            _finished(up, job)
        if caught:
            assert up.pid("worker") != worker
            return jobs
    pytest.fail("the probe always ended before its worker could be killed")


def _post(up: Up, body: dict[str, Any]) -> str:
    answer = up.http.post("/generate?wait=0", json=body).raise_for_status()
    job_id: str = answer.json()["job_id"]
    return job_id


def _status(up: Up, job_id: str) -> str:
    status: str = up.http.get(f"/jobs/{job_id}").json()["status"]
    return status


def _finished(up: Up, job_id: str) -> str:
    assert up.ended(job_id)["status"] == "finished"
    return job_id


def _steps(up: Up) -> int:
    """How many decode steps the worker has made."""
    text = httpx.get(f"http://127.0.0.1:{up.env['PATHAR_WORKER_METRICS_PORT']}/metrics").text
    found = re.search(r"^pathar_steps_total{.*} (\S+)", text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))
