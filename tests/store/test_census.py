"""What operators are told of queues and ends."""

from __future__ import annotations

import redis

from store import keys
from store.census import CensusTaker, Ended
from store.jobs import JobStore
from store.parts import PartStore, read_part
from store.registry import Registry
from tests.store.conftest import ANN, BOB, INFO, ask


def test_who_waits_and_how_long_is_told_by_priority(
    client: redis.Redis, jobs: JobStore, registry: Registry
) -> None:
    registry.publish(INFO, "worker", 4)
    taker = CensusTaker(client)
    assert [(line.images, line.oldest_s) for line in taker.take().lines] == [(0, 0.0), (0, 0.0)]
    jobs.submit(ask(3), INFO, owner=ANN)
    jobs.submit(ask(2), INFO, owner=BOB)
    late, _ = jobs.submit(ask(4), INFO, owner=BOB, priority="bulk")
    client.hset(keys.RECORD + keys.owned_id(BOB.id, late.id), "created_at", late.created_at - 60)
    census = taker.take()
    interactive, bulk = census.lines
    assert (interactive.priority, interactive.images) == ("interactive", 5)
    assert 0 < interactive.oldest_s < 60
    assert (bulk.priority, bulk.images) == ("bulk", 4)
    assert 60 <= bulk.oldest_s < 120
    assert census.slots == {INFO.name: 4}
    assert census.started == {INFO.name: 0}


def test_a_queue_whose_workers_are_gone_is_still_told(
    client: redis.Redis, jobs: JobStore, registry: Registry
) -> None:
    registry.publish(INFO, "worker", 4)
    jobs.submit(ask(2), INFO, owner=ANN)
    registry.withdraw(INFO, "worker", 4)
    census = CensusTaker(client).take()
    assert census.slots == {INFO.name: 0}
    assert sum(line.images for line in census.lines) == 2


def test_ends_are_counted_once_by_how_and_why(
    client: redis.Redis, jobs: JobStore, registry: Registry, parts: PartStore
) -> None:
    registry.publish(INFO, "worker", 4)
    done, _ = jobs.submit(ask(2), INFO, owner=ANN)
    broken, _ = jobs.submit(ask(2), INFO, owner=ANN, priority="bulk")
    gone, _ = jobs.submit(ask(2), INFO, owner=BOB)
    assert jobs.cancel(gone.id, owner=BOB)
    assert not jobs.cancel(gone.id, owner=BOB)
    held = [parts.start(claim, read_part(claim)) for claim in parts.claim(4)]
    assert CensusTaker(client).take().started == {INFO.name: 4}
    for part in held:
        assert part is not None
        if keys.owned_id(ANN.id, done.id) in part.part:
            parts.finish(part, {"a": b"b"}, 0.1)
        else:
            parts.fail(part, "not drawn within 600 s", "timeout")
    ended = {(end.status, end.cause, end.priority): end for end in CensusTaker(client).take().ended}
    assert {kind: end.jobs for kind, end in ended.items()} == {
        ("finished", "", "interactive"): 1,
        ("failed", "timeout", "bulk"): 1,
        ("canceled", "", "interactive"): 1,
    }
    one = ended["failed", "timeout", "bulk"]
    assert one == Ended(INFO.name, "histology", "bulk", "failed", "timeout", 1)
    assert broken.request.label == one.label
