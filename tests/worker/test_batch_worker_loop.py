"""The worker's loop in this process, with an engine that is slow or breaks at will."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from model.checkpoint import load_checkpoint
from model.engine import Engine, Patch, TokenGrids
from model.request import ImageRequest, ModelInfo
from pathar.contract import image_seed
from runtime.telemetry import Traces
from store import keys
from store.scripts import RETRIES
from tests.conftest import DEADLINE_S
from tests.worker.conftest import THREADS, Jobs, ask, ended, part_of, wait_until, waiting
from worker.batch_worker import BatchWorker
from worker.metrics import WorkerMetrics

BOMB = 666


class SlowEngine(Engine):
    def step(self) -> list[int]:
        time.sleep(0.1)
        return super().step()


class ExplosiveEngine(Engine):
    """Breaks in the middle of a batch that holds the seed BOMB."""

    bomb: int | None = None

    def admit(self, row: ImageRequest) -> int:
        slot = super().admit(row)
        self.bomb = slot if row.seed == BOMB else self.bomb
        return slot

    def step(self) -> list[int]:
        done = super().step()
        if self.bomb is not None:
            raise RuntimeError("boom")
        return done


class UnrenderableEngine(Engine):
    """Cannot decode the first two images to pixels."""

    unrenderable: set[bytes]

    def render(self, tokens: TokenGrids) -> Patch:
        known = self.__dict__.setdefault("unrenderable", set())
        if len(known) < 2:
            known.add(tokens.structure.tobytes())
        if tokens.structure.tobytes() in known:
            raise ValueError("a secret path")
        return super().render(tokens)


@pytest.fixture(autouse=True)
def _own_signal_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def build(kind: type[Engine], path: Path, client: redis.Redis, slots: int = 4) -> BatchWorker:
    engine = kind(load_checkpoint(path), device="cpu", slots=slots, threads=THREADS)
    worker = BatchWorker(engine, client, WorkerMetrics("test", {}), Traces(), result_ttl=600)
    worker.enter()
    return worker


def test_what_does_not_end_within_the_grace_time_is_handed_back(
    slow_checkpoint: Path, client: redis.Redis, jobs: Jobs, info: ModelInfo
) -> None:
    worker = build(SlowEngine, slow_checkpoint, client)
    job = jobs.submit(ask(6), info)

    def interrupt() -> None:
        wait_until(lambda: jobs.get(job.id) != job)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.2)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    worker.work()
    thread.join()
    seen = jobs.get(job.id)
    assert seen is not None
    assert [part.status for part in seen.parts] == ["queued"] * 6
    queue = keys.queue_name(info.version, info.numerics)
    assert waiting(client, info) == [part_of(job.id, index) for index in range(6)], "the order"
    assert client.hget(keys.PART + part_of(job.id), "retries_left") == str(RETRIES).encode()
    assert client.zcard(keys.STARTED + queue) == 0


def test_an_idle_worker_is_told_of_parts(
    slow_checkpoint: Path,
    client: redis.Redis,
    jobs: Jobs,
    info: ModelInfo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here it would poll too late."""
    monkeypatch.setattr("worker.batch_worker.POLL_S", 2 * DEADLINE_S)
    worker = build(Engine, slow_checkpoint, client)

    def use() -> None:
        wait_until(lambda: client.pubsub_numsub(keys.WAITING_CHANNEL)[0][1] == 1)
        for seed in range(3):
            ended(jobs, jobs.submit(ask(seed=seed), info).id)
        os.kill(os.getpid(), signal.SIGTERM)
        client.publish(keys.WAITING_CHANNEL, keys.queue_name(info.version, info.numerics))

    thread = threading.Thread(target=use)
    thread.start()
    worker.work()
    thread.join()


def test_a_request_that_breaks_the_engine_does_not_take_others_down(
    slow_checkpoint: Path, client: redis.Redis, jobs: Jobs, info: ModelInfo
) -> None:
    bomb = jobs.submit(ask(seed=BOMB), info)
    others = [jobs.submit(ask(2, seed=seed), info) for seed in (1, 2)]
    broken = 0
    while True:
        seen = jobs.get(bomb.id)
        assert seen is not None
        if seen.status == "failed":
            break
        with pytest.raises(RuntimeError, match="boom"):
            build(ExplosiveEngine, slow_checkpoint, client).work()
        broken += 1
    assert broken == RETRIES + 1
    assert "lost worker" in str(seen.error)
    worker = build(Engine, slow_checkpoint, client)
    watch = threading.Thread(
        target=lambda: [
            [ended(jobs, job.id) for job in others],
            os.kill(os.getpid(), signal.SIGTERM),
        ]
    )
    watch.start()
    worker.work()
    watch.join()
    assert [ended(jobs, job.id).status for job in others] == ["finished", "finished"]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_image_that_cannot_be_rendered_fails_alone_after_its_tries_and_tells_no_secrets(
    slow_checkpoint: Path,
    client: redis.Redis,
    jobs: Jobs,
    info: ModelInfo,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.batch_worker.threads_beside", lambda engine: threads)
    submitted = [jobs.submit(ask(seed=image_seed(1, k)), info) for k in range(4)]
    worker = build(UnrenderableEngine, slow_checkpoint, client)

    def stop() -> None:
        for job in submitted:
            ended(jobs, job.id)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    worker.work()
    thread.join()
    done = [ended(jobs, job.id) for job in submitted]
    assert sorted(job.status for job in done) == ["failed", "failed", "finished", "finished"]
    errors = {job.error for job in done if job.error}
    assert errors == {"image could not be drawn: ValueError (image 0, 4 tries)"}
