from __future__ import annotations

import json

import pytest
import redis
from rq.job import Job as RQJob
from rq.serializers import JSONSerializer

from pathar.contract import Status, image_seed
from store import keys
from store.access import ANYBODY
from store.job import derive_status
from store.jobs import JobStore
from store.keys import ENDED_CHANNEL
from store.parts import PartStore
from tests.store.conftest import FILES, INFO, LINE, STEPS, ask, part_of, see, submit, take


def test_a_submitted_job_is_read_back_as_it_was_accepted(jobs: JobStore) -> None:
    accepted = submit(jobs, ask(n=3))
    job = see(jobs, accepted)
    assert job == accepted
    assert job.status == "queued"
    assert [part.seed for part in job.parts] == [image_seed(7, index) for index in range(3)]
    assert job.model.version == INFO.version
    assert job.model.numerics == INFO.numerics


def test_each_image_is_one_json_rq_job_on_the_queue_of_its_model(
    jobs: JobStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(n=2))
    names = [name.decode() for name in client.lrange(LINE, 0, -1)]
    assert names == [part_of(job), part_of(job, 1)]
    part = RQJob.fetch(names[1], connection=client, serializer=JSONSerializer)
    assert part.func_name == "worker.part"
    assert part.kwargs == {
        "job_id": keys.owned_id(job.owner, job.id),
        "index": 1,
        "image": ask(n=2).images()[1].to_dict(),
    }


def test_an_unknown_or_malformed_id_is_no_job(jobs: JobStore) -> None:
    for job_id in ("missing", "", "a" * 65, "a*b", "../etc", "pathar:job:x"):
        assert jobs.get(job_id, owner=ANYBODY) is None
        assert not jobs.expired(job_id, owner=ANYBODY)
        assert not jobs.cancel(job_id, owner=ANYBODY)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["queued", "queued"], "queued"),
        (["queued", "started"], "started"),
        (["finished", "queued"], "started"),
        (["finished", "finished"], "finished"),
        (["finished", "canceled"], "canceled"),
        (["failed", "canceled"], "failed"),
    ],
)
def test_a_job_status_follows_from_its_parts(states: list[Status], expected: Status) -> None:
    assert derive_status(states) == expected


def test_a_canceled_job_leaves_nothing_queued_and_tells_its_waiters(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    with client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(ENDED_CHANNEL)
        listener.get_message(timeout=5)
        job = submit(jobs, ask(n=2))
        (held,) = take(parts)
        assert jobs.cancel(job.id, owner=ANYBODY)
        assert not jobs.cancel(job.id, owner=ANYBODY), "an ended job is not canceled twice"
        message = listener.get_message(timeout=5)
    assert message is not None
    assert message["data"].decode() == keys.owned_id(job.owner, job.id)
    seen = see(jobs, job)
    assert seen.status == "canceled"
    assert seen.ended_at is not None
    assert client.llen(LINE) == 0
    assert parts.heartbeat([(held, 0)], STEPS) == {held.execution}
    assert not parts.finish(held, FILES, 1.0), "a result after the end must not be shown"


def test_a_part_canceled_by_rq_itself_ends_the_job(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(n=2))
    held = take(parts, 2)
    RQJob.fetch(part_of(job, 1), connection=client, serializer=JSONSerializer).cancel()
    assert parts.heartbeat([(each, 0) for each in held], STEPS) != set()
    seen = see(jobs, job)
    assert seen.status == "canceled"
    assert seen.ended_at is not None


def test_an_ended_job_and_its_files_expire_together(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(n=2))
    first, second = take(parts, 2)
    assert parts.finish(first, FILES, 1.0)
    assert client.ttl(keys.RESULT + first.part) == -1, "files must outlive the rest of their job"
    assert parts.finish(second, FILES, 1.0)
    for key in (keys.RECORD + keys.owned_id(job.owner, job.id), keys.RESULT + first.part):
        assert 0 < client.ttl(key) <= 60
    assert not client.exists(keys.PART + first.part)


def test_a_record_holds_json_only(jobs: JobStore, client: redis.Redis) -> None:
    job = submit(jobs)
    record = client.hgetall(keys.RECORD + keys.owned_id(job.owner, job.id))
    assert json.loads(record[b"request"]) == ask().to_dict()
