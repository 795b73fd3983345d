from __future__ import annotations

import json
from dataclasses import replace

import pytest
import redis
from rq.job import Job as RQJob
from rq.serializers import JSONSerializer

from model.request import ModelInfo, image_seed
from store import keys
from store.jobs import ALIVE_S, ENDED_CHANNEL, FORGET_S, JobStore, Status, derive_status
from store.parts import PartStore
from store.results import ResultStore
from tests.store.conftest import FILES, INFO, QUEUE, ask, take


def test_a_submitted_job_is_read_back_as_it_was_accepted(jobs: JobStore) -> None:
    accepted = jobs.submit(ask(n=3), INFO)
    job = jobs.get(accepted.id)
    assert job is not None
    assert job == accepted
    assert job.status == "queued"
    assert [part.seed for part in job.parts] == [image_seed(7, index) for index in range(3)]
    assert job.model.version == INFO.version
    assert job.model.numerics == INFO.numerics


def test_each_image_is_one_json_rq_job_on_the_queue_of_its_model(
    jobs: JobStore, client: redis.Redis
) -> None:
    job = jobs.submit(ask(n=2), INFO)
    names = [name.decode() for name in client.lrange(keys.QUEUE + QUEUE, 0, -1)]
    assert names == [f"{job.id}_0", f"{job.id}_1"]
    part = RQJob.fetch(names[1], connection=client, serializer=JSONSerializer)
    assert part.func_name == "worker.part"
    assert part.kwargs == {"job_id": job.id, "index": 1, "image": ask(n=2).images()[1].to_dict()}


def test_an_unknown_or_malformed_id_is_no_job(jobs: JobStore) -> None:
    for job_id in ("missing", "", "a" * 65, "a*b", "../etc", "pathar:job:x"):
        assert jobs.get(job_id) is None
        assert not jobs.cancel(job_id)


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
        job = jobs.submit(ask(n=2), INFO)
        (held,) = take(parts)
        assert jobs.cancel(job.id)
        assert not jobs.cancel(job.id), "an ended job is not canceled twice"
        message = listener.get_message(timeout=5)
    assert message is not None
    assert message["data"].decode() == job.id
    seen = jobs.get(job.id)
    assert seen is not None
    assert seen.status == "canceled"
    assert seen.ended_at is not None
    assert client.llen(keys.QUEUE + QUEUE) == 0
    assert parts.beat([held]) == {held.execution}
    assert not parts.finish(held, FILES, 1.0), "a result after the end must not be shown"


