"""What operators are told of queues and ends."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import redis

import store
from model.request import GenerationRequest, SamplingSettings
from pathar.contract import PRIORITIES
from store import keys
from store.access import KeyStore, Limits
from store.jobs import JobStore
from store.parts import Cause, PartStore, read_part
from store.registry import Registry
from store.statistics import CAUSES, ENDINGS, REVOKED, Ended, StatisticsReader, Use
from tests.store.conftest import ANN, BOB, INFO, ROOM, ask

NONE = dict.fromkeys(PRIORITIES, 0)


def test_who_waits_and_how_long_is_told_by_priority(
    client: redis.Redis, jobs: JobStore, registry: Registry
) -> None:
    registry.publish(INFO, "worker", 4)
    reader = StatisticsReader(client)
    assert [(line.images, line.oldest_s) for line in reader.read().lines] == [(0, 0.0), (0, 0.0)]
    jobs.submit(ask(3), INFO, owner=ANN)
    jobs.submit(ask(2), INFO, owner=BOB)
    late, _ = jobs.submit(ask(4), INFO, owner=BOB, priority="bulk")
    client.hset(keys.RECORD + keys.owned_id(BOB.id, late.id), "created_at", late.created_at - 60)
    statistics = reader.read()
    interactive, bulk = statistics.lines
    assert (interactive.priority, interactive.images) == ("interactive", 5)
    assert 0 < interactive.oldest_s < 60
    assert (bulk.priority, bulk.images) == ("bulk", 4)
    assert 60 <= bulk.oldest_s < 120
    assert statistics.slots == {INFO.name: 4}
    assert statistics.started == {INFO.name: 0}


def test_what_each_key_takes_is_told_by_its_name(
    client: redis.Redis, jobs: JobStore, registry: Registry, parts: PartStore
) -> None:
    store, reader = KeyStore(client), StatisticsReader(client)
    registry.publish(INFO, "worker", 4)
    assert reader.read().used == (Use("anybody", NONE, 0), Use(REVOKED, NONE, 0))
    ann, bob, gone = (store.make(name, 1.0, Limits())[1] for name in ("ann", "bob", "gone"))
    jobs.submit(ask(3), INFO, owner=ann)
    jobs.submit(ask(2), INFO, owner=ann, priority="bulk")
    jobs.submit(ask(4), INFO, owner=gone)
    store.revoke("gone")
    before, idle, revoked = reader.read().used
    assert (before.key, before.waiting) == ("ann", {"interactive": 3, "bulk": 2})
    assert idle == Use("bob", NONE, 0)
    assert revoked == Use(REVOKED, {"interactive": 4, "bulk": 0}, 0)
    for claim in parts.claim(9):
        held = parts.start(claim, read_part(claim))
        assert held is not None
        parts.finish(held, {"a": bytes(10_000)}, 0.1)
    after, _, _ = reader.read().used
    assert after.waiting == NONE
    assert before.stored_bytes > 5 * ROOM
    assert before.stored_bytes > after.stored_bytes > 5 * 10_000
    client.hset(keys.BYTES + ann.id, "sum", "many")
    client.set(keys.BYTES + bob.id, "x")
    assert [use.stored_bytes for use in reader.read().used] == [0, 0, 0]


def test_a_queue_whose_workers_are_gone_is_still_told(
    client: redis.Redis, jobs: JobStore, registry: Registry
) -> None:
    registry.publish(INFO, "worker", 4)
    jobs.submit(ask(2), INFO, owner=ANN)
    registry.withdraw(INFO, "worker", 4)
    statistics = StatisticsReader(client).read()
    assert statistics.slots == {INFO.name: 0}
    assert sum(line.images for line in statistics.lines) == 2


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
    assert StatisticsReader(client).read().started == {INFO.name: 4}
    for part in held:
        assert part is not None
        if keys.owned_id(ANN.id, done.id) in part.part:
            parts.finish(part, {"a": b"b"}, 0.1)
        else:
            parts.fail(part, "not drawn within 600 s", "timeout")
    every = StatisticsReader(client).read().ended
    ended = {(end.status, end.cause, end.priority): end for end in every if end.jobs}
    assert {kind: end.jobs for kind, end in ended.items()} == {
        ("finished", "", "interactive"): 1,
        ("failed", "timeout", "bulk"): 1,
        ("canceled", "", "interactive"): 1,
    }
    one = ended["failed", "timeout", "bulk"]
    assert one == Ended(INFO.name, "histology", "bulk", "failed", "timeout", 1)
    assert broken.request.labels == (one.label,)


def test_what_has_not_happened_yet_is_told_as_0_for_models_that_are_served(
    client: redis.Redis, registry: Registry, jobs: JobStore
) -> None:
    reader = StatisticsReader(client)
    assert reader.read().ended == ()
    registry.publish(INFO, "worker", 4)
    ended = reader.read().ended
    labels = (*INFO.label_names(), keys.SEVERAL)
    expected = {(label, p, *e) for label in labels for p in PRIORITIES for e in ENDINGS}
    assert {(end.label, end.priority, end.status, end.cause) for end in ended} == expected
    assert len(ended) == len(expected)
    assert {(end.model, end.jobs) for end in ended} == {(INFO.name, 0)}
    job, _ = jobs.submit(ask(1), INFO, owner=ANN)
    jobs.cancel(job.id, owner=ANN)
    after = reader.read().ended
    assert len(after) == len(ended), "counted in its place"
    assert [end.status for end in after if end.jobs] == ["canceled"]


def test_labels_of_jobs_make_no_series_of_0(
    client: redis.Redis, registry: Registry, jobs: JobStore
) -> None:
    registry.publish(INFO, "worker", 4)
    before = len(StatisticsReader(client).read().ended)
    request = GenerationRequest(("granite",), 1, 7, (SamplingSettings(),))
    job, _ = jobs.submit(request, INFO, owner=ANN)
    jobs.cancel(job.id, owner=ANN)
    assert len(StatisticsReader(client).read().ended) == before + 1


def test_every_cause_is_known() -> None:
    """Those that the scripts write; mypy holds the workers' against `Cause`."""
    folder = Path(store.__file__).parent / "lua"
    texts = [path.read_text() for path in folder.rglob("*.lua")]
    calls = [call for text in texts for call in re.findall(r"\bfail\(([^\n]*)", text)]
    written = {found[-1] for call in calls if (found := re.findall(r"'([a-z ]+)'\)", call))}
    assert {"no worker", "numerics", "refused"} <= written
    assert written | set(get_args(Cause)) == set(CAUSES)
