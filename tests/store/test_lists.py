"""Lists say of a job what a look at all of its images says, whatever has become of them."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any

import pytest
import redis

from pathar.contract import MAX_IMAGES, Priority, Status
from store import keys, lists
from store.access import Owner
from store.job import Job, Summary
from store.jobs import JobStore
from store.lists import MOST_JOBS
from store.parts import HeldPart, PartStore
from store.registry import Registry, Speed
from tests.store.conftest import ANN, BOB, INFO, STEPS, ask, take

JOBS = 90
NAMES = [field.name for field in fields(Summary)]


@pytest.fixture
def registry(client: redis.Redis) -> Registry:
    return Registry(client)


@pytest.fixture
def many(jobs: JobStore, parts: PartStore, registry: Registry, client: redis.Redis) -> list[str]:
    """Jobs of one to nine images, of two owners and both priorities, some of whose images wait, are
    drawn, finished, failed or canceled; and workers that have measured themselves."""
    drawn = random.Random(7)
    registry.publish(INFO, "worker", 4, Speed(3.0, 5.0))
    for worker in client.zrange(keys.WORKERS, 0, -1):
        client.zadd(keys.WORKERS, {worker: 1e12})  # it lives for as long as the test takes
    mine = []
    for number in range(JOBS):
        owner, priority = (ANN, BOB)[number % 5 == 4], ("interactive", "bulk")[number % 3 == 2]
        if owner is ANN:
            mine.append(f"job-{number}")
        submit(jobs, f"job-{number}", owner, priority, drawn.randint(1, 9))
        disturb(parts, take(parts, drawn.randint(0, 6)), drawn)
        if drawn.random() < 0.1:
            jobs.cancel(drawn.choice(mine), owner=ANN)
    return mine


def submit(jobs: JobStore, job_id: str, owner: Owner, priority: str, n: int) -> None:
    assert priority in ("interactive", "bulk")
    chosen: Priority = "bulk" if priority == "bulk" else "interactive"
    jobs.submit(ask(n), INFO, owner=owner, priority=chosen, job_id=job_id)


def disturb(parts: PartStore, held: list[HeldPart], drawn: random.Random) -> None:
    """What may become of images in slots."""
    for part in held:
        match drawn.randrange(12):
            case 0:
                parts.fail(part, "it broke", "engine")
            case 1:
                parts.put_back(part)
            case 2 | 3 | 4:
                parts.heartbeat([(part, drawn.randrange(STEPS))], STEPS)
            case 5:
                pass
            case _:
                parts.finish(part, {}, 0.5)


def listed(jobs: JobStore, owner: Owner = ANN, **asked: Any) -> list[Summary]:
    """All of a list, page after page."""
    found: list[Summary] = []
    cursor = None
    while True:
        page = jobs.page(owner=owner, cursor=cursor, **asked)
        found += page.jobs
        cursor = page.next
        if cursor is None:
            return found


def summary(job: Job | Summary | None) -> dict[str, Any]:
    assert job is not None
    return {name: getattr(job, name) for name in NAMES}


def looked_at(jobs: JobStore, mine: list[str]) -> list[dict[str, Any]]:
    """What a look at each of the jobs says, the newest first."""
    return [summary(jobs.get(job, owner=ANN)) for job in reversed(mine)]


def test_a_list_says_what_a_look_at_each_job_says(many: list[str], jobs: JobStore) -> None:
    expected = looked_at(jobs, many)
    assert {each["status"] for each in expected} == {
        "queued", "started", "finished", "failed", "canceled",
    }  # fmt: skip
    assert len({each["ahead"] for each in expected}) > 20
    assert len({each["seconds_left"] for each in expected}) > 20
    assert any(0 < e["steps"] < e["steps_total"] for e in expected if e["status"] == "failed")
    assert [summary(job) for job in listed(jobs)] == expected
    assert [summary(job) for job in listed(jobs, limit=7)] == expected


def test_jobs_that_ended_before_lists_were_kept_are_counted(
    many: list[str], jobs: JobStore, client: redis.Redis
) -> None:
    expected = looked_at(jobs, many)
    gone = [
        client.hdel(keys.RECORD + keys.owned_id(ANN.id, job), "ended_as", "ended_steps")
        for job in many
    ]
    assert set(gone) == {0, 2}, "some have ended, some have not"
    assert [summary(job) for job in listed(jobs)] == expected


def test_lists_are_filtered(many: list[str], jobs: JobStore) -> None:
    every = looked_at(jobs, many)
    statuses: tuple[Status, ...] = ("queued", "started", "finished", "failed", "canceled")
    for status in statuses:
        expected = [each for each in every if each["status"] == status]
        assert expected
        for label in (None, "histology"):
            found = listed(jobs, status=status, label=label, limit=4)
            assert [summary(job) for job in found] == expected, (status, label)
        assert listed(jobs, status=status, label="granite") == []
    assert [summary(job) for job in listed(jobs, label="histology")] == every
    assert listed(jobs, label="") == []


def test_what_others_did_to_the_parts_in_redis_is_seen_as_before(
    jobs: JobStore, parts: PartStore, client: redis.Redis, registry: Registry
) -> None:
    registry.publish(INFO, "worker", 4)
    mine = []
    for number, word in enumerate(("failed", "deferred", "canceled", None)):
        jobs.submit(ask(3), INFO, owner=ANN, job_id=f"job-{number}")
        mine.append(f"job-{number}")
        part = keys.PART + keys.part_id(keys.owned_id(ANN.id, mine[-1]), 1)
        client.hset(part, "status", word) if word else client.delete(part)
    parts.claim(2)  # and not started yet
    expected = looked_at(jobs, mine)
    assert [each["status"] for each in expected] == ["canceled", "canceled", "queued", "queued"]
    assert [summary(job) for job in listed(jobs)] == expected


def test_redis_stops_when_it_has_looked_at_enough_and_is_asked_again(
    many: list[str], jobs: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = looked_at(jobs, many)
    monkeypatch.setattr(lists, "MOST_IMAGES", 1)
    assert [summary(job) for job in listed(jobs, limit=30)] == expected
    assert len(listed(jobs, label="histology")) == len(many)


def calls(client: redis.Redis) -> int:
    """Scripts that were run."""
    found = client.info("commandstats")
    return sum(
        found[name]["calls"] for name in found if name in ("cmdstat_evalsha", "cmdstat_eval")
    )


def test_a_page_is_one_question_and_of_jobs_that_ended_no_image_is_looked_at(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    for number in range(20):
        jobs.submit(ask(50), INFO, owner=ANN, job_id=f"job-{number}")
        if number % 2:
            jobs.cancel(f"job-{number}", owner=ANN)
        else:
            for part in take(parts, 50):
                parts.finish(part, {}, 0.5)
    jobs.page(owner=ANN, limit=20)
    before = calls(client)
    client.config_resetstat()
    assert len(jobs.page(owner=ANN, limit=20).jobs) == 20
    assert before > 0
    assert calls(client) == 1
    assert client.info("commandstats")["cmdstat_hmget"]["calls"] == 3 * 20
    assert "cmdstat_hget" not in client.info("commandstats")
    assert MOST_JOBS > 20


def test_a_list_of_very_large_jobs(jobs: JobStore, parts: PartStore, client: redis.Redis) -> None:
    submit(jobs, "large", ANN, "bulk", MAX_IMAGES)
    for part in take(parts, 2):
        parts.finish(part, {}, 0.5)
    [job] = listed(jobs)
    assert summary(job) == summary(jobs.get("large", owner=ANN))
    assert (job.status, job.steps, job.steps_total) == ("started", 2 * STEPS, MAX_IMAGES * STEPS)
    assert job.ahead is not None
