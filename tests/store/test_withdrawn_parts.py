"""Parts that somebody cancels, deletes or moves with RQ's own tools: the job's record decides, and
the job still ends. Short histories that random ones found, or that were found beside them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job as RQJob
from rq.job import JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from pathar.contract import END_STATES
from store import keys
from store.access import ANYBODY
from store.job import Job
from store.jobs import JobStore
from store.orphans import ORPHANED_S, adopt_orphans
from store.parts import HeldPart, PartStore, read_part
from store.scripts import LOST_REASON, LOST_WORKER, RETRIES
from tests.store.conftest import (
    FILES,
    INFO,
    NEW,
    QUEUE,
    STEPS,
    ask,
    lapse,
    last_seen,
    part_of,
    see,
    submit,
    take,
)

Withdraw = Callable[[str], None]


@pytest.fixture(params=["cancel", "delete"])
def withdraw(request: pytest.FixtureRequest, client: redis.Redis) -> Withdraw:
    """Cancels or deletes a part with RQ's own tools."""

    def act(part: str) -> None:
        job = RQJob.fetch(part, connection=client, serializer=JSONSerializer)
        getattr(job, request.param)()

    return act


def assert_canceled(jobs: JobStore, job: Job) -> None:
    seen = see(jobs, job)
    assert seen.ended_at is not None, "it never ends"
    assert seen.status == "canceled"


def test_a_job_ends_when_its_part_is_withdrawn_and_the_worker_dies(
    jobs: JobStore, parts: PartStore, rival: PartStore, client: redis.Redis, withdraw: Withdraw
) -> None:
    job = submit(jobs, ask(2))
    take(parts)
    withdraw(part_of(job))
    lapse(client)
    rival.sweep()
    assert_canceled(jobs, job)


def test_a_job_ends_when_its_part_is_withdrawn_and_the_worker_dies_before_it_starts(
    jobs: JobStore, parts: PartStore, rival: PartStore, client: redis.Redis, withdraw: Withdraw
) -> None:
    job = submit(jobs, ask(2))
    parts.claim(1)
    withdraw(part_of(job))
    lapse(client)
    rival.sweep()
    assert_canceled(jobs, job)


def test_a_job_ends_when_its_withdrawn_part_is_handed_back(
    jobs: JobStore, parts: PartStore, withdraw: Withdraw
) -> None:
    job = submit(jobs, ask(2))
    (held,) = take(parts)
    withdraw(held.part)
    parts.put_back(held)
    assert_canceled(jobs, job)


def test_a_job_ends_when_its_withdrawn_part_would_be_adopted(
    jobs: JobStore, client: redis.Redis, withdraw: Withdraw
) -> None:
    job = submit(jobs, ask(2))
    withdraw(part_of(job, 1))
    last_seen(client, INFO, ORPHANED_S + 5)
    assert adopt_orphans(client, NEW, result_ttl=60) == 0
    assert_canceled(jobs, job)


@pytest.mark.parametrize("word", [*(status.value for status in JobStatus), None])
def test_a_job_and_its_part_say_the_same_whatever_rqs_hash_says(
    word: str | None, jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(3))
    first, _ = take(parts, 2)
    assert parts.finish(first, FILES, 1.0) is not None
    for index in range(3):
        key = keys.PART + part_of(job, index)
        client.hset(key, "status", word) if word else client.delete(key)
    withdrawn = word in ("canceled", "stopped", None)
    wanted = ["finished", *(["canceled"] * 2 if withdrawn else ["started", "queued"])]
    assert [part.status for part in see(jobs, job).parts] == wanted
    alone = [jobs.part(job.id, index, owner=ANYBODY) for index in range(3)]
    assert [part.status for part in alone if part] == wanted


@pytest.mark.parametrize("losses", [0, RETRIES])
def test_a_job_ends_after_rqs_own_cleanup_of_a_dead_worker(
    losses: int, jobs: JobStore, parts: PartStore, rival: PartStore, client: redis.Redis
) -> None:
    """`rq info` is enough to set it going."""
    job = submit(jobs)
    for _ in range(losses + 1):
        (held,) = take(parts)
        registry = StartedJobRegistry(QUEUE, connection=client, serializer=JSONSerializer)
        registry.cleanup(timestamp=4e9)
        lapse(client)
        rival.sweep()
    for held in take(rival, 9):
        assert rival.finish(held, FILES, 1.0) is not None
    seen = see(jobs, job)
    assert seen.ended_at is not None, "it never ends"
    assert seen.status == ("failed" if losses == RETRIES else "finished")


