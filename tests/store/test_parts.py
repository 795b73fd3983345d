from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from rq import Callback, Queue
from rq.job import Job as RQJob
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from store import keys
from store.access import ANYBODY
from store.jobs import JobStore
from store.parts import LEASE_S, Claim, PartStore, RefusedPart, read_part
from store.results import ResultStore
from store.scripts import RETRIES
from tests.store.conftest import (
    FILES,
    LINE,
    QUEUE,
    STEPS,
    Clock,
    ask,
    lapse,
    part_of,
    see,
    submit,
    take,
)


def test_parts_are_claimed_oldest_first_and_no_more_than_asked(
    jobs: JobStore, parts: PartStore
) -> None:
    job = submit(jobs, ask(n=3))
    assert [claim.part for claim in parts.claim(2)] == [part_of(job), part_of(job, 1)]
    assert [claim.part for claim in parts.claim(2)] == [part_of(job, 2)]
    assert parts.claim(2) == []


def test_a_finished_part_shows_its_files_and_times(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(n=2))
    first, second = take(parts, 2)
    assert first.image == ask(n=2).images()[0]
    assert parts.finish(first, FILES, 1.25)
    assert see(jobs, job).status == "started"
    assert parts.finish(second, FILES, 1.5)
    seen = see(jobs, job)
    assert (seen.status, seen.error) == ("finished", None)
    part = seen.parts[0]
    assert part.decode_s == 1.25
    assert part.queue_s is not None
    assert part.total_s is not None
    assert 0 <= part.queue_s <= part.total_s
    assert seen.ended_at is not None
    assert seen.started_at is not None
    assert seen.created_at <= seen.started_at <= seen.ended_at
    results = ResultStore(client)
    assert {name: results.get(job.owner, job.id, 1, name) for name in FILES} == FILES
    assert StartedJobRegistry(QUEUE, connection=client).get_job_count(cleanup=False) == 0


def test_a_second_finish_of_a_part_has_no_effect(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs)
    (held,) = take(parts)
    assert parts.finish(held, FILES, 1.0)
    before = see(jobs, job)
    assert parts.finish(held, {"image.png": b"other"}, 9.0) == before.parts[0].total_s
    assert not parts.fail(held, "too late", "timeout")
    assert see(jobs, job) == before
    assert ResultStore(client).get(job.owner, job.id, 0, "image.png") == FILES["image.png"]


