"""A job canceled while it waits or is drawn: its slots are free at once, neighbours unharmed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from model.checkpoint import load_checkpoint
from model.engine import Engine
from model.request import ModelInfo
from pathar.contract import FILE_NAMES
from runtime.telemetry import Traces
from store import keys
from store.access import ANYBODY
from store.results import ResultStore
from tests.worker.conftest import THREADS, Jobs, ask, ended, expected
from worker.batch_worker import BatchWorker
from worker.metrics import WorkerMetrics

DOOMED = 13
HEARD_S = 5.0
SLOTS = 4


class WatchedEngine(Engine):
    """Calls `at` once, when the row with the seed DOOMED has made `step` steps, and waits until the
    worker has heard of it; then counts the steps until that row is gone."""

    step_to_act = 0
    act: Callable[[], None] = staticmethod(lambda: None)
    heard: Callable[[], bool] = staticmethod(lambda: True)
    acted = False
    steps_after = 0

    def doomed(self) -> list[int]:
        return [slot for slot, row in enumerate(self._rows) if row and row.seed == DOOMED]

    def step(self) -> list[int]:
        for slot in self.doomed():
            self.steps_after += self.acted
            if not self.acted and self.age(slot) == self.step_to_act:
                self.acted = True
                self.act()
                deadline = time.monotonic() + HEARD_S
                while not self.heard() and time.monotonic() < deadline:
                    time.sleep(0.001)
        return super().step()


@pytest.mark.parametrize("place", ["step 1", "half way", "the last step"])
def test_a_job_canceled_in_mid_decode_leaves_at_the_next_step(
    place: str,
    slow_checkpoint: Path,
    client: redis.Redis,
    jobs: Jobs,
    info: ModelInfo,
    engine: Engine,
) -> None:
    watched = WatchedEngine(
        load_checkpoint(slow_checkpoint), device="cpu", slots=SLOTS, threads=THREADS
    )
    steps = watched.steps_per_image
    watched.step_to_act = {"step 1": 1, "half way": steps // 2, "the last step": steps - 1}[place]
    worker = BatchWorker(watched, client, WorkerMetrics("test", {}), Traces(), result_ttl=600)
    wanted = {
        jobs.submit(request, info).id: request for request in (ask(2, seed=1), ask(3, seed=2))
    }
    doomed = jobs.submit(ask(1, seed=DOOMED), info).id
    wanted |= {jobs.submit(request, info).id: request for request in (ask(4, seed=3),)}
    watched.act = lambda: assert_true(jobs.cancel(doomed))
    watched.heard = lambda: any(task.lost for task in worker._ledger.at())
    worker.enter()

    def stop() -> None:
        for job_id in wanted:
            ended(jobs, job_id)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    worker.work()
    thread.join()
    assert watched.acted
    assert watched.steps_after == 0, "it was drawn on after its cancel was heard"
    assert watched.free == SLOTS
    seen = jobs.get(doomed)
    assert seen is not None
    assert seen.status == "canceled"
    results = ResultStore(client)
    assert results.get(ANYBODY.id, doomed, 0, FILE_NAMES[0]) is None
    for job_id, request in wanted.items():
        assert drawn(results, job_id, request.n) == expected(engine, request)
    assert client.keys(f"{keys.EXECUTION}*") == []


def test_a_job_canceled_while_it_waits_is_never_drawn(
    slow_checkpoint: Path, client: redis.Redis, jobs: Jobs, info: ModelInfo, engine: Engine
) -> None:
    watched = WatchedEngine(
        load_checkpoint(slow_checkpoint), device="cpu", slots=SLOTS, threads=THREADS
    )
    wanted = {jobs.submit(ask(6, seed=1), info).id: ask(6, seed=1)}
    doomed = jobs.submit(ask(8, seed=DOOMED), info).id
    wanted |= {jobs.submit(ask(2, seed=2), info).id: ask(2, seed=2)}
    watched.act = lambda: pytest.fail("it was drawn")
    worker = BatchWorker(watched, client, WorkerMetrics("test", {}), Traces(), result_ttl=600)
    worker.enter()

    def cancel_and_stop() -> None:
        started(jobs, next(iter(wanted)))
        assert jobs.cancel(doomed)
        for job_id in wanted:
            ended(jobs, job_id)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=cancel_and_stop)
    thread.start()
    worker.work()
    thread.join()
    assert not watched.acted
    assert watched.free == SLOTS
    assert ended(jobs, doomed).status == "canceled"
    results = ResultStore(client)
    for job_id, request in wanted.items():
        assert drawn(results, job_id, request.n) == expected(engine, request)


def started(jobs: Jobs, job_id: str) -> None:
    """Wait until an image of the job has a slot."""
    while (job := jobs.get(job_id)) is None or job.status == "queued":
        time.sleep(0.001)


def drawn(results: ResultStore, job_id: str, n: int) -> list[dict[str, bytes | None]]:
    """The files of each image of a job."""
    return [
        {name: results.get(ANYBODY.id, job_id, index, name) for name in FILE_NAMES}
        for index in range(n)
    ]


def assert_true(value: bool) -> None:
    assert value
