"""Lists of jobs in pages, and single looks at jobs and images."""

from __future__ import annotations

import base64

import pytest
import redis

from store import keys
from store.jobs import Expired, JobStore, OtherBody
from store.lists import SCANNED, BadCursor
from store.parts import PartStore
from tests.store.conftest import ANN, BOB, FILES, INFO, ask, take


def test_jobs_that_have_expired_do_not_hide_those_before_them(
    jobs: JobStore, client: redis.Redis
) -> None:
    first, _ = jobs.submit(ask(), INFO, owner=ANN, job_id="first")
    gone = {keys.owned_id(ANN.id, f"gone-{n}"): first.created_at + n for n in range(1, SCANNED)}
    client.zadd(keys.JOBS + ANN.id, gone)
    jobs.submit(ask(), INFO, owner=ANN, job_id="newest")
    client.zadd(keys.JOBS + ANN.id, {keys.owned_id(ANN.id, "newest"): first.created_at + 10_000})
    found, cursor = [], None
    while True:
        page = jobs.page(owner=ANN, cursor=cursor)
        found += [job.id for job in page.jobs]
        cursor = page.next
        if cursor is None:
            break
    assert found == ["newest", "first"]


def test_expired_jobs_leave_the_list_as_new_ones_come(jobs: JobStore, client: redis.Redis) -> None:
    client.zadd(keys.JOBS + ANN.id, {keys.owned_id(ANN.id, f"{n}"): n + 1 for n in range(150)})
    for number in range(2):
        jobs.submit(ask(), INFO, owner=ANN, job_id=f"new-{number}")
    assert client.zcard(keys.JOBS + ANN.id) == 2


@pytest.mark.parametrize("place", ["nan", "inf", "-inf", "1"])
def test_a_cursor_that_is_none_is_refused(place: str, jobs: JobStore) -> None:
    text = f"{place} x" if place != "1" else "1"
    made_up = base64.urlsafe_b64encode(text.encode()).decode()
    with pytest.raises(BadCursor):
        jobs.page(owner=ANN, cursor=made_up)


def test_an_order_is_found_by_its_id_whatever_became_of_its_model(
    jobs: JobStore, client: redis.Redis
) -> None:
    assert jobs.find("mine", owner=ANN, digest="d") is None
    job, _ = jobs.submit(ask(2), INFO, owner=ANN, job_id="mine", digest="d")
    client.delete(keys.MODELS)
    assert jobs.find("mine", owner=ANN, digest="d") == job
    assert jobs.find("mine", owner=BOB, digest="d") is None
    with pytest.raises(OtherBody):
        jobs.find("mine", owner=ANN, digest="e")
    jobs.cancel("mine", owner=ANN)
    client.delete(keys.RECORD + keys.owned_id(ANN.id, "mine"))
    with pytest.raises(Expired):
        jobs.find("mine", owner=ANN, digest="d")


def test_one_image_is_the_same_as_in_its_job(jobs: JobStore, parts: PartStore) -> None:
    jobs.submit(ask(3), INFO, owner=ANN, job_id="mine")
    done, _ = take(parts, 2)
    assert parts.finish(done, FILES, 1.0) is not None
    job = jobs.get("mine", owner=ANN)
    assert job is not None
    assert {part.status for part in job.parts} == {"finished", "started", "queued"}
    for index, part in enumerate(job.parts):
        assert jobs.part("mine", index, owner=ANN) == part
    assert jobs.part("mine", 3, owner=ANN) is None
    assert jobs.part("mine", 0, owner=BOB) is None
    assert jobs.part("a job", 0, owner=ANN) is None
