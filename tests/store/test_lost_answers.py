"""redis-py repeats a command whose answer was lost: each change of a job's state is made once, and
whoever made it hears so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import redis

from runtime.connection import REDIS_RETRIES, connect
from store import keys
from store.access import ANYBODY
from store.job import Job
from store.jobs import JobStore, TooMuch
from store.parts import PartStore, read_part
from store.registry import Registry, Speed
from store.scripts import IMAGE_BYTES, LOST_REASON, LOST_WORKER, PART_BYTES
from tests.conftest import RedisServer
from tests.lossy import Lossy, lossy
from tests.store.conftest import (
    ANN,
    FILES,
    INFO,
    LINE,
    QUEUE,
    ROOM,
    STEPS,
    ask,
    lapse,
    see,
    submit,
    take,
)


@pytest.fixture(params=[1, REDIS_RETRIES])
def way(redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[Lossy]:
    """Loses as many answers in a row as it is armed with."""
    with lossy(redis_server.folder) as made:
        yield made


@pytest.fixture
def times(way: Lossy, request: pytest.FixtureRequest) -> int:
    """How many answers to lose in a row."""
    return int(request.node.callspec.params["way"])


@pytest.fixture
def far_jobs(way: Lossy) -> Iterator[JobStore]:
    with connect(way.url) as client:
        yield JobStore(client, result_ttl=60)


@pytest.fixture
def far_parts(way: Lossy) -> Iterator[PartStore]:
    with connect(way.url) as client:
        yield PartStore(client, QUEUE, "worker-far", result_ttl=60)


@pytest.fixture(autouse=True)
def _all_were_lost(way: Lossy) -> Iterator[None]:
    yield
    assert way.lost, "no answer was lost: this test has tested nothing"
    assert not way.lose


def told(jobs: JobStore, job: Job) -> Counter[str]:
    """What listeners heard of a job."""
    return Counter(event.kind for event in jobs.events(job.id, owner=ANYBODY))


@pytest.mark.parametrize("named", [True, False])
def test_a_submission(named: bool, far_jobs: JobStore, way: Lossy, times: int) -> None:
    submit(far_jobs)
    way.lose = times
    job, new = far_jobs.submit(
        ask(2), INFO, owner=ANYBODY, job_id="mine" if named else None, digest="d"
    )
    assert new
    assert told(far_jobs, job) == {"queued": 1}
    if named:
        again = far_jobs.submit(ask(2), INFO, owner=ANYBODY, job_id="mine", digest="d")
        assert again == (job, False)


@pytest.mark.parametrize("named", [True, False])
def test_an_order_that_is_refused(
    named: bool, client: redis.Redis, registry: Registry, way: Lossy, times: int
) -> None:
    registry.publish(INFO, "one", 4, Speed(2.0, 1.0))
    with connect(way.url) as far:
        narrow = JobStore(far, result_ttl=60, max_waiting=10)
        narrow.submit(ask(10), INFO, owner=ANN)
        waits = []
        for number in range(2):
            way.lose = times if number else 0
            job_id = f"late-{number}" if named else None
            with pytest.raises(TooMuch) as full:
                narrow.submit(ask(4), INFO, owner=ANN, job_id=job_id, digest="d")
            waits.append(full.value.retry_after)
            assert client.zcard(f"{keys.BOOKINGS}{QUEUE}.{ANN.id}") == number + 1
    assert waits[0] < waits[1] <= 10, "two places of four images, at 1.6 images a second"


def test_a_cancellation(far_jobs: JobStore, way: Lossy, times: int) -> None:
    job = submit(far_jobs)
    assert not far_jobs.cancel("other", owner=ANYBODY)
    way.lose = times
    assert far_jobs.cancel(job.id, owner=ANYBODY)
    assert not far_jobs.cancel(job.id, owner=ANYBODY)
    assert told(far_jobs, job)["canceled"] == 1


def test_a_claim(
    jobs: JobStore, far_parts: PartStore, client: redis.Redis, way: Lossy, times: int
) -> None:
    far_parts.claim(1)
    submit(jobs, ask(5))
    way.lose = times
    claims = far_parts.claim(2)
    assert len(claims) == client.zcard(keys.CLAIMS + QUEUE) == 2
    assert client.llen(LINE) == 3
    assert all(far_parts.start(claim, read_part(claim)) for claim in claims)
    assert len(far_parts.claim(5)) == 3


def test_a_start(
    jobs: JobStore, far_parts: PartStore, client: redis.Redis, way: Lossy, times: int
) -> None:
    submit(jobs)
    take(far_parts)
    job = submit(jobs)
    (claim,) = far_parts.claim(1)
    way.lose = times
    held = far_parts.start(claim, read_part(claim))
    assert held is not None
    assert told(jobs, job)["started"] == 1
    assert far_parts.start(claim, read_part(claim)) == held, "asked again by the worker itself"
    assert far_parts.finish(held, FILES, 1.0)
    assert far_parts.start(claim, read_part(claim)) is None


def test_a_finish(
    jobs: JobStore, far_parts: PartStore, client: redis.Redis, way: Lossy, times: int
) -> None:
    submit(jobs)
    (first,) = take(far_parts)
    far_parts.finish(first, FILES, 1.0)
    job = submit(jobs)
    (held,) = take(far_parts)
    before = int(client.hget(keys.BYTES + ANYBODY.id, "sum") or 0)
    way.lose = times
    total_s = far_parts.finish(held, FILES, 1.0)
    assert total_s == see(jobs, job).parts[0].total_s
    assert told(jobs, job)["image"] == told(jobs, job)["finished"] == 1
    files = sum(len(data) for data in FILES.values())
    after = before - PART_BYTES - ROOM + IMAGE_BYTES + files
    assert int(client.hget(keys.BYTES + ANYBODY.id, "sum") or 0) == after


def test_a_failure(jobs: JobStore, far_parts: PartStore, way: Lossy, times: int) -> None:
    submit(jobs)
    (first,) = take(far_parts)
    assert far_parts.fail(first, "it broke", "engine")
    job = submit(jobs, ask(2))
    held, other = take(far_parts, 2)
    way.lose = times
    assert far_parts.fail(held, "it broke", "engine")
    assert told(jobs, job)["failed"] == 1
    assert not far_parts.fail(other, "it broke too", "engine")
    assert far_parts.finish(held, FILES, 1.0) is None


@pytest.mark.parametrize("suspect", [True, False])
def test_a_hand_back(
    suspect: bool, jobs: JobStore, far_parts: PartStore, client: redis.Redis, way: Lossy, times: int
) -> None:
    submit(jobs, ask(2))
    first, held = take(far_parts, 2)
    far_parts.put_back(first)
    way.lose = times
    far_parts.put_back(held, LOST_WORKER if suspect else None, LOST_REASON)
    assert client.llen(LINE) == 2
    assert [part.losses for part in take(far_parts, 2)] == [int(suspect), 0]


def test_a_refusal(
    jobs: JobStore, far_parts: PartStore, client: redis.Redis, way: Lossy, times: int
) -> None:
    submit(jobs)
    far_parts.refuse(far_parts.claim(1)[0], "not ours")
    job = submit(jobs)
    (claim,) = far_parts.claim(1)
    way.lose = times
    assert far_parts.refuse(claim, "not ours")
    assert told(jobs, job)["failed"] == 1


def test_a_sign_of_life_and_a_sweep(
    jobs: JobStore, parts: PartStore, far_parts: PartStore, client: redis.Redis, way: Lossy,
    times: int,
) -> None:  # fmt: skip
    job = submit(jobs, ask(2))
    mine, other = *take(far_parts), *take(parts)
    far_parts.heartbeat([(mine, 1)], STEPS)
    far_parts.sweep()
    client.zadd(keys.LEASES + QUEUE, {other.part: 1.0})
    way.lose = times
    assert far_parts.heartbeat([(mine, 2), (other, 1)], STEPS) == set()
    assert told(jobs, job)["progress"] == 2
    lapse(client)
    way.lose = times
    far_parts.sweep()
    assert [held.losses for held in take(parts, 3)] == [1, 1]
