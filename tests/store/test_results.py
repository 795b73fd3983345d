"""Results as objects: what is written where, and that nothing of it stays behind."""

from __future__ import annotations

import time

import pytest
import redis

from pathar.contract import FILE_NAMES
from runtime.objects import ObjectsAway
from store import keys
from store.access import ANYBODY
from store.jobs import JobStore
from store.parts import HeldPart, PartStore
from store.results import CHECK_EVERY_S, ResultStore
from store.scripts import IMAGE_BYTES, RECORD_BYTES
from tests.s3 import Folder, S3Server
from tests.store.conftest import FILES, ask, lapse, part_of, submit, take


@pytest.fixture
def results(client: redis.Redis, s3_folder: Folder) -> ResultStore:
    return ResultStore(client, s3_folder.open())


def store(results: ResultStore, parts: PartStore, held: HeldPart) -> bool:
    """Do what a worker does with a part's files; whether they were accepted."""
    return (
        parts.finish(held, results.put(held.job, held.index, held.execution, FILES), 1.0)
        is not None
    )


def pass_time(client: redis.Redis, seconds: float) -> None:
    """Let what is due within that time be due now."""
    for job, due in client.zrange(keys.OBJECTS, 0, -1, withscores=True):
        client.zadd(keys.OBJECTS, {job: due - seconds})


def test_redis_holds_a_reference_and_counts_real_sizes(
    results: ResultStore,
    parts: PartStore,
    jobs: JobStore,
    client: redis.Redis,
    s3_folder: Folder,
) -> None:
    job = submit(jobs, ask(9))
    held = take(parts, 9)
    assert all(store(results, parts, part) for part in held)
    fields = client.hgetall(keys.RESULT + part_of(job))
    assert set(fields) == {f"{name}:object".encode() for name in FILES}
    folder = f"jobs/{keys.owned_id(job.owner, job.id)}/0/{held[0].execution}"
    assert fields[b"image.png:object"].decode() == f"{len(FILES['image.png'])} {folder}/image.png"
    assert s3_folder.read(f"{folder}/image.png") == (FILES["image.png"], "image/png")
    assert s3_folder.read(f"{folder}/tokens.json") == (FILES["tokens.json"], "application/json")
    size = sum(len(content) for content in FILES.values())
    assert int(client.hget(keys.BYTES + job.owner, "sum") or 0) == RECORD_BYTES + 9 * (
        IMAGE_BYTES + size
    )
    assert results.get(job.owner, job.id, 8, "mask.png") == FILES["mask.png"]
    assert results.get(job.owner, job.id, 9, "mask.png") is None
    assert list(results.images(job.owner, job.id, range(10))) == [FILES] * 9 + [None]


def test_what_was_stored_in_redis_before_is_found_and_the_other_way_round(
    results: ResultStore, parts: PartStore, jobs: JobStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(2))
    first, second = take(parts, 2)
    assert parts.finish(first, ResultStore(client).put(first.job, first.index, "x", FILES), 1.0)
    assert store(results, parts, second)
    assert list(results.images(job.owner, job.id, range(2))) == [FILES, FILES]
    unset = ResultStore(client)
    assert unset.image(job.owner, job.id, 0) == FILES
    with pytest.raises(ObjectsAway, match="PATHAR_RESULTS_URL"):
        unset.image(job.owner, job.id, 1)


def test_a_refused_finish_overwrites_nothing_and_leaves_nothing(
    results: ResultStore,
    parts: PartStore,
    rival: PartStore,
    jobs: JobStore,
    client: redis.Redis,
    s3_folder: Folder,
) -> None:
    job = submit(jobs)
    (stale,) = take(parts)
    late = results.put(
        stale.job, stale.index, stale.execution, {name: b"stale" for name in FILE_NAMES}
    )
    lapse(client)
    assert rival.sweep() == 1
    (held,) = take(rival)
    assert store(results, rival, held)
    assert parts.finish(stale, late, 1.0) is None
    assert len(s3_folder.names()) == 2 * len(FILES)
    results.discard(stale.job, stale.index, stale.execution)
    assert {name.split("/")[3] for name in s3_folder.names()} == {held.execution}
    assert results.image(job.owner, job.id, 0) == FILES


def test_what_was_accepted_is_accepted_again_when_the_answer_was_lost(
    results: ResultStore, parts: PartStore, jobs: JobStore
) -> None:
    job = submit(jobs)
    (held,) = take(parts)
    assert store(results, parts, held)
    assert store(results, parts, held)
    assert results.image(job.owner, job.id, 0) == FILES


