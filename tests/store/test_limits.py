"""Over a limit: who is sent away, for how long, and that coming back then succeeds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis

from runtime.settings import LONGEST_TTL_S
from store import keys
from store.access import ANYBODY, Limits, Owner
from store.job import Job
from store.jobs import Expired, JobStore, OtherBody, TooMuch
from store.parts import PartStore
from store.registry import Registry, Speed
from store.results import ResultStore
from store.scripts import IMAGE_BYTES, PART_BYTES, RECORD_BYTES
from tests.store.conftest import ANN, BOB, FILES, INFO, QUEUE, ROOM, Clock, ask, see, take

pytestmark = pytest.mark.usefixtures("clock")


@pytest.fixture
def narrow(client: redis.Redis, registry: Registry) -> JobStore:
    """A queue for ten images, drawn at two a second."""
    registry.publish(INFO, "worker-one", 4, Speed(2.0, 1.0))
    return JobStore(client, result_ttl=60, max_waiting=10)


OPEN_BYTES = RECORD_BYTES + PART_BYTES + ROOM
"""What a job of one image counts until it has ended."""


def put(jobs: JobStore, name: str, owner: Owner = ANN, n: int = 1) -> Job:
    return jobs.submit(ask(n), INFO, owner=owner, job_id=name, digest=f"{n}")[0]


def test_a_full_queue_says_when_there_is_room_and_keeps_it(
    narrow: JobStore, parts: PartStore, clock: Clock
) -> None:
    for number in range(10):
        put(narrow, f"early-{number}")
    with pytest.raises(TooMuch) as first:
        put(narrow, "one")
    with pytest.raises(TooMuch) as second:
        put(narrow, "two")
    assert first.value.limit == "queue"
    assert 0 < first.value.retry_after < second.value.retry_after < 5
    with pytest.raises(TooMuch) as again:
        put(narrow, "one")
    assert again.value.retry_after <= first.value.retry_after, "asking again costs the place"
    for held in take(parts, 2):
        assert parts.finish(held, FILES, 1.0) is not None
    with pytest.raises(TooMuch):
        put(narrow, "three")
    clock.forward(second.value.retry_after)
    assert put(narrow, "two").status == "queued"
    assert put(narrow, "one").status == "queued"


def test_large_images_fill_a_queue_by_what_they_cost(
    narrow: JobStore, parts: PartStore, clock: Clock
) -> None:
    large = replace(ask(), size=(64, 128))
    cost = INFO.cost(large.size)
    assert 2 < cost < 8
    narrow.submit(large, INFO, owner=ANN, job_id="large", digest="large")
    put(narrow, "the-rest", n=10 - cost)
    take(parts)
    put(narrow, "what-it-cost", n=cost)
    with pytest.raises(TooMuch):
        put(narrow, "one-more")


def test_a_place_that_nobody_comes_for_is_given_away(
    narrow: JobStore, parts: PartStore, clock: Clock
) -> None:
    for number in range(10):
        put(narrow, f"early-{number}")
    with pytest.raises(TooMuch) as full:
        put(narrow, "never comes")
    (held,) = take(parts)
    assert parts.finish(held, FILES, 1.0) is not None
    clock.forward(full.value.retry_after + 60)
    assert put(narrow, "another").status == "queued"


def test_a_key_with_little_waiting_is_let_into_a_queue_that_others_filled(
    narrow: JobStore,
) -> None:
    put(narrow, "all", BOB, n=10)
    assert put(narrow, "mine", ANN).status == "queued"
    with pytest.raises(TooMuch):
        put(narrow, "more", BOB)


def test_each_limit_of_a_key_is_its_own(narrow: JobStore, client: redis.Redis) -> None:
    poor = replace(ANN, limits=Limits(requests_per_minute=3, waiting_images=2))
    put(narrow, "a", poor, n=2)
    with pytest.raises(TooMuch) as waiting:
        put(narrow, "b", poor)
    assert waiting.value.limit == "waiting"
    assert put(narrow, "b", BOB).status == "queued"
    client.delete(keys.RATE + poor.id)
    patient = replace(poor, limits=replace(poor.limits, waiting_images=100))
    for name in ("c", "d", "e"):
        put(narrow, name, patient)
    with pytest.raises(TooMuch) as requests:
        put(narrow, "f", patient)
    assert requests.value.limit == "requests"
    assert 15 < requests.value.retry_after <= 20
    assert put(narrow, "a", poor, n=2).id == "a", "finding a job again costs nothing"


def test_stored_bytes_are_counted_until_they_expire(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    size = RECORD_BYTES + IMAGE_BYTES + sum(len(data) for data in FILES.values())
    small = replace(ANN, limits=Limits(stored_bytes=size + OPEN_BYTES))
    for name in ("a", "b"):
        put(jobs, name, small)
        (held,) = take(parts)
        assert parts.finish(held, FILES, 1.0) is not None
    with pytest.raises(TooMuch) as full:
        put(jobs, "c", small)
    assert full.value.limit == "stored"
    assert 0 < full.value.retry_after <= 60
    client.zadd(keys.STORED + small.id, {keys.owned_id(small.id, "a"): 1.0})
    assert put(jobs, "c", small).status == "queued"


def test_what_an_owner_has_is_known_as_long_as_results_can_be_kept(client: redis.Redis) -> None:
    jobs = JobStore(client, result_ttl=LONGEST_TTL_S)
    put(jobs, "a")
    parts = PartStore(client, QUEUE, "worker-one", result_ttl=LONGEST_TTL_S)
    (held,) = take(parts)
    assert parts.finish(held, FILES, 1.0) is not None
    record = client.ttl(keys.RECORD + keys.owned_id(ANN.id, "a"))
    assert record > LONGEST_TTL_S - 60
    for prefix in (keys.JOBS, keys.STORED, keys.BYTES):
        assert client.ttl(prefix + ANN.id) > record, prefix


def test_without_a_measured_rate_a_full_queue_still_answers(client: redis.Redis) -> None:
    jobs = JobStore(client, result_ttl=60, max_waiting=1)
    put(jobs, "a")
    with pytest.raises(TooMuch) as full:
        put(jobs, "b")
    assert full.value.retry_after > 0


def test_an_id_stands_for_one_body_as_long_as_its_job_and_longer(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    job = put(jobs, "mine", n=2)
    found, new = jobs.submit(ask(2), INFO, owner=ANN, job_id="mine", digest="2")
    assert (found, new) == (job, False)
    with pytest.raises(OtherBody):
        put(jobs, "mine", n=3)
    assert put(jobs, "mine", BOB, n=3).owner == BOB.id
    assert jobs.cancel("mine", owner=ANN)
    assert see(jobs, job).status == "canceled"
    client.delete(keys.RECORD + keys.owned_id(ANN.id, "mine"))
    assert jobs.expired("mine", owner=ANN)
    with pytest.raises(Expired):
        put(jobs, "mine", n=2)
    with pytest.raises(OtherBody):
        put(jobs, "mine", n=3)
    week = 7 * 86400
    assert week < client.ttl(keys.GONE + keys.owned_id(ANN.id, "mine")) <= week + 60
    assert not jobs.expired("never", owner=ANN)


def post(jobs: JobStore, owner: Owner = ANN, n: int = 1) -> Job:
    """An order without an id of its own; all of them have the same body."""
    return jobs.submit(ask(n), INFO, owner=owner, digest=f"{n}")[0]


def test_orders_with_the_same_body_and_no_id_have_a_place_each(
    narrow: JobStore, parts: PartStore, clock: Clock
) -> None:
    for _ in range(10):
        post(narrow)
    waits = []
    for _ in range(5):
        with pytest.raises(TooMuch) as full:
            post(narrow)
        waits.append(full.value.retry_after)
    assert waits == sorted(waits)
    assert waits[-1] >= 4, "they are drawn one after the other"
    for held in take(parts, 5):
        assert parts.finish(held, FILES, 1.0) is not None
    clock.forward(waits[-1])
    for _ in range(5):
        assert post(narrow).status == "queued"
    with pytest.raises(TooMuch):
        post(narrow)


def test_bookings_stand_in_nobodys_way_once_nothing_waits(narrow: JobStore) -> None:
    first = put(narrow, "all", n=10)
    for number in range(20):
        with pytest.raises(TooMuch):
            put(narrow, f"late-{number}")
    assert narrow.cancel(first.id, owner=ANN)
    assert put(narrow, "new").status == "queued"


@pytest.mark.parametrize("owner", [ANN, replace(ANN, limits=Limits(waiting_images=50))])
def test_more_images_than_a_limit_are_let_in_when_nothing_else_waits(
    owner: Owner, client: redis.Redis, registry: Registry
) -> None:
    registry.publish(INFO, "worker-one", 4, Speed(2.0, 1.0))
    jobs = JobStore(client, result_ttl=60, max_waiting=80)
    assert put(jobs, "big", owner, n=100).status == "queued"
    with pytest.raises(TooMuch):
        put(jobs, "next", owner, n=100)


def test_refusals_cost_a_request_each_and_that_pays_for_coming_back(
    narrow: JobStore, clock: Clock
) -> None:
    quick = replace(ANN, limits=Limits(requests_per_minute=6))
    for number in range(6):
        put(narrow, f"{number}", quick)
    waits = []
    for number in range(3):
        with pytest.raises(TooMuch) as over:
            put(narrow, f"late-{number}", quick)
        assert over.value.limit == "requests"
        waits.append(over.value.retry_after)
    assert waits == pytest.approx([10, 20, 30], abs=1)
    clock.forward(waits[0])
    assert put(narrow, "late-0", quick).status == "queued"
    with pytest.raises(TooMuch) as booked:
        put(narrow, "late-1", quick)
    assert booked.value.limit == "booked"
    for number in range(30):
        with pytest.raises(TooMuch) as far:
            put(narrow, f"flood-{number}", quick)
    assert far.value.retry_after < 130, "it books no more than a minute's requests ahead"


def test_a_clock_that_is_set_back_takes_no_requests_from_anybody(
    narrow: JobStore, clock: Clock
) -> None:
    put(narrow, "before")
    clock.forward(-3600)
    assert put(narrow, "after").status == "queued"


def test_one_key_cannot_book_the_room_of_another(narrow: JobStore) -> None:
    put(narrow, "all", BOB, n=10)
    for number in range(50):
        with pytest.raises(TooMuch):
            put(narrow, f"flood-{number}", BOB)
    with pytest.raises(TooMuch) as ann:
        put(narrow, "mine", ANN, n=6)
    share = 2.0 * 0.8 / 4
    assert ann.value.retry_after < 10 / (2.0 * 0.8) + 6 / share + 1


def test_two_limits_are_told_as_one_wait(narrow: JobStore, clock: Clock) -> None:
    put(narrow, "bob", BOB, n=7)
    tight = replace(ANN, limits=Limits(waiting_images=3))
    put(narrow, "a", tight, n=3)
    with pytest.raises(TooMuch) as full:
        put(narrow, "b", tight, n=3)
    clock.forward(full.value.retry_after)
    assert narrow.cancel("bob", owner=BOB)
    assert narrow.cancel("a", owner=ANN)
    assert put(narrow, "b", tight, n=3).status == "queued"


def test_without_keys_there_is_no_limit_but_the_queues(client: redis.Redis) -> None:
    jobs = JobStore(client, result_ttl=60, max_waiting=10_000)
    for number in range(12):
        put(jobs, f"{number}", ANYBODY, n=500)
    poor = replace(ANYBODY, limits=Limits(1, 1, 1))
    assert put(jobs, "one-more", poor).status == "queued"


def test_books_expire_when_nobody_comes(narrow: JobStore, client: redis.Redis) -> None:
    put(narrow, "all", n=10)
    with pytest.raises(TooMuch) as full:
        put(narrow, "late")
    for book in client.scan_iter(f"{keys.BOOKINGS}*"):
        assert full.value.retry_after < client.ttl(book) < full.value.retry_after + 100


def test_dropped_results_count_no_more(jobs: JobStore, parts: PartStore) -> None:
    small = replace(ANN, limits=Limits(stored_bytes=RECORD_BYTES + OPEN_BYTES))
    put(jobs, "a", small)
    assert not jobs.drop("a", owner=ANN), "it has not ended"
    (held,) = take(parts)
    assert parts.finish(held, FILES, 1.0) is not None
    with pytest.raises(TooMuch):
        put(jobs, "b", small)
    assert jobs.drop("a", owner=ANN)
    assert jobs.drop("a", owner=ANN), "twice is fine"
    assert put(jobs, "b", small).status == "queued"
    assert ResultStore(jobs._redis).get(ANN.id, "a", 0, next(iter(FILES))) is None
    assert put(jobs, "a", small).status == "finished"


def test_a_place_without_an_id_is_nobodys_before_the_second_that_was_told(
    narrow: JobStore, parts: PartStore, clock: Clock
) -> None:
    for _ in range(10):
        post(narrow)
    with pytest.raises(TooMuch) as told:
        post(narrow)
    assert told.value.retry_after == int(told.value.retry_after), "HTTP tells whole seconds"
    for held in take(parts, 1):
        assert parts.finish(held, FILES, 1.0) is not None
    clock.forward(told.value.retry_after - 0.1)
    with pytest.raises(TooMuch):
        post(narrow)
    clock.forward(0.1)
    assert post(narrow).status == "queued"


def test_those_who_find_no_room_when_due_are_not_told_to_come_all_at_once(
    narrow: JobStore, clock: Clock
) -> None:
    put(narrow, "all", n=10)
    names = [f"late-{number}" for number in range(8)]
    waits = []
    for name in names:
        with pytest.raises(TooMuch) as told:
            put(narrow, name)
        waits.append(told.value.retry_after)
    clock.forward(waits[-1] + 5)  # and nothing was drawn
    put(narrow, names[0])  # one is let in beyond the limit
    again = []
    for name in names[1:]:
        with pytest.raises(TooMuch) as told:
            put(narrow, name)
        again.append(told.value.retry_after)
    assert again == sorted(again)
    assert again[-1] - again[0] >= 3, "at 1.6 images a second, seven take four seconds"


def test_a_wait_for_stored_bytes_delays_nobody_who_waits_for_the_queue(
    narrow: JobStore, parts: PartStore, client: redis.Redis, clock: Clock
) -> None:
    client.hset(keys.BYTES + ANN.id, mapping={"sum": 100, "old": 100})
    client.zadd(keys.STORED + ANN.id, {"old": clock.now + 50})
    full = replace(ANN, limits=Limits(stored_bytes=100))
    with pytest.raises(TooMuch) as stored:
        put(narrow, "a", full)
    assert (stored.value.limit, stored.value.retry_after) == ("stored", 50)
    put(narrow, "all", n=10)
    with pytest.raises(TooMuch) as queue:
        put(narrow, "b")
    assert queue.value.limit == "queue"
    assert queue.value.retry_after < 5