def test_a_failed_part_fails_its_job_and_drops_the_rest(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    neighbour = submit(jobs)
    job = submit(jobs, ask(n=3))
    other, first, second = take(parts, 3)
    assert parts.fail(first, "label: no such label", "request")
    seen = see(jobs, job)
    assert (seen.status, seen.error) == ("failed", "label: no such label")
    assert [part.status for part in seen.parts] == ["failed", "canceled", "canceled"]
    assert client.llen(LINE) == 0
    assert not parts.finish(second, FILES, 1.0)
    assert parts.finish(other, FILES, 1.0)
    assert see(jobs, neighbour).status == "finished"


def test_a_dead_workers_part_is_taken_over_and_its_late_result_refused(
    jobs: JobStore, parts: PartStore, rival: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs)
    (stale,) = take(parts)
    assert rival.sweep() == 0, "a live lease was swept"
    lapse(client)
    assert rival.sweep() == 1
    (held,) = take(rival)
    assert held.part == stale.part
    assert parts.heartbeat([(stale, 0)], STEPS) == {stale.execution}
    assert not parts.finish(stale, {"image.png": b"stale"}, 1.0)
    assert not parts.fail(stale, "stale", "engine")
    parts.put_back(stale)
    assert rival.finish(held, FILES, 1.0)
    assert see(jobs, job).status == "finished"
    assert ResultStore(client).get(job.owner, job.id, 0, "image.png") == FILES["image.png"]


def heartbeats_for(store: PartStore, clock: Clock, seconds: float) -> None:
    """A worker that holds nothing gives signs of life for so long."""
    until = clock.now + seconds
    store.heartbeat([], STEPS)
    while clock.now < until:
        clock.forward(2)
        store.heartbeat([], STEPS)


def test_a_worker_is_steady_after_a_leases_time_of_signs_of_life(
    clock: Clock, client: redis.Redis
) -> None:
    parts = PartStore(client, QUEUE, "worker", result_ttl=60)
    assert not parts.steady
    heartbeats_for(parts, clock, LEASE_S - 2)
    assert not parts.steady
    heartbeats_for(parts, clock, 2)
    assert parts.steady
    heartbeats_for(parts, clock, 60)
    assert parts.steady


@pytest.mark.parametrize("step", [8, 3600, -3600])
def test_a_worker_is_steady_no_more_when_time_passed_without_it(
    step: float, clock: Clock, client: redis.Redis
) -> None:
    parts = PartStore(client, QUEUE, "worker", result_ttl=60)
    heartbeats_for(parts, clock, LEASE_S)
    clock.forward(step)
    parts.heartbeat([], STEPS)
    assert not parts.steady
    heartbeats_for(parts, clock, LEASE_S)
    assert parts.steady


def test_a_full_redis_takes_no_part_away(clock: Clock, client: redis.Redis, jobs: JobStore) -> None:
    submit(jobs)
    parts, rival = (PartStore(client, QUEUE, each, result_ttl=60) for each in ("one", "two"))
    (held,) = take(parts)
    for _ in range(2 * int(LEASE_S)):
        client.config_set("maxmemory", 0)  # for the clock of this test, which lies in Redis
        clock.forward(1)
        client.config_set("maxmemory", 1)
        assert parts.heartbeat([(held, 3)], STEPS) == set()
        rival.heartbeat([], STEPS)
    assert parts.steady
    assert rival.sweep() == 0
    with pytest.raises(redis.OutOfMemoryError):
        rival.claim(1)
    assert parts.finish(held, FILES, 1.0) is not None


def test_what_ends_something_is_done_by_a_full_redis(
    client: redis.Redis, jobs: JobStore, parts: PartStore, rival: PartStore
) -> None:
    several = submit(jobs, ask(4))
    drawn, failed, waits, dropped = (submit(jobs) for _ in range(4))
    held = take(parts, 6)
    refused, *claims = parts.claim(2)
    assert parts.finish(held[4], FILES, 1.0) is not None
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        submit(jobs)
    assert parts.put_back(held[0]) == "queued"
    assert parts.put_back(held[1], "engine", "no") == "queued"
    assert parts.finish(held[2], FILES, 1.0) is not None
    assert parts.fail(held[5], "no", "engine")
    assert parts.refuse(refused, "no")
    assert all(parts.put_back(claim) is None for claim in claims)
    assert jobs.cancel(several.id, owner=ANYBODY)
    assert jobs.drop(drawn.id, owner=ANYBODY)
    ends = (several, drawn, failed, waits)
    assert [see(jobs, job).status for job in ends] == ["canceled", "finished", "failed", "failed"]
    client.config_set("maxmemory", 0)  # for the test's own writes
    lapse(client)
    client.config_set("maxmemory", 1)
    assert rival.sweep() == 1
    assert see(jobs, dropped).status == "queued"


def test_a_full_redis_takes_back_what_dead_workers_held(
    clock: Clock, client: redis.Redis, jobs: JobStore, parts: PartStore
) -> None:
    submit(jobs)
    take(parts)
    parts = PartStore(client, QUEUE, "another", result_ttl=60)
    clock.forward(LEASE_S + 1)
    client.config_set("maxmemory", 1)
    assert parts.sweep() == 1
    client.config_set("maxmemory", 0)
    assert len(take(parts)) == 1


def test_a_part_that_loses_every_worker_fails_with_the_reason(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(n=2))
    for losses in range(RETRIES + 1):
        (held,) = take(parts)
        assert (held.part, held.losses) == (part_of(job), losses)
        lapse(client)
        parts.sweep()
    seen = see(jobs, job)
    assert seen.status == "failed"
    assert seen.error is not None
    assert "lost worker" in seen.error


def test_a_claim_whose_worker_died_before_starting_goes_back_to_the_queue(
    jobs: JobStore, parts: PartStore, rival: PartStore, client: redis.Redis
) -> None:
    submit(jobs, ask(n=2))
    claims = parts.claim(2)
    assert rival.sweep() == 0
    lapse(client)
    assert rival.sweep() == 2
    for claim in claims:
        assert parts.start(claim, read_part(claim)) is None, "a lapsed claim was started"
    assert len(take(rival, 5)) == 2


def test_a_claim_of_a_canceled_job_does_not_go_back_to_the_queue(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs)
    parts.claim(1)
    assert jobs.cancel(job.id, owner=ANYBODY)
    lapse(client)
    parts.sweep()
    assert client.llen(LINE) == 0
    assert client.llen(keys.QUEUE + QUEUE + keys.INTERMEDIATE) == 0


def test_a_result_counts_only_while_the_part_is_started(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs)
    (held,) = take(parts)
    client.hset(keys.PART + held.part, "status", "stopped")
    assert parts.finish(held, FILES, 1.0) is None
    assert see(jobs, job).status == "canceled"
    assert not client.exists(keys.RESULT + held.part)


def test_sweeps_at_the_same_time_never_queue_a_part_twice(
    jobs: JobStore, parts: PartStore, rival: PartStore, client: redis.Redis
) -> None:
    submit(jobs, ask(n=20))
    for _ in range(3):
        take(parts, 10)
        parts.claim(10)
        lapse(client)
        with ThreadPoolExecutor(8) as pool:
            sweepers = [pool.submit((parts, rival)[at % 2].sweep) for at in range(16)]
            assert sum(future.result() for future in sweepers) == 20
        queued = client.lrange(LINE, 0, -1)
        assert len(queued) == len(set(queued)) == 20


def test_a_part_queued_twice_is_drawn_once(
    jobs: JobStore, parts: PartStore, rival: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs)
    client.rpush(keys.QUEUE + QUEUE, part_of(job))
    (held,) = take(parts, 2)
    assert parts.finish(held, FILES, 1.0)
    client.rpush(keys.QUEUE + QUEUE, part_of(job))
    assert take(rival) == []
    assert see(jobs, job).status == "finished"
    assert client.llen(keys.QUEUE + QUEUE + keys.INTERMEDIATE) == 0


def test_rqs_own_requeue_cannot_reopen_an_ended_job(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs)
    (held,) = take(parts)
    assert parts.finish(held, FILES, 1.0)
    client.hset(keys.PART + held.part, "status", "queued")
    client.rpush(keys.QUEUE + QUEUE, held.part)
    assert see(jobs, job).status == "finished"
    assert take(parts) == []
    assert see(jobs, job).status == "finished"


def test_a_handed_back_part_is_next_in_line_and_loses_no_try(
    jobs: JobStore, parts: PartStore, rival: PartStore
) -> None:
    submit(jobs, ask(n=3))
    first, second = take(parts, 2)
    for held in (second, first):
        parts.put_back(held)
    again = take(rival, 3)
    assert [held.part for held in again[:2]] == [first.part, second.part]
    assert {held.losses for held in again} == {0}


def test_a_part_whose_record_is_gone_is_dropped(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(n=2))
    (held,) = take(parts)
    client.delete(keys.RECORD + keys.owned_id(job.owner, job.id))
    assert not parts.finish(held, FILES, 1.0)
    assert take(parts) == []
    assert not client.exists(keys.RESULT + held.part)
    assert not client.exists(keys.RECORD + keys.owned_id(job.owner, job.id))


def canary(path: str) -> None:
    Path(path).touch()


HOSTILE: dict[str, Callable[[Queue, str], object]] = {
    "function": lambda queue, path: queue.enqueue("os.system", f"touch {path}", job_id="evil_0"),
    "callback": lambda queue, path: queue.enqueue(
        "worker.part", path, job_id="evil_0", on_failure=Callback("tests.store.test_parts.canary")
    ),
    "extra arguments": lambda queue, path: queue.enqueue("worker.part", path, job_id="evil_0"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_record_is_refused_unread(
    kind: str, parts: PartStore, client: redis.Redis, tmp_path: Path
) -> None:
    path = tmp_path / "touched"
    HOSTILE[kind](Queue(QUEUE, connection=client, serializer=JSONSerializer), str(path))
    (claim,) = parts.claim(1)
    with pytest.raises(RefusedPart, match="evil_0"):
        read_part(claim)
    parts.refuse(claim, "refused")
    lapse(client)
    parts.sweep()
    assert RQJob.fetch("evil_0", connection=client, serializer=JSONSerializer).is_failed
    assert client.llen(keys.QUEUE + QUEUE + keys.INTERMEDIATE) == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", lambda: b"\x80\x04K\x01."),
        ("data", lambda: zlib.compress(b"[" * 100_000)),
        ("data", lambda: zlib.compress(b" " * (64 << 20))),
        ("data", lambda: zlib.compress(json.dumps(["worker.part", None, [], {}]).encode())),
        ("data", lambda: zlib.compress(json.dumps(["worker.part", "os", [], {}]).encode())),
        ("data", lambda: b""),
        ("success_callback_name", lambda: b"os.system"),
        ("stopped_callback_name", lambda: b"os.system"),
        ("webhooks", lambda: b'[{"url": "http://169.254.169.254/"}]'),
        ("dependency_ids", lambda: b'["other"]'),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_tampered_part_fails_its_job_with_a_reason(
    name: str,
    value: Callable[[], bytes],
    jobs: JobStore,
    parts: PartStore,
    client: redis.Redis,
) -> None:
    job = submit(jobs, ask(n=2))
    client.hset(keys.PART + part_of(job), name, value())
    tampered, _ = parts.claim(2)
    with pytest.raises(RefusedPart) as refused:
        read_part(tampered)
    parts.refuse(tampered, str(refused.value))
    seen = see(jobs, job)
    assert (seen.status, seen.error) == ("failed", str(refused.value))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"worker.part", b"os.system"),
        lambda text: text.replace(b'"index"', b'"more": 1, "index"'),
        lambda text: text.replace(b"[]", b"[1]"),
        lambda text: text + b" " * (64 << 20),
    ],
    ids=["function", "argument", "positional", "bomb"],
)
def test_a_payload_that_is_almost_right_is_refused(
    change: Callable[[bytes], bytes], jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs)
    key = keys.PART + part_of(job)
    data = client.hget(key, "data")
    assert isinstance(data, bytes)
    text = zlib.decompress(data)
    assert change(text) != text
    client.hset(key, "data", zlib.compress(change(text)))
    with pytest.raises(RefusedPart):
        read_part(parts.claim(1)[0])