@pytest.mark.parametrize("word", ["0", "-7", "many", None])
def test_how_often_a_part_is_tried_again_is_not_for_rqs_hash_to_say(
    word: str | None, jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs)
    for losses in range(RETRIES + 1):
        key = keys.PART + part_of(job)
        client.hset(key, "retries_left", word) if word else client.hdel(key, "retries_left")
        (held,) = take(parts)
        assert held.losses == losses
        parts.put_back(held, LOST_WORKER, LOST_REASON)
        if losses < RETRIES:
            assert client.hget(key, "retries_left") == str(RETRIES - 1 - losses).encode()
    seen = see(jobs, job)
    assert seen.status == "failed"
    assert "lost worker" in str(seen.error)


@pytest.mark.parametrize("ending", ["finish", "put back", "heartbeat", "cancel", "sweep"])
def test_rqs_delete_beside_the_start_of_a_part_leaves_no_execution(
    ending: str,
    jobs: JobStore,
    parts: PartStore,
    rival: PartStore,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RQ's `delete` is many commands: a worker may start the part between two of them, after which
    its execution is in no list of RQ's."""
    job = submit(jobs)
    started: list[HeldPart] = []
    real = ExecutionRegistry.get_executions

    def racing(registry: ExecutionRegistry, *args: int) -> list[Execution]:
        found = real(registry, *args)
        started.extend(take(parts))
        return found

    monkeypatch.setattr(ExecutionRegistry, "get_executions", racing)
    RQJob.fetch(part_of(job), connection=client, serializer=JSONSerializer).delete()
    (held,) = started
    if ending == "sweep":
        lapse(client)
    acts: dict[str, Callable[[], object]] = {
        "finish": lambda: parts.finish(held, FILES, 1.0),
        "put back": lambda: parts.put_back(held),
        "heartbeat": lambda: parts.heartbeat([(held, 1)], STEPS),
        "cancel": lambda: jobs.cancel(job.id, owner=ANYBODY),
        "sweep": rival.sweep,
    }
    acts[ending]()
    assert_canceled(jobs, job)
    assert client.keys("rq:execution*") == []
    assert client.zcard(keys.STARTED + QUEUE) == 0


def test_a_part_has_one_owner_though_rqs_tools_tidied_its_executions(
    jobs: JobStore, parts: PartStore, rival: PartStore, client: redis.Redis
) -> None:
    submit(jobs)
    (held,) = take(parts)
    ExecutionRegistry(held.part, client).cleanup(timestamp=4e9)
    parts.put_back(held)
    (other,) = take(rival)
    assert client.zcard(keys.STARTED + QUEUE) == 1, "it is drawn by two"
    assert parts.heartbeat([(held, 1)], STEPS) == {held.execution}
    assert rival.heartbeat([(other, 1)], STEPS) == set()


def test_a_job_of_which_a_part_is_claimed_is_not_adopted(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(2))
    (claim,) = parts.claim(1)
    last_seen(client, INFO, ORPHANED_S + 5)
    assert adopt_orphans(client, NEW, result_ttl=60) == 0
    assert parts.start(claim, read_part(claim)) is not None
    assert see(jobs, job).model.numerics == INFO.numerics


def test_an_image_that_a_job_does_not_have_ends_nothing(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs)
    client.rpush(keys.QUEUE + QUEUE, part_of(job, 7))
    (claim,) = parts.claim(1)
    parts.refuse(claim, "it has no record")
    assert see(jobs, job).status == "queued"


def test_a_dropped_job_without_results_leaves_nothing_for_ever(
    jobs: JobStore, client: redis.Redis
) -> None:
    job = submit(jobs)
    assert jobs.cancel(job.id, owner=ANYBODY)
    assert jobs.drop(job.id, owner=ANYBODY)
    assert client.ttl(keys.BYTES + job.owner) > 0
    assert see(jobs, job).status in END_STATES
