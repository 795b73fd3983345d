"""What a key's jobs take of Redis: little once they have ended, and no more than its limit says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import redis

from pathar.contract import MAX_BEST_OF
from service.request_schemas import MOST_URL
from store import keys
from store.access import Limits, Owner
from store.jobs import JobStore, TooMuch
from store.parts import PartStore
from store.results import ResultStore
from store.scripts import GONE_BYTES, GONE_S, IMAGE_BYTES, PART_BYTES, RECORD_BYTES
from tests.store.conftest import ANN, FILES, INFO, ROOM, STEPS, Clock, ask, see, take

LARGE = 1000
OPEN_BYTES = RECORD_BYTES + PART_BYTES + ROOM
"""What a job of one image counts until it has ended."""
LASTING = (keys.ENDS, keys.MODELS, keys.WORKERS, "clock")


def put(jobs: JobStore, name: str, n: int, owner: Owner = ANN) -> None:
    jobs.submit(ask(n), INFO, owner=owner, job_id=name, digest=f"{n}")


def taken(client: redis.Redis) -> int:
    """Bytes of Redis that jobs take, without what a worker's claim takes for ten seconds."""
    names = [key.decode() for key in client.scan_iter(count=10_000)]
    names = [each for each in names if each not in LASTING and not each.startswith(keys.CLAIMED)]
    return sum(client.memory_usage(name, samples=0) or 0 for name in names)


def counted(client: redis.Redis, owner: Owner = ANN) -> int:
    return int(client.hget(keys.BYTES + owner.id, "sum") or 0)


@pytest.mark.parametrize("n", [1, 10, LARGE])
def test_a_job_that_waits_takes_no_more_than_it_counts(
    n: int, jobs: JobStore, client: redis.Redis
) -> None:
    before = taken(client)
    best = replace(ask(n), best_of=MAX_BEST_OF)
    jobs.submit(best, INFO, owner=ANN, job_id="a", digest="a")
    assert counted(client) == RECORD_BYTES + n * (PART_BYTES + ROOM)
    assert taken(client) - before < counted(client) - n * ROOM


def test_a_canceled_job_keeps_one_small_record_whatever_its_size(
    jobs: JobStore, client: redis.Redis
) -> None:
    before = taken(client)
    sizes = []
    for n in (1, LARGE):
        put(jobs, f"of-{n}", n)
        assert jobs.cancel(f"of-{n}", owner=ANN)
        sizes.append(taken(client) - before - sum(sizes))
        assert counted(client) == len(sizes) * RECORD_BYTES
    assert max(sizes) < RECORD_BYTES
    assert abs(sizes[1] - sizes[0]) < 1024
    job = jobs.get(f"of-{LARGE}", owner=ANN)
    assert job is not None
    assert (job.status, {part.status for part in job.parts}) == ("canceled", {"canceled"})
    assert len(job.parts) == LARGE


