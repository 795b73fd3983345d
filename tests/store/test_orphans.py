from __future__ import annotations

from dataclasses import replace

import pytest
import redis

from store import keys
from store.access import ANYBODY
from store.jobs import JobStore
from store.orphans import ABANDONED_S, MOST_ABANDONED, ORPHANED_S, adopt_orphans
from store.parts import PartStore
from tests.store.conftest import (
    FILES,
    INFO,
    LINE,
    NEW,
    QUEUE,
    ask,
    lapse,
    last_seen,
    part_of,
    see,
    submit,
    take,
)

OTHER = replace(INFO, version="cd" * 32)


@pytest.fixture
def successor(client: redis.Redis) -> PartStore:
    queue = keys.queue_name(NEW.version, NEW.numerics)
    return PartStore(client, queue, "successor", result_ttl=60)


def test_orphans_without_an_image_are_drawn_whole_with_other_numerics(
    jobs: JobStore, parts: PartStore, successor: PartStore, client: redis.Redis
) -> None:
    started, waiting = submit(jobs, ask(2)), submit(jobs, ask(2))
    take(parts)
    lapse(client)
    last_seen(client, INFO, ORPHANED_S + 5)
    assert adopt_orphans(client, NEW, result_ttl=60) == 2
    assert adopt_orphans(client, NEW, result_ttl=60) == 0
    held = take(successor, 9)
    assert [part.part for part in held] == [
        part_of(job, index) for job in (started, waiting) for index in range(2)
    ]
    for part in held:
        assert successor.finish(part, FILES, 1.0) is not None
    for job in (started, waiting):
        seen = see(jobs, job)
        assert (seen.status, seen.model.numerics) == ("finished", NEW.numerics)
    assert client.llen(LINE) == 0


def test_an_orphan_with_an_image_fails_and_says_why(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(2))
    (held,) = take(parts)
    assert parts.finish(held, FILES, 1.0) is not None
    last_seen(client, INFO, ORPHANED_S + 5)
    assert adopt_orphans(client, NEW, result_ttl=60) == 0
    seen = see(jobs, job)
    assert seen.status == "failed"
    assert INFO.numerics in str(seen.error)


def test_jobs_of_a_living_worker_or_another_version_are_left_alone(
    jobs: JobStore, client: redis.Redis
) -> None:
    submit(jobs)
    jobs.submit(ask(), OTHER, owner=ANYBODY)
    last_seen(client, INFO, ORPHANED_S - 30)
    last_seen(client, OTHER, ORPHANED_S + 5)
    assert adopt_orphans(client, NEW, result_ttl=60) == 0
    assert client.llen(LINE) == 1


def test_jobs_of_a_model_that_was_gone_for_a_week_fail_and_it_is_forgotten(
    jobs: JobStore, client: redis.Redis
) -> None:
    many = [submit(jobs) for _ in range(MOST_ABANDONED + 1)]
    last_seen(client, INFO, ABANDONED_S - 60)
    adopt_orphans(client, OTHER, result_ttl=60)
    assert see(jobs, many[0]).status == "queued"
    last_seen(client, INFO, ABANDONED_S + 60)
    for _ in range(2):
        adopt_orphans(client, OTHER, result_ttl=60)
    seen = [see(jobs, job) for job in many]
    assert {job.status for job in seen} == {"failed"}
    assert "no worker of its model" in str(seen[0].error)
    assert client.hlen(keys.MODELS) == 0


def test_what_dead_workers_held_of_an_abandoned_model_fails_too(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    begun, claimed = submit(jobs, ask(2)), submit(jobs)
    first, _ = take(parts, 2)
    assert parts.finish(first, FILES, 1.0) is not None
    parts.claim(1)
    lapse(client)
    last_seen(client, INFO, ABANDONED_S + 60)
    adopt_orphans(client, OTHER, result_ttl=60)
    for job in (begun, claimed):
        seen = see(jobs, job)
        assert (seen.status, "no worker of its model" in str(seen.error)) == ("failed", True)
        assert client.ttl(keys.RECORD + keys.owned_id(job.owner, job.id)) > 0
    expires = client.zscore(keys.STORED + begun.owner, keys.owned_id(begun.owner, begun.id))
    assert expires is not None
    assert expires < float("inf"), "its bytes count for ever"
    assert client.hlen(keys.MODELS) == 0


def test_a_model_is_not_forgotten_while_a_worker_may_hold_images_of_it(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(2))
    take(parts)
    parts.claim(1)
    last_seen(client, INFO, ABANDONED_S + 60)
    adopt_orphans(client, OTHER, result_ttl=60)
    assert client.hlen(keys.MODELS) == 1
    assert see(jobs, job).status == "started"
    lapse(client)
    adopt_orphans(client, OTHER, result_ttl=60)
    assert client.hlen(keys.MODELS) == 0
    assert see(jobs, job).status == "failed"


def test_nothing_of_an_abandoned_queue_stays_for_ever(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    submit(jobs, ask(2))
    first, second = take(parts, 2)
    assert parts.finish(first, FILES, 1.0) is not None
    assert parts.fail(second, "it broke", "engine")
    last_seen(client, INFO, ABANDONED_S + 60)
    adopt_orphans(client, OTHER, result_ttl=60)
    stays = [key for key in client.keys(f"*{QUEUE}*") if client.ttl(key) == -1]
    assert stays == []
    assert client.scard(keys.QUEUES) == 0
