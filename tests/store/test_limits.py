"""Over a limit: who is sent away, for how long, and that coming back then succeeds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis

from store import keys
from store.access import Limits, Owner
from store.jobs import Expired, Job, JobStore, OtherBody, TooMuch
from store.parts import PartStore
from store.registry import Registry, Speed
from tests.store.conftest import ANN, BOB, FILES, INFO, ask, see, take


@pytest.fixture
def narrow(client: redis.Redis, registry: Registry) -> JobStore:
    """A queue for ten images, drawn at two a second."""
    registry.publish(INFO, "worker-one", 4, Speed(2.0, 1.0))
    return JobStore(client, result_ttl=60, max_waiting=10)


def put(jobs: JobStore, name: str, owner: Owner = ANN, n: int = 1) -> Job:
    return jobs.submit(ask(n), INFO, owner=owner, job_id=name, digest=f"{n}")[0]


def let_time_pass(client: redis.Redis, seconds: float) -> None:
    """As if so many seconds had gone by since all bookings were made."""
    for book in client.scan_iter(f"{keys.BOOKINGS}*"):
        for member in client.zrange(book, 0, -1):
            client.zincrby(book, -seconds, member)


def test_a_full_queue_says_when_there_is_room_and_keeps_it(
    narrow: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    for number in range(10):
        put(narrow, f"early-{number}")
    with pytest.raises(TooMuch) as first:
        put(narrow, "one")
    with pytest.raises(TooMuch) as second:
        put(narrow, "two")
    assert first.value.limit == "queue"
    assert 0 < first.value.retry_after < second.value.retry_after < 5
    with pytest.raises(TooMuch) as again:
        put(narrow, "one")
    assert again.value.retry_after <= first.value.retry_after, "asking again costs the place"
    for held in take(parts, 2):
        assert parts.finish(held, FILES, 1.0) is not None
    with pytest.raises(TooMuch):
        put(narrow, "three")
    let_time_pass(client, second.value.retry_after)
    assert put(narrow, "two").status == "queued"
    assert put(narrow, "one").status == "queued"


def test_a_place_that_nobody_comes_for_is_given_away(
    narrow: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    for number in range(10):
        put(narrow, f"early-{number}")
    with pytest.raises(TooMuch) as full:
        put(narrow, "never comes")
    (held,) = take(parts)
    assert parts.finish(held, FILES, 1.0) is not None
    let_time_pass(client, full.value.retry_after + 60)
    assert put(narrow, "another").status == "queued"


def test_a_key_with_little_waiting_is_let_into_a_queue_that_others_filled(
    narrow: JobStore,
) -> None:
    put(narrow, "all", BOB, n=10)
    assert put(narrow, "mine", ANN).status == "queued"
    with pytest.raises(TooMuch):
        put(narrow, "more", BOB)


def test_each_limit_of_a_key_is_its_own(narrow: JobStore, client: redis.Redis) -> None:
    poor = replace(ANN, limits=Limits(requests_per_minute=3, waiting_images=2))
    put(narrow, "a", poor, n=2)
    with pytest.raises(TooMuch) as waiting:
        put(narrow, "b", poor)
    assert waiting.value.limit == "waiting"
    assert put(narrow, "b", BOB).status == "queued"
    client.delete(keys.RATE + poor.id)
    patient = replace(poor, limits=replace(poor.limits, waiting_images=100))
    for name in ("c", "d", "e"):
        put(narrow, name, patient)
    with pytest.raises(TooMuch) as requests:
        put(narrow, "f", patient)
    assert requests.value.limit == "requests"
    assert 15 < requests.value.retry_after <= 20
    assert put(narrow, "a", poor, n=2).id == "a", "finding a job again costs nothing"


def test_stored_bytes_are_counted_until_they_expire(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    size = sum(len(data) for data in FILES.values())
    small = replace(ANN, limits=Limits(stored_bytes=2 * size))
    for name in ("a", "b"):
        put(jobs, name, small)
        (held,) = take(parts)
        assert parts.finish(held, FILES, 1.0) is not None
    with pytest.raises(TooMuch) as full:
        put(jobs, "c", small)
    assert full.value.limit == "stored"
    assert 0 < full.value.retry_after <= 60
    client.zadd(keys.STORED + small.id, {keys.owned_id(small.id, "a"): 1.0})
    assert put(jobs, "c", small).status == "queued"


def test_without_a_measured_rate_a_full_queue_still_answers(client: redis.Redis) -> None:
    jobs = JobStore(client, result_ttl=60, max_waiting=1)
    put(jobs, "a")
    with pytest.raises(TooMuch) as full:
        put(jobs, "b")
    assert full.value.retry_after > 0


def test_an_id_stands_for_one_body_as_long_as_its_job_and_longer(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = put(jobs, "mine", n=2)
    found, new = jobs.submit(ask(2), INFO, owner=ANN, job_id="mine", digest="2")
    assert (found, new) == (job, False)
    with pytest.raises(OtherBody):
        put(jobs, "mine", n=3)
    assert put(jobs, "mine", BOB, n=3).owner == BOB.id
    assert jobs.cancel("mine", owner=ANN)
    assert see(jobs, job).status == "canceled"
    client.delete(keys.RECORD + keys.owned_id(ANN.id, "mine"))
    assert jobs.expired("mine", owner=ANN)
    with pytest.raises(Expired):
        put(jobs, "mine", n=2)
    with pytest.raises(OtherBody):
        put(jobs, "mine", n=3)
    week = 7 * 86400
    assert week < client.ttl(keys.GONE + keys.owned_id(ANN.id, "mine")) <= week + 60
    assert not jobs.expired("never", owner=ANN)