def test_a_part_cannot_stand_for_another_jobs_part(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job, other = submit(jobs), submit(jobs)
    data = client.hget(keys.PART + part_of(other), "data")
    assert data is not None
    client.hset(keys.PART + part_of(job), "data", data)
    with pytest.raises(RefusedPart, match="another part"):
        read_part(parts.claim(1)[0])


def test_a_record_under_an_id_that_is_no_part_id_is_refused(
    jobs: JobStore, parts: PartStore
) -> None:
    submit(jobs)
    (claim,) = parts.claim(1)
    with pytest.raises(RefusedPart, match="is not a part id"):
        read_part(Claim("../../elsewhere_0", claim.fields))


def test_a_key_of_another_type_does_not_stop_the_queue(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    client.set(f"{keys.PART}evil_0", "not a hash")
    client.rpush(keys.QUEUE + QUEUE, "evil_0", b"\xff\xfe", "no part id")
    job = submit(jobs)
    *hostile, good = parts.claim(9)
    for claim in hostile:
        with pytest.raises(RefusedPart):
            read_part(claim)
        parts.refuse(claim, "refused")
    assert parts.start(good, read_part(good)) is not None
    lapse(client)
    parts.sweep()
    assert client.llen(keys.QUEUE + QUEUE + keys.INTERMEDIATE) == 0
    assert see(jobs, job).status == "queued"


@pytest.mark.parametrize("foreign", ["nobody", "nobody_0", "_0", "x_007", "\xff_1", " "])
def test_a_foreign_id_without_a_hash_costs_itself_alone(
    foreign: str, jobs: JobStore, parts: PartStore, rival: PartStore, client: redis.Redis
) -> None:
    own = keys.QUEUE + QUEUE
    job = submit(jobs)
    client.rpush(own, foreign)
    client.rpush(own + keys.INTERMEDIATE, foreign)
    client.zadd(keys.LEASES + QUEUE, {foreign: 1.0})
    assert [held.part for held in take(parts, 2)] == [part_of(job)]
    rival.sweep()
    lapse(client)
    assert rival.sweep() == 1, "what a dead worker held is found alone"
    assert [held.part for held in take(rival, 2)] == [part_of(job)]
    assert client.llen(own + keys.INTERMEDIATE) == 0
    assert not client.zscore(keys.LEASES + QUEUE, foreign)


def test_an_id_that_is_spelled_in_another_way_is_not_that_of_a_part(
    jobs: JobStore, parts: PartStore, rival: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs)
    (held,) = take(parts)
    forged = f"{part_of(job)[:-1]}00"
    client.zadd(keys.LEASES + QUEUE, {forged: 1.0})
    rival.sweep()
    assert take(rival) == [], "a part that is held was queued again"
    assert parts.finish(held, FILES, 1.0) is not None


def test_parts_of_a_dead_worker_are_drawn_in_their_old_order(
    jobs: JobStore, parts: PartStore, rival: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(6))
    order = [held.part for held in take(parts, 2)] + [claim.part for claim in parts.claim(2)]
    lapse(client)
    assert rival.sweep() == 4
    assert [held.part for held in take(rival, 6)] == [
        *order, *(part_of(job, index) for index in (4, 5))
    ]  # fmt: skip


def test_a_part_that_was_deleted_before_it_was_claimed_cancels_its_job(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(2))
    client.delete(keys.PART + part_of(job, 0))
    [claim] = parts.claim(1)
    assert not claim.fields
    parts.refuse(claim, "it has no record")
    assert see(jobs, job).status == "canceled"
    assert parts.claim(1) == []
    assert client.llen(f"{keys.QUEUE}{QUEUE}{keys.INTERMEDIATE}") == 0
