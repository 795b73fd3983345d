"""Workers whose engine draws no images, in real processes: beside a healthy one, and alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from model.engine import Engine
from model.request import ModelInfo
from store import keys
from store.access import ANYBODY
from tests.conftest import DEADLINE_S
from tests.worker.conftest import Jobs, WorkerProcess, ask, ended, expected, wait_until
from tests.worker.test_batch_worker import assert_nothing_stranded, files_of

pytestmark = pytest.mark.processes

Start = Callable[..., WorkerProcess]

SICK = """
import sys, torch
from model.engine import Engine
render, begun = Engine.render, 0

def sick(self, tokens):
    global begun
    begun += 1
    if begun <= {healthy}:
        return render(self, tokens)
    raise torch.OutOfMemoryError("no memory is left at /a/secret/path")

Engine.render = sick
from worker.__main__ import main
sys.exit(main())
"""
"""A worker whose engine renders some images, its warm-up counted, and then none."""


def test_a_sick_worker_beside_a_healthy_one_fails_no_job(
    start_worker: Start, jobs: Jobs, client: redis.Redis, engine: Engine, info: ModelInfo
) -> None:
    start_worker(slots=4).ready()
    sick = start_worker(slots=8, program=SICK.format(healthy=3)).ready()
    requests = [ask(2, seed=seed) for seed in range(30)]
    submitted = [jobs.submit(request, info).id for request in requests]
    done = [ended(jobs, job_id) for job_id in submitted]
    assert {(job.status, job.error) for job in done} == {("finished", None)}
    assert sick.process.wait(DEADLINE_S) == 1
    assert "images in a row could not be drawn" in sick.log()
    assert "OutOfMemoryError" in sick.log()
    for job, request in [(done[at], requests[at]) for at in (0, 15, 29)]:
        assert files_of(client, job) == expected(engine, request)
    assert_nothing_stranded(client, info)


def test_a_sick_worker_alone_says_why_and_is_not_ready(
    start_worker: Start, jobs: Jobs, client: redis.Redis, info: ModelInfo
) -> None:
    sick = start_worker(slots=4, program=SICK.format(healthy=1)).ready()
    job_id = jobs.submit(ask(8), info).id
    assert sick.process.wait(DEADLINE_S) == 1
    assert "images in a row could not be drawn" in sick.log()
    assert [model.ready for model in jobs.models()] == [False]
    job = jobs.get(job_id)
    assert job is not None
    assert job.status == "queued"
    losses = _losses(client, job_id)
    assert sum(losses) >= 3
    assert max(losses) == 1, "what failed was not drawn again at once while others waited"
    start_worker(slots=4).ready()
    assert ended(jobs, job_id).status == "finished"


def test_an_image_that_no_worker_can_draw_fails_with_the_reason(
    start_worker: Start, jobs: Jobs, client: redis.Redis, info: ModelInfo
) -> None:
    worker = start_worker(slots=4, program=SICK.format(healthy=1)).ready()
    job = ended(jobs, jobs.submit(ask(), info).id)
    assert job.status == "failed"
    assert job.error == "image could not be drawn: OutOfMemoryError (image 0, 4 tries)"
    assert "secret" in worker.log()
    assert worker.process.poll() is None, "one image says nothing of the engine"
    wait_until(
        lambda: client.zcard(keys.LEASES + keys.queue_name(info.version, info.numerics)) == 0
    )


def _losses(client: redis.Redis, job_id: str) -> list[int]:
    record = client.hgetall(keys.RECORD + keys.owned_id(ANYBODY.id, job_id))
    return [int(count) for name, count in record.items() if name.startswith(b"losses:")]
