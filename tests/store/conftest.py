"""A model to submit to, and the stores on a Redis of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from model.request import GenerationRequest, Label, ModelInfo, SamplingSettings
from pathar.contract import Priority
from store import keys, scripts
from store.access import ANYBODY, Limits, Owner
from store.job import Job
from store.jobs import JobStore
from store.parts import HeldPart, PartStore, RefusedPart, read_part
from store.registry import Registry
from store.results import room
from tests.conftest import RedisServer

INFO = ModelInfo(
    name="test",
    version="ab" * 32,
    numerics="0123456789ab",
    labels=(Label("histology", "modality"),),
    defaults=SamplingSettings(),
    codebook_size=16,
    grid_size=4,
    image_size=64,
)
NEW = replace(INFO, numerics="ffffffffffff")
"""The same version on workers whose bits differ."""
QUEUE = keys.queue_name(INFO.version, INFO.numerics)
ROOM = room(INFO)
"""What is kept for the files of an image that is not drawn yet."""
FILES = {
    "image.png": b"\x89PNG\x00image",
    "mask.png": b"\x00mask",
    "instances.png": b"\x00ids",
    "tokens.json": b"{}",
}


LINE = f"{keys.QUEUE}{QUEUE}.interactive.{ANYBODY.id}"
"""Where parts of interactive jobs wait when nobody needs a key."""
STEPS = INFO.grid_size**2 + 1
ANN = Owner("aaaaaaaa", "ann", 1.0, Limits())
BOB = Owner("bbbbbbbb", "bob", 3.0, Limits())


def ask(n: int = 1, seed: int = 7) -> GenerationRequest:
    return GenerationRequest(("histology",), n, seed, (SamplingSettings(),))


class Clock:
    """The time that the scripts read: it stands still until it is moved."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.now = float(int(time.time()))
        self.forward(0)

    def forward(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.now += seconds
        whole = int(self.now)
        self._client.delete("clock")
        self._client.rpush("clock", whole, int(1e6 * (self.now - whole)))


@pytest.fixture
def clock(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for the scripts of all stores that are made after it."""
    real = scripts.script

    def script(name: str) -> str:
        return real(name).replace("redis.call('TIME')", "redis.call('LRANGE', 'clock', 0, 1)")

    monkeypatch.setattr(scripts, "script", script)
    return Clock(client)


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis_server.client() as connected:
        yield connected


@pytest.fixture
def jobs(client: redis.Redis) -> JobStore:
    return JobStore(client, result_ttl=60)


@pytest.fixture
def registry(client: redis.Redis) -> Registry:
    return Registry(client)


@pytest.fixture
def parts(client: redis.Redis) -> PartStore:
    return PartStore(client, QUEUE, "worker-one", result_ttl=60)


@pytest.fixture
def rival(client: redis.Redis) -> PartStore:
    return PartStore(client, QUEUE, "worker-two", result_ttl=60)


def submit(
    jobs: JobStore,
    request: GenerationRequest | None = None,
    owner: Owner = ANYBODY,
    priority: Priority = "interactive",
) -> Job:
    """A new job."""
    job, new = jobs.submit(request or ask(), INFO, owner=owner, priority=priority)
    assert new
    return job


def see(jobs: JobStore, job: Job) -> Job:
    """A job as it is now."""
    seen = jobs.get(job.id, owner=Owner(job.owner, "", 1.0, Limits()))
    assert seen is not None
    return seen


def part_of(job: Job, index: int = 0) -> str:
    """A part's id in Redis."""
    return keys.part_id(keys.owned_id(job.owner, job.id), index)


def take(parts: PartStore, count: int = 1) -> list[HeldPart]:
    """Claim and start, as a worker does."""
    found = []
    for claim in parts.claim(count):
        try:
            found.append(parts.start(claim, read_part(claim)))
        except RefusedPart as error:
            parts.refuse(claim, str(error))
    return [part for part in found if part is not None]


def last_seen(client: redis.Redis, info: ModelInfo, ago: float) -> None:
    """As if the last worker of this model had spoken so many seconds ago."""
    seen = client.time()[0] - ago
    queue = keys.queue_name(info.version, info.numerics)
    client.hset(keys.MODELS, queue, json.dumps({"info": info.to_dict(), "seen": seen}))


def lapse(client: redis.Redis) -> None:
    """Let every lease and claim run out, as if the holders had been silent for long."""
    for prefix in (keys.LEASES, keys.CLAIMS):
        for member in client.zrange(prefix + QUEUE, 0, -1):
            client.zadd(prefix + QUEUE, {member: 1.0})
