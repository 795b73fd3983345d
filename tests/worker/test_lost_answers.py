"""A worker on a way to Redis on which answers are lost: what it does is done once, and counted as
what it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import redis

from model.engine import Engine
from model.request import ModelInfo
from store import keys
from store.access import ANYBODY
from store.jobs import JobStore
from tests.conftest import RedisServer
from tests.lossy import lossy
from tests.worker.conftest import Jobs, WorkerProcess, ask, ended


def test_lost_answers_cost_no_image_a_try_and_none_is_counted_twice_or_as_lost(
    start_worker: Callable[..., WorkerProcess],
    redis_server: RedisServer,
    jobs: Jobs,
    client: redis.Redis,
    engine: Engine,
    info: ModelInfo,
) -> None:
    with lossy(redis_server.folder) as way:
        way.every = 3
        worker = start_worker(slots=4, url=way.url).ready()
        submitted = [jobs.submit(ask(4, seed=seed), info).id for seed in range(8)]
        assert {ended(jobs, job_id).status for job_id in submitted} == {"finished"}
        assert worker.stop() == 0
        assert way.lost > 10
    log = worker.log()
    assert log.count('"message": "finished"') == 32
    assert "result rejected" not in log
    assert "dropped" not in log
    for job_id in submitted:
        record = client.hgetall(keys.RECORD + keys.owned_id(ANYBODY.id, job_id))
        assert not [name for name in record if name.startswith(b"losses:")]
        events = JobStore(client, result_ttl=600).events(job_id, owner=ANYBODY)
        told = Counter((event.kind, event.data.get("index")) for event in events)
        assert {told[kind, index] for kind in ("started", "image") for index in range(4)} == {1}
