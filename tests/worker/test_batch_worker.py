"""The worker as its users meet it: real processes, real Redis, real decoding."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import redis
from rq import Callback, Queue
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job as RQJob
from rq.serializers import JSONSerializer

from model.engine import Engine
from model.given import Given, Stream, keep_bits
from model.request import GenerationRequest, ModelInfo
from pathar.contract import END_STATES, FILE_NAMES
from store import keys
from store.access import ANYBODY
from store.job import Job
from store.parts import PartStore, read_part
from store.registry import Registry
from store.results import ResultStore
from tests.conftest import RedisServer
from tests.running import painted
from tests.worker.conftest import (
    Jobs,
    WorkerProcess,
    ask,
    ended,
    expected,
    part_of,
    wait_until,
    waiting,
)
from worker.drawing import draw
from worker.presence import HEARTBEAT_S

Start = Callable[..., WorkerProcess]


def files_of(client: redis.Redis, job: Job) -> list[dict[str, bytes | None]]:
    results = ResultStore(client)
    return [
        {name: results.get(job.owner, job.id, part.index, name) for name in FILE_NAMES}
        for part in job.parts
    ]


def under_way(jobs: Jobs, job_id: str) -> bool:
    """Some part is in a slot while another waits or is done."""
    job = jobs.get(job_id)
    assert job is not None
    assert job.status not in END_STATES, "the job ended before the test could disturb it"
    return any(part.status == "started" for part in job.parts) and job.status == "started"


def assert_drawn(
    jobs: Jobs, client: redis.Redis, engine: Engine, wanted: dict[str, GenerationRequest]
) -> None:
    """Every job finished, with the very bytes that a lone engine draws."""
    for job_id, request in wanted.items():
        job = ended(jobs, job_id)
        assert (job.status, job.error) == ("finished", None)
        assert files_of(client, job) == expected(engine, request)


def assert_nothing_stranded(client: redis.Redis, info: ModelInfo) -> None:
    queue = keys.queue_name(info.version, info.numerics)
    assert waiting(client, info) == []
    assert client.llen(keys.QUEUE + queue) == 0
    assert client.llen(keys.QUEUE + queue + keys.INTERMEDIATE) == 0
    assert client.zcard(keys.STARTED + queue) == 0
    assert client.keys(f"{keys.EXECUTION}*") == []


def test_an_image_has_the_same_bytes_alone_in_a_batch_and_joined_half_way(
    start_worker: Start, jobs: Jobs, client: redis.Redis, engine: Engine, info: ModelInfo
) -> None:
    start_worker(slots=4).ready()
    wanted: dict[str, GenerationRequest] = {}
    for seed, label in enumerate(["histology", "cytology", "blood", "fluorescence"], start=1):
        request = ask(3, seed=seed, label=label)
        job = jobs.submit(request, info)
        wanted[job.id] = request
        wait_until(lambda job_id=job.id: jobs.get(job_id).status != "queued")  # type: ignore[misc]
    assert_drawn(jobs, client, engine, wanted)
    assert_nothing_stranded(client, info)


def test_a_killed_workers_images_are_taken_over_with_the_same_bytes(
    start_worker: Start, jobs: Jobs, client: redis.Redis, engine: Engine, info: ModelInfo
) -> None:
    victim = start_worker(slots=4).ready()
    wanted = {jobs.submit(request, info).id: request for request in (ask(12), ask(3, seed=2))}
    wait_until(lambda: under_way(jobs, next(iter(wanted))))
    victim.kill()
    assert client.zcard(keys.STARTED + keys.queue_name(info.version, info.numerics)) > 0
    start_worker(slots=8)
    assert_drawn(jobs, client, engine, wanted)
    assert_nothing_stranded(client, info)


def test_a_large_image_is_taken_over_and_canceled_like_others(
    start_worker: Start, jobs: Jobs, client: redis.Redis, engine: Engine, info: ModelInfo
) -> None:
    """Killed among its windows, beside images that were given a part of their tokens: another
    worker with other slots draws the same bytes. A canceled one gives back its slots."""
    victim = start_worker(slots=3).ready()
    large = replace(ask(1), size=(512, 256))
    wanted = {jobs.submit(request, info).id: request for request in (large, ask(3, seed=2))}
    mask = np.packbits(painted(info.image_size)).tobytes()
    kept = [location % 3 > 0 for location in range(info.grid_size**2)]
    given, in_part = Given(Stream("mask", mask, keep_bits(kept))), ask(2, seed=3)
    on_mask = jobs.submit(in_part, info, given).id
    wait_until(lambda: under_way(jobs, next(iter(wanted))))
    victim.kill()
    doomed = jobs.submit(replace(ask(2, seed=5), size=(1024, 1024)), info).id
    start_worker(slots=8)
    wait_until(lambda: under_way(jobs, doomed))
    assert jobs.cancel(doomed)
    assert_drawn(jobs, client, engine, wanted)
    drawn = dict(draw(engine, [replace(image, given=given) for image in in_part.images()]))
    assert files_of(client, ended(jobs, on_mask)) == [drawn[at] for at in range(in_part.n)]
    assert_nothing_stranded(client, info)


def test_a_frozen_worker_that_wakes_up_has_its_stale_results_refused(
    start_worker: Start, jobs: Jobs, client: redis.Redis, engine: Engine, info: ModelInfo
) -> None:
    frozen = start_worker(slots=4).ready()
    request = ask(12)
    job_id = jobs.submit(request, info).id
    wait_until(lambda: under_way(jobs, job_id))
    os.kill(frozen.process.pid, signal.SIGSTOP)
    second = start_worker(slots=4)
    done = ended(jobs, job_id)
    os.kill(frozen.process.pid, signal.SIGCONT)
    wait_until(lambda: "dropped: lost" in frozen.log() or "result rejected" in frozen.log())
    assert jobs.get(job_id) == done
    assert_drawn(jobs, client, engine, {job_id: request})
    assert second.stop() == 0
    after = ask(2, seed=9)
    assert_drawn(jobs, client, engine, {jobs.submit(after, info).id: after})


def test_a_worker_that_has_just_come_takes_nothing_from_one_that_could_not_reach_redis(
    start_worker: Start, jobs: Jobs, client: redis.Redis, engine: Engine, info: ModelInfo
) -> None:
    request = ask()
    job_id = jobs.submit(request, info).id
    queue = keys.queue_name(info.version, info.numerics)
    rival = PartStore(client, queue, "rival", result_ttl=600)
    (claim,) = rival.claim(1)
    held = rival.start(claim, read_part(claim))
    assert held is not None
    # As after a while in which nobody reached Redis.
    client.zadd(keys.LEASES + queue, {held.part: 1.0})
    start_worker().ready()
    assert rival.heartbeat([(held, 0)], engine.steps_per_image) == set(), (
        "taken from a living worker"
    )
    assert_drawn(jobs, client, engine, {job_id: request})
    assert client.hget(keys.RECORD + held.job, "losses:0") == b"1"


def test_sigterm_and_sigint_under_load_strand_nothing(
    start_worker: Start, jobs: Jobs, client: redis.Redis, engine: Engine, info: ModelInfo
) -> None:
    request = ask(24)
    job_id = jobs.submit(request, info).id
    for number in (signal.SIGTERM, signal.SIGINT):
        worker = start_worker(slots=4).ready()
        wait_until(lambda: under_way(jobs, job_id))
        assert worker.stop(number) == 0, worker.log()
        job = jobs.get(job_id)
        assert job is not None
        assert {part.status for part in job.parts} <= {"finished", "queued"}
        assert [model.ready for model in jobs.models()] == [False]
    start_worker(slots=4).ready()
    assert_drawn(jobs, client, engine, {job_id: request})
    assert_nothing_stranded(client, info)


def test_canceling_or_deleting_one_job_leaves_its_neighbours_unharmed(
    start_worker: Start, jobs: Jobs, client: redis.Redis, engine: Engine, info: ModelInfo
) -> None:
    start_worker(slots=4).ready()
    doomed = [jobs.submit(ask(16, seed=seed), info).id for seed in (3, 4, 5)]
    request = ask(8, seed=6)
    neighbour = jobs.submit(request, info).id
    wait_until(lambda: under_way(jobs, doomed[0]))
    assert jobs.cancel(doomed[0])
    for index in range(16):
        with contextlib.suppress(NoSuchJobError, InvalidJobOperation):  # the first ends its job
            part = part_of(doomed[1], index)
            RQJob.fetch(part, connection=client, serializer=JSONSerializer).delete()
    client.delete(keys.RECORD + keys.owned_id(ANYBODY.id, doomed[2]))
    assert_drawn(jobs, client, engine, {neighbour: request})
    assert ended(jobs, doomed[0]).status == "canceled"
    assert ended(jobs, doomed[1]).status == "canceled"
    assert jobs.get(doomed[2]) is None
    wait_until(lambda: not client.keys(f"{keys.EXECUTION}*"))
    assert_nothing_stranded(client, info)


def test_a_job_whose_parts_were_deleted_before_any_worker_came_is_canceled(
    start_worker: Start, jobs: Jobs, client: redis.Redis, engine: Engine, info: ModelInfo
) -> None:
    doomed = jobs.submit(ask(3, seed=5), info).id
    for index in range(3):
        RQJob.fetch(part_of(doomed, index), connection=client, serializer=JSONSerializer).delete()
    request = ask(1, seed=6)
    neighbour = jobs.submit(request, info).id
    start_worker(slots=4).ready()
    assert_drawn(jobs, client, engine, {neighbour: request})
    assert ended(jobs, doomed).status == "canceled"
    assert_nothing_stranded(client, info)


def test_hostile_and_broken_records_fail_alone(
    start_worker: Start,
    jobs: Jobs,
    client: redis.Redis,
    engine: Engine,
    info: ModelInfo,
    tmp_path: Path,
) -> None:
    path = tmp_path / "touched"
    queue = Queue(
        keys.queue_name(info.version, info.numerics), connection=client, serializer=JSONSerializer
    )
    queue.enqueue("os.system", f"touch {path}", job_id="evil_0")
    queue.enqueue("worker.part", job_id="evil_1", on_failure=Callback("os.abort"))
    queue.enqueue("worker.part", job_id="evil_2", on_success=Callback("os.abort"))
    client.rpush(queue.key, "nobody", "nobody_0")  # without any record
    unknown = jobs.submit(ask(2, label="no such label"), info)
    settings = {"cfg_scale": "x", "temperature": 1, "top_k": 0, "top_p": 1}
    odd = jobs.submit(ask(), info)
    image = {"label": "histology", "seed": 1, "settings": settings, "given": None}
    kwargs = {"job_id": keys.owned_id(ANYBODY.id, odd.id), "index": 0, "image": image}
    data = zlib.compress(json.dumps(["worker.part", None, [], kwargs]).encode())
    client.hset(keys.PART + part_of(odd.id), "data", data)
    good = ask(3, seed=8)
    wanted = {jobs.submit(good, info).id: good}
    worker = start_worker(slots=8).ready()
    assert_drawn(jobs, client, engine, wanted)
    assert "no such label" in str(ended(jobs, unknown.id).error)
    assert "cfg_scale" in str(ended(jobs, odd.id).error)
    for name in ("evil_0", "evil_1", "evil_2"):
        assert RQJob.fetch(name, connection=client, serializer=JSONSerializer).is_failed
        assert f"refused {name}" in worker.log()
    assert "refused nobody_0" in worker.log()
    assert "trying again" not in worker.log(), "it was taken for Redis that is away"
    assert not path.exists()
    assert worker.stop() == 0


def test_a_redis_crash_under_load_loses_nothing(
    start_worker: Start,
    redis_server: RedisServer,
    jobs: Jobs,
    client: redis.Redis,
    engine: Engine,
    info: ModelInfo,
) -> None:
    worker = start_worker(slots=4).ready()
    wanted = {jobs.submit(request, info).id: request for request in (ask(12), ask(4, seed=2))}
    wait_until(lambda: under_way(jobs, next(iter(wanted))))
    redis_server.kill()
    wait_until(lambda: "trying again" in worker.log())
    redis_server.start()
    assert_drawn(jobs, client, engine, wanted)
    assert_nothing_stranded(client, info)
    assert worker.stop() == 0


def test_a_full_redis_costs_no_image_and_few_words(
    start_worker: Start, jobs: Jobs, client: redis.Redis, engine: Engine, info: ModelInfo
) -> None:
    worker = start_worker(slots=4).ready()
    request = ask(12)
    job_id = jobs.submit(request, info).id
    wait_until(lambda: under_way(jobs, job_id))
    client.config_set("maxmemory", 1)
    wait_until(lambda: "trying again" in worker.log())
    time.sleep(3 * HEARTBEAT_S)
    assert all(model.ready for model in jobs.models())
    client.config_set("maxmemory", 0)
    assert_drawn(jobs, client, engine, {job_id: request})
    losses = client.hkeys(keys.RECORD + keys.owned_id(ANYBODY.id, job_id))
    assert not [name for name in losses if name.startswith(b"losses:")]
    assert worker.log().count("heartbeat:") <= 2


def test_a_worker_shows_in_redis_only_while_it_lives(
    start_worker: Start, jobs: Jobs, client: redis.Redis, info: ModelInfo
) -> None:
    worker = start_worker(slots=3).ready()
    (model,) = jobs.models()
    assert (model.info, model.ready, model.slots) == (info, True, 3)
    assert client.scard("rq:workers") == 1
    assert worker.stop() == 0
    assert client.scard("rq:workers") == 0
    assert [model.ready for model in jobs.models()] == [False]


def test_rqs_tools_show_no_dead_worker_of_whatever_model(
    start_worker: Start, jobs: Jobs, client: redis.Redis, info: ModelInfo
) -> None:
    old = replace(info, version="ab" * 32)
    Registry(client).publish(old, "dead", 4)
    for model in (info, old):
        queue = keys.queue_name(model.version, model.numerics)
        for registered in ("rq:workers", f"rq:workers:{queue}"):
            client.sadd(registered, f"rq:worker:dead-of-{queue}")
    start_worker(slots=3).ready()
    wait_until(lambda: client.scard("rq:workers") == 1)
    assert not client.exists(f"rq:workers:{keys.queue_name(old.version, old.numerics)}")


def test_forged_records_stop_no_sign_of_life_and_no_neighbour(
    start_worker: Start, jobs: Jobs, client: redis.Redis, engine: Engine, info: ModelInfo
) -> None:
    queue = keys.queue_name(info.version, info.numerics)
    for number in range(30):
        job = keys.owned_id(ANYBODY.id, f"forged{number}")
        client.set(keys.RECORD + job, "not a hash")
        client.zadd(keys.LEASES + queue, {keys.part_id(job, 0): 1.0})
    client.hset(keys.MODELS, "forged", "{")
    client.zadd(keys.WORKERS, {"forged": 4e9})
    client.zadd(keys.STARTED + queue, {"forged": 1.0})
    client.set("rq:workers:" + queue, "not a set")
    worker = start_worker(slots=4).ready()
    request = ask(3)
    assert_drawn(jobs, client, engine, {jobs.submit(request, info).id: request})
    wait_until(lambda: client.zcard(keys.LEASES + queue) == 0)  # a sweep
    (model,) = jobs.models()
    assert model.ready
    wait_until(lambda: "30 records in Redis could not be read" in worker.log())
    assert worker.stop() == 0
