"""Real worker processes on a real Redis."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from model.engine import Engine, load_engine
from model.given import Given
from model.request import GenerationRequest, ImageRequest, ModelInfo, SamplingSettings
from pathar.contract import END_STATES
from store import keys
from store.access import ANYBODY
from store.job import Job
from store.jobs import JobStore
from store.registry import Registry
from tests.conftest import DEADLINE_S, RedisServer
from tests.forked import start
from tests.running import wait_until as wait_until
from worker.drawing import draw
from worker.images import numerics

THREADS = 1


class WorkerProcess:
    """`python -m worker`, or another program, in a process of its own, its log in a file. With
    `fresh`, it loads torch itself."""

    def __init__(
        self,
        environment: dict[str, str],
        log: Path,
        program: str | None = None,
        fresh: bool = False,
    ) -> None:
        self._log = log
        env = {**os.environ, **environment}
        self.process = start("worker", env, log, program=program, fresh=fresh)

    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=DEADLINE_S)

    def ready(self) -> WorkerProcess:
        """Wait until it says that it is."""
        wait_until(lambda: "worker ready" in self.log() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log()
        return self


@pytest.fixture
def start_worker(
    redis_server: RedisServer, slow_checkpoint: Path, tmp_path: Path
) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts a worker; call `.ready()` to wait for it."""
    started: list[WorkerProcess] = []

    def started_worker(
        slots: int = 4,
        url: str = redis_server.url,
        program: str | None = None,
        fresh: bool = False,
    ) -> WorkerProcess:
        environment = {
            "PATHAR_REDIS_URL": url,
            "PATHAR_CHECKPOINT": str(slow_checkpoint),
            "PATHAR_DEVICE": "cpu",
            "PATHAR_SLOTS": str(slots),
            "PATHAR_THREADS": str(THREADS),
        }
        log = tmp_path / f"worker-{len(started)}.log"
        started.append(WorkerProcess(environment, log, program, fresh))
        return started[-1]

    yield started_worker
    for worker in started:
        worker.kill()


@pytest.fixture(scope="session")
def engine(slow_checkpoint: Path) -> Engine:
    """An engine with the bits of the worker processes."""
    return load_engine(slow_checkpoint, device="cpu", slots=1, threads=THREADS)


@pytest.fixture(scope="session")
def info(engine: Engine) -> ModelInfo:
    return engine.info(numerics(engine))


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis_server.client() as connected:
        yield connected


class Jobs:
    """The jobs of a deployment without keys, and the models that are served."""

    def __init__(self, client: redis.Redis) -> None:
        self._jobs = JobStore(client, result_ttl=600)
        self.models = Registry(client).models

    def submit(
        self, request: GenerationRequest, info: ModelInfo, given: Given | None = None
    ) -> Job:
        return self._jobs.submit(request, info, owner=ANYBODY, given=given)[0]

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id, owner=ANYBODY)

    def cancel(self, job_id: str) -> bool:
        return self._jobs.cancel(job_id, owner=ANYBODY)


def part_of(job_id: str, index: int = 0) -> str:
    """A part's id in Redis."""
    return keys.part_id(keys.owned_id(ANYBODY.id, job_id), index)


def waiting(client: redis.Redis, info: ModelInfo) -> list[str]:
    """The parts that wait for this model, in their order."""
    queue = keys.queue_name(info.version, info.numerics)
    line = client.lrange(f"{keys.QUEUE}{queue}.interactive.{ANYBODY.id}", 0, -1)
    return [part.decode() for part in line]


@pytest.fixture
def jobs(client: redis.Redis) -> Jobs:
    return Jobs(client)


def ask(n: int = 1, *, seed: int = 1, label: str = "histology") -> GenerationRequest:
    """A request; settings vary with the seed, so that rows of a batch differ."""
    settings = SamplingSettings(1.0 + seed % 3, 0.5 + 0.1 * (seed % 5), seed % 7, 0.9)
    return GenerationRequest((label,), n, seed, (settings,))


def ended(jobs: Jobs, job_id: str) -> Job:
    """The job once it has reached an end state."""
    found: list[Job] = []

    def has_ended() -> bool:
        job = jobs.get(job_id)
        assert job is not None
        found[:] = [job]
        return job.status in END_STATES

    wait_until(has_ended)
    return found[0]


def alone(engine: Engine, request: GenerationRequest) -> list[dict[str, bytes]]:
    """The request's files, each drawn with no neighbour and no server."""
    return [files for _, files in sorted(draw(engine, request.images()), key=lambda item: item[0])]


_drawn: dict[tuple[Engine, ImageRequest], dict[str, bytes]] = {}


def expected(engine: Engine, request: GenerationRequest) -> list[dict[str, bytes]]:
    """The same, with no image drawn twice by one engine: for comparing what workers drew."""
    images = list(request.images())
    missing = [image for image in images if (engine, image) not in _drawn]
    for index, files in draw(engine, missing):
        _drawn[engine, missing[index]] = files
    return [_drawn[engine, image] for image in images]
