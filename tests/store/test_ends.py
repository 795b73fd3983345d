"""The end of a job costs the same however many images wait, and leaves those of others in place."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import redis

from pathar.contract import END_STATES
from store.access import ANYBODY
from store.job import Job
from store.jobs import JobStore
from store.parts import HeldPart, PartStore
from tests.store.conftest import FILES, LINE, ask, part_of, see, submit, take

End = Callable[[JobStore, PartStore, HeldPart, Job], object]
ENDS: dict[str, End] = {
    "finish": lambda jobs, parts, held, job: parts.finish(held, FILES, 1.0),
    "fail": lambda jobs, parts, held, job: parts.fail(held, "it broke", "engine"),
    "cancel": lambda jobs, parts, held, job: jobs.cancel(job.id, owner=ANYBODY),
}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("n", [1, 3])
def test_the_end_of_a_job_asks_redis_the_same_however_many_wait(
    how: str, n: int, jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    calls = []
    for waiting in (5, 500):
        client.flushall()
        job = submit(jobs, ask(n))
        submit(jobs, ask(waiting))
        *others, held = take(parts, n if how == "finish" else 1)
        for other in others:
            parts.finish(other, FILES, 1.0)
        client.config_resetstat()
        ENDS[how](jobs, parts, held, job)
        stats = client.info("commandstats")
        loads = re.compile("cmdstat_(evalsha|script)")  # when it is first used
        calls.append({name: stats[name]["calls"] for name in stats if not loads.match(name)})
        assert see(jobs, job).status in END_STATES
    assert calls[0] == calls[1]
    whole = {"cmdstat_lrange", "cmdstat_rpush"}
    assert not whole & set(calls[0]), "it reads or writes all that wait"


@pytest.mark.parametrize("how", ["cancel", "fail"])
def test_an_ended_job_leaves_the_line_and_the_others_keep_their_order(
    how: str, jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    submit(jobs, ask(2))
    ending = submit(jobs, ask(6))
    submit(jobs, ask(2))
    held = take(parts, 6)
    for at in (4, 2, 0):  # images of the ending job are in front, behind another one, and at last
        parts.put_back(held[at])
    parts.claim(2)
    waited = waiting(client)
    own = {part_of(ending, index) for index in range(6)}
    assert [part in own for part in waited] == [True, True, True, False, False]
    ENDS[how](jobs, parts, held[3], ending)
    assert waiting(client) == [part for part in waited if part not in own]


def waiting(client: redis.Redis) -> list[str]:
    return [part.decode() for part in client.lrange(LINE, 0, -1)]
