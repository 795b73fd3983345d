from __future__ import annotations

import pytest
import redis

from store import keys
from store.access import ANYBODY
from store.jobs import JobStore
from store.keys import EVENTS_CHANNEL
from store.parts import PartStore
from store.registry import Registry, Speed
from tests.store.conftest import ANN, BOB, FILES, INFO, STEPS, ask, see, submit, take


def test_a_jobs_events_tell_its_life_and_can_be_read_again_from_any_of_them(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(n=2), ANN)
    first, second = take(parts, 2)
    parts.heartbeat([(first, 5), (second, 0)], STEPS)
    parts.heartbeat([(first, 5), (second, 3)], STEPS)
    *_, one, other = jobs.events(job.id, owner=ANN)
    assert one.data == {"index": 0, "step": 5, "steps": STEPS}
    assert other.data == {"index": 1, "step": 3, "steps": STEPS}, "of progress, the last word"
    assert parts.finish(first, FILES, 1.0) is not None
    assert parts.finish(second, FILES, 1.0) is not None
    events = jobs.events(job.id, owner=ANN)
    told = [(event.kind, event.data.get("index")) for event in events]
    assert told == [
        ("queued", None), ("started", 0), ("started", 1),
        ("image", 0), ("image", 1), ("finished", None),
    ]  # fmt: skip
    assert jobs.events(job.id, events[2].id, owner=ANN) == events[3:]
    assert jobs.events(job.id, owner=BOB) == []
    stream = keys.EVENTS + keys.owned_id(ANN.id, job.id)
    assert 0 < client.ttl(stream) <= 60


def test_whoever_listens_is_told_at_once(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs)
    with client.pubsub(ignore_subscribe_messages=True) as listener:  # type: ignore[no-untyped-call]
        listener.subscribe(EVENTS_CHANNEL)
        listener.get_message(timeout=5)
        take(parts)
        message = listener.get_message(timeout=5)
    assert message is not None
    assert message["data"].decode() == keys.owned_id(job.owner, job.id)


def test_progress_and_the_seconds_left_follow_from_what_was_measured(
    jobs: JobStore, parts: PartStore, registry: Registry
) -> None:
    job = submit(jobs, ask(n=4))
    assert see(jobs, job).seconds_left is None, "a guess"
    registry.publish(INFO, "worker-one", 4, Speed(2.0, 3.0))
    waiting = see(jobs, job)
    assert (waiting.ahead, waiting.steps, waiting.steps_total) == (0, 0, 4 * STEPS)
    assert waiting.seconds_left == pytest.approx(4 / 2.0 + 3.0)
    held = take(parts, 4)
    parts.heartbeat([(part, STEPS // 3) for part in held], STEPS)
    drawing = see(jobs, job)
    assert (drawing.ahead, drawing.steps) == (None, 4 * (STEPS // 3))
    assert drawing.seconds_left == pytest.approx(3.0 * (1 - (STEPS // 3) / STEPS))
    for part in held:
        assert parts.finish(part, FILES, 1.0) is not None
    ended = see(jobs, job)
    assert (ended.seconds_left, ended.steps) == (0.0, 4 * STEPS)


def test_jobs_are_listed_newest_first_in_pages_by_status_and_label(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    made = [submit(jobs, ask(seed=number), ANN).id for number in range(7)]
    submit(jobs, ask(), BOB)
    for held in take(parts, 3):
        assert parts.finish(held, FILES, 1.0) is not None
    page = jobs.page(owner=ANN, limit=3)
    listed = [job.id for job in page.jobs]
    while page.next:
        page = jobs.page(owner=ANN, limit=3, cursor=page.next)
        listed += [job.id for job in page.jobs]
    assert listed == made[::-1]
    finished = jobs.page(owner=ANN, status="finished")
    assert finished.next is None
    assert all(job.status == "finished" for job in finished.jobs)
    assert 1 <= len(finished.jobs) <= 3
    assert jobs.page(owner=ANN, label="cytology").jobs == ()
    client.delete(keys.RECORD + keys.owned_id(ANN.id, made[0]))
    assert len(jobs.page(owner=ANN).jobs) == 6
    with pytest.raises(ValueError, match="cursor"):
        jobs.page(owner=ANN, cursor="no cursor")


def test_a_long_job_with_much_progress_keeps_every_image_event(
    jobs: JobStore, parts: PartStore
) -> None:
    count = 600
    job = submit(jobs, ask(n=count))
    held = take(parts, count)
    for step in range(1, 9):
        parts.heartbeat([(part, step) for part in held], STEPS)
    for part in held:
        assert parts.finish(part, FILES, 1.0) is not None
    events, after = [], "0"
    while page := jobs.events(job.id, after, owner=ANYBODY):
        events += page
        after = page[-1].id
    kinds = [event.kind for event in events]
    assert (kinds[0], kinds[-1]) == ("queued", "finished")
    assert {e.data["index"] for e in events if e.kind == "image"} == set(range(count))