def test_a_job_that_is_being_drawn_takes_no_more_than_it_counts_and_leaves_little(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    before = taken(client)
    put(jobs, "a", LARGE)
    held = take(parts, LARGE)
    assert parts.heartbeat([(each, 3) for each in held], STEPS) == set()
    assert taken(client) - before < counted(client) - LARGE * ROOM
    assert jobs.cancel("a", owner=ANN)
    assert parts.heartbeat([(each, 4) for each in held], STEPS) == {each.execution for each in held}
    assert taken(client) - before < counted(client) == RECORD_BYTES
    told = [event.kind for event in jobs.events("a", owner=ANN)]
    assert told == ["queued", "canceled"]


@pytest.mark.parametrize("delivered", [1, 5])
def test_dropping_a_job_leaves_its_states_and_a_small_record(
    delivered: int, jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    before = taken(client)
    put(jobs, "a", LARGE)
    held = take(parts, 10)
    for each in held[:delivered]:
        assert parts.finish(each, FILES, 1.0) is not None
    assert parts.fail(held[delivered], "no", "engine")
    was = jobs.get("a", owner=ANN)
    assert was is not None
    assert jobs.drop("a", owner=ANN)
    job = jobs.get("a", owner=ANN)
    assert job is not None
    assert [part.status for part in job.parts] == [part.status for part in was.parts]
    assert (job.status, job.error, job.steps) == (was.status, was.error, was.steps)
    assert job.parts[0].decode_s is None
    assert taken(client) - before < counted(client) == RECORD_BYTES


def test_what_a_key_takes_stays_below_its_limit_when_all_is_drawn(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    """As many orders as are let in, each image as large as it can be."""
    limit = 40 * OPEN_BYTES
    small = replace(ANN, limits=Limits(requests_per_minute=10_000, stored_bytes=limit))
    accepted = limit // (RECORD_BYTES + 5 * (PART_BYTES + ROOM))
    for number in range(accepted):
        put(jobs, f"a{number}", 5, small)
    with pytest.raises(TooMuch) as full:
        put(jobs, "one more", 5, small)
    assert full.value.limit == "stored"
    assert full.value.retry_after <= 60
    files = {name: bytes(ROOM // len(FILES)) for name in FILES}
    for held in take(parts, 5 * accepted):
        assert parts.finish(held, files, 1.0) is not None
    # The allocator rounds each file up to one of its sizes, by a quarter at most.
    assert taken(client) < counted(client) + 5 * accepted * ROOM // 4
    assert counted(client) < limit


def test_a_canceled_job_with_the_longest_url_takes_no_more_than_it_counts(
    jobs: JobStore, client: redis.Redis
) -> None:
    url = "https://a.example/" + "x" * (MOST_URL - 18)
    jobs.submit(ask(LARGE), INFO, owner=ANN, job_id="j" * 64, digest="d" * 64, notify=url)
    assert jobs.cancel("j" * 64, owner=ANN)
    assert taken(client) < counted(client) == RECORD_BYTES


def test_a_failed_job_keeps_one_small_record_and_what_failed(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    put(jobs, "a", LARGE)
    (held,) = take(parts)
    assert parts.fail(held, "no", "engine")
    assert taken(client) < 2 * RECORD_BYTES
    job = jobs.get("a", owner=ANN)
    assert job is not None
    assert [part.status for part in job.parts] == ["failed"] + ["canceled"] * (LARGE - 1)


def test_a_finished_job_takes_no_more_than_it_counts_and_gives_it_back_when_dropped(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    n = 100
    put(jobs, "a", n)
    for held in take(parts, n):
        assert parts.finish(held, FILES, 1.25) is not None
    files = n * sum(len(data) for data in FILES.values())
    assert taken(client) < counted(client) == RECORD_BYTES + n * IMAGE_BYTES + files
    assert jobs.drop("a", owner=ANN)
    assert taken(client) < counted(client) == RECORD_BYTES
    job = jobs.get("a", owner=ANN)
    assert job is not None
    assert [part.status for part in job.parts] == ["finished"] * n
    assert [event.kind for event in jobs.events("a", owner=ANN)] == ["finished"]


def test_what_was_delivered_of_a_canceled_job_stays(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    put(jobs, "a", LARGE)
    first, second = take(parts, 2)
    assert parts.finish(first, FILES, 1.0) is not None
    assert jobs.cancel("a", owner=ANN)
    assert parts.was_canceled(second)
    assert not parts.was_canceled(first)
    assert parts.finish(second, FILES, 1.0) is None
    job = jobs.get("a", owner=ANN)
    assert job is not None
    assert [part.status for part in job.parts[:3]] == ["finished", "canceled", "canceled"]
    assert ResultStore(client).image(ANN.id, "a", 0) == FILES
    files = sum(len(data) for data in FILES.values())
    assert counted(client) == RECORD_BYTES + IMAGE_BYTES + files


def test_making_and_canceling_is_bounded_by_the_bytes_of_a_key(
    jobs: JobStore, client: redis.Redis
) -> None:
    small = replace(
        ANN, limits=Limits(requests_per_minute=10_000, stored_bytes=9 * RECORD_BYTES + OPEN_BYTES)
    )
    for number in range(10):
        put(jobs, f"a{number}", 1, small)
        assert jobs.cancel(f"a{number}", owner=small)
    with pytest.raises(TooMuch) as full:
        put(jobs, "one more", 1, small)
    assert full.value.limit == "stored"
    assert taken(client) < 10 * RECORD_BYTES


def test_ids_of_expired_jobs_count_until_they_are_forgotten(
    clock: Clock, client: redis.Redis
) -> None:
    jobs = JobStore(client, result_ttl=60)
    for number in range(3):
        put(jobs, f"a{number}", 1)
        assert jobs.cancel(f"a{number}", owner=ANN)
    for number in range(3):  # as Redis does after 60 s
        _delete(client, [keys.RECORD, keys.EVENTS], keys.owned_id(ANN.id, f"a{number}"))
    clock.forward(61)
    put(jobs, "b", 1)
    assert counted(client) == 3 * GONE_BYTES + OPEN_BYTES
    clock.forward(GONE_S + 61)
    _delete(client, [keys.GONE], *(keys.owned_id(ANN.id, f"a{number}") for number in range(3)))
    put(jobs, "c", 1)
    assert counted(client) == 2 * OPEN_BYTES


def _delete(client: redis.Redis, prefixes: Iterable[str], *jobs: str) -> None:
    client.delete(*(prefix + job for prefix in prefixes for job in jobs))


def test_the_counts_of_a_job_end_with_it(jobs: JobStore, client: redis.Redis) -> None:
    put(jobs, "a", 5)
    job = jobs.get("a", owner=ANN)
    assert job is not None
    jobs.cancel("a", owner=ANN)
    assert see(jobs, job).status == "canceled"
    assert client.ttl(keys.BYTES + ANN.id) > 0