def test_objects_go_when_their_job_expires_and_so_do_those_of_killed_workers(
    results: ResultStore,
    parts: PartStore,
    rival: PartStore,
    jobs: JobStore,
    client: redis.Redis,
    s3_folder: Folder,
) -> None:
    job, other = submit(jobs, ask(2)), submit(jobs, ask(1))
    killed, second, third = take(parts, 3)
    results.put(killed.job, killed.index, killed.execution, FILES)
    assert store(results, parts, second)
    assert store(results, parts, third)
    lapse(client)
    rival.sweep()
    assert store(results, rival, *take(rival))
    assert jobs.cancel(job.id, owner=ANYBODY) is False, "it is finished"
    pass_time(client, 59)
    assert results.tidy() == 0
    assert len(s3_folder.names()) == 4 * len(FILES)
    client.delete(keys.RECORD + keys.owned_id(job.owner, job.id))  # as its expiry does
    pass_time(client, 3)
    assert results.tidy() == 1
    assert {name.split("/")[1] for name in s3_folder.names()} == {
        keys.owned_id(other.owner, other.id)
    }
    assert results.tidy() == 0
    assert results.image(other.owner, other.id, 0) == FILES
    assert client.zscore(keys.OBJECTS, keys.owned_id(job.owner, job.id)) is None


def test_objects_of_a_canceled_job_go_with_it_those_of_a_living_one_stay(
    results: ResultStore,
    parts: PartStore,
    jobs: JobStore,
    client: redis.Redis,
    s3_folder: Folder,
) -> None:
    job, living = submit(jobs, ask(2)), submit(jobs, ask(2))
    first, second, third, _ = take(parts, 4)
    assert store(results, parts, first)
    assert store(results, parts, third)
    late = results.put(second.job, second.index, second.execution, FILES)
    assert jobs.cancel(job.id, owner=ANYBODY)
    assert parts.finish(second, late, 1.0) is None
    assert results.image(job.owner, job.id, 0) == FILES, "what was finished is kept for its time"
    client.delete(keys.RECORD + keys.owned_id(job.owner, job.id))
    pass_time(client, CHECK_EVERY_S + 60)
    assert results.tidy() == 1
    assert {name.split("/")[1] for name in s3_folder.names()} == {
        keys.owned_id(living.owner, living.id)
    }
    due = client.zscore(keys.OBJECTS, keys.owned_id(living.owner, living.id))
    assert due is not None
    assert due > time.time() + CHECK_EVERY_S / 2


def test_dropped_results_go_at_once_and_so_does_what_comes_late(
    results: ResultStore,
    parts: PartStore,
    jobs: JobStore,
    client: redis.Redis,
    s3_folder: Folder,
) -> None:
    job = submit(jobs, ask(2))
    first, second = take(parts, 2)
    assert store(results, parts, first)
    jobs.cancel(job.id, owner=ANYBODY)
    assert jobs.drop(job.id, owner=ANYBODY)
    assert results.image(job.owner, job.id, 0) is None
    assert results.tidy() == 1
    assert s3_folder.names() == []
    results.put(second.job, second.index, second.execution, FILES)  # it was under way
    assert results.tidy() == 0
    client.delete(keys.RECORD + keys.owned_id(job.owner, job.id))
    pass_time(client, 70)
    assert results.tidy() == 1
    assert s3_folder.names() == []
    assert client.zcard(keys.OBJECTS) == 0


def test_a_worker_that_dies_while_it_tidies_is_followed_by_another(
    results: ResultStore,
    parts: PartStore,
    jobs: JobStore,
    client: redis.Redis,
    s3_folder: Folder,
    s3_server: S3Server,
) -> None:
    job = submit(jobs)
    (held,) = take(parts)
    assert store(results, parts, held)
    assert jobs.drop(job.id, owner=ANYBODY)
    s3_server.stop()
    try:
        with pytest.raises(ObjectsAway):
            results.tidy()
    finally:
        s3_server.start()
    assert results.tidy() == 0, "it is left to whoever began"
    pass_time(client, 300)
    assert results.tidy() == 1
    assert s3_folder.names() == []


@pytest.mark.parametrize("forged", ["", ".", "/", "..", "00000000-", "not a job", "00000000-x/.."])
def test_a_forged_name_of_a_job_deletes_no_objects(
    forged: str,
    results: ResultStore,
    parts: PartStore,
    jobs: JobStore,
    client: redis.Redis,
    s3_folder: Folder,
) -> None:
    job = submit(jobs)
    assert store(results, parts, *take(parts))
    client.zadd(keys.OBJECTS, {forged: 1.0})
    results.tidy()
    assert results.image(job.owner, job.id, 0) == FILES
    assert client.zscore(keys.OBJECTS, forged) is None, "it is in the way for ever"