def test_a_part_canceled_by_rq_itself_ends_the_job(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = jobs.submit(ask(n=2), INFO)
    held = take(parts, 2)
    RQJob.fetch(f"{job.id}_1", connection=client, serializer=JSONSerializer).cancel()
    assert parts.beat(held) != set()
    seen = jobs.get(job.id)
    assert seen is not None
    assert seen.status == "canceled"
    assert seen.ended_at is not None


def test_an_ended_job_and_its_files_expire_together(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = jobs.submit(ask(n=2), INFO)
    first, second = take(parts, 2)
    assert parts.finish(first, FILES, 1.0)
    assert client.ttl(keys.RESULT + first.part) == -1, "files must outlive the rest of their job"
    assert parts.finish(second, FILES, 1.0)
    for key in (keys.RECORD + job.id, keys.RESULT + first.part, keys.PART + first.part):
        assert 0 < client.ttl(key) <= 60


def test_results_are_the_bytes_that_were_put(client: redis.Redis) -> None:
    results = ResultStore(client, result_ttl=60)
    results.put("job", 0, FILES)
    assert {name: results.get("job", 0, name) for name in FILES} == FILES
    assert results.get("job", 1, "image.png") is None
    assert results.get("job", 0, "other.png") is None
    assert 0 < client.ttl(f"{keys.RESULT}job_0") <= 60


def test_a_model_is_ready_only_while_a_worker_says_so(jobs: JobStore, client: redis.Redis) -> None:
    other = replace(INFO, name="other", numerics="ba9876543210")
    assert jobs.models() == []
    jobs.publish_model(INFO, "one", 16)
    jobs.publish_model(INFO, "two", 4)
    jobs.publish_model(other, "three", 8)
    jobs.withdraw_model(other, "three", 8)
    first, second = jobs.models()
    assert (first.info, first.ready, first.slots) == (INFO, True, 20)
    assert (second.info, second.ready, second.slots) == (other, False, 0)
    for member in client.zrange(keys.WORKERS, 0, -1):
        client.zadd(keys.WORKERS, {member: 1.0})
    assert [model.ready for model in jobs.models()] == [False, False]


def beat(jobs: JobStore, client: redis.Redis, info: ModelInfo, *, ago: float, worker: str) -> None:
    """As if this worker had last spoken so many seconds ago."""
    jobs.publish_model(info, worker, 1)
    queue = keys.queue_name(info.version, info.numerics)
    entry = json.loads(client.hget(keys.MODELS, queue))  # type: ignore[arg-type]
    entry["seen"] -= ago
    client.hset(keys.MODELS, queue, json.dumps(entry))
    member = f"{queue}|1|{worker}"
    client.zincrby(keys.WORKERS, -ago, member)


def test_a_model_is_forgotten_a_while_after_its_last_heartbeat_but_not_its_jobs(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = jobs.submit(ask(), INFO)
    beat(jobs, client, INFO, ago=FORGET_S - 10, worker="one")
    assert [(model.info, model.ready) for model in jobs.models()] == [(INFO, False)]
    beat(jobs, client, INFO, ago=FORGET_S + 10, worker="one")
    assert jobs.models() == []
    seen = jobs.get(job.id)
    assert seen == job
    (held,) = take(parts)
    assert parts.finish(held, FILES, 1.0) is not None
    beat(jobs, client, INFO, ago=0, worker="one")
    assert [model.info for model in jobs.models()] == [INFO]


def test_the_version_whose_workers_came_last_is_first_whoever_spoke_last(
    jobs: JobStore, client: redis.Redis
) -> None:
    new = replace(INFO, version="cd" * 32)
    for info in (INFO, new, INFO):
        jobs.publish_model(info, f"worker of {info.version[:2]}", 1)
    assert [model.info for model in jobs.models()] == [new, INFO]
    beat(jobs, client, new, ago=ALIVE_S + 1, worker="worker of cd")
    assert [model.info for model in jobs.models()] == [INFO, new], "a version without workers"
    jobs.publish_model(new, "worker of cd", 1)
    jobs.publish_model(INFO, "worker of ab", 1)
    assert [model.info for model in jobs.models()] == [new, INFO], "its workers came again"


def test_a_worker_that_joins_others_of_its_version_does_not_make_it_newer(
    jobs: JobStore,
) -> None:
    new, other_numerics = replace(INFO, version="cd" * 32), replace(INFO, numerics="ba9876543210")
    for info in (INFO, new, other_numerics):
        jobs.publish_model(info, "worker", 1)
    assert jobs.models()[0].info == new


def test_models_published_before_an_upgrade_are_still_read(
    jobs: JobStore, client: redis.Redis
) -> None:
    queue, seen = keys.queue_name(INFO.version, INFO.numerics), client.time()[0]
    client.hset(keys.MODELS, queue, json.dumps({"info": INFO.to_dict(), "seen": seen}))
    assert [model.info for model in jobs.models()] == [INFO]
    jobs.publish_model(INFO, "one", 4)
    assert jobs.models()[0].ready


def test_a_record_holds_json_only(jobs: JobStore, client: redis.Redis) -> None:
    job = jobs.submit(ask(), INFO)
    record = client.hgetall(keys.RECORD + job.id)
    assert json.loads(record[b"request"]) == ask().to_dict()
