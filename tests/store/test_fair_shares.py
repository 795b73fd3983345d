"""Who is drawn next: shares by weight, in images, over all workers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import redis

from store import keys
from store.access import Limits, Owner
from store.jobs import JobStore
from store.parts import PartStore
from tests.store.conftest import ANN, BOB, FILES, INFO, QUEUE, ask, part_of, see, submit, take


@pytest.fixture(autouse=True)
def weights(client: redis.Redis) -> None:
    client.hset(keys.WEIGHTS, mapping={ANN.id: ANN.weight, BOB.id: BOB.weight})


def drawn(*stores: PartStore, images: int) -> list[str]:
    """The owners of the next images, drawn by workers that take turns."""
    found = []
    for turn in range(images):
        parts = stores[turn % len(stores)]
        (held,) = take(parts)
        assert parts.finish(held, FILES, 1.0) is not None
        found.append(keys.split_owned_id(held.part)[0])
    return found


def test_images_are_shared_by_weight_over_two_workers_whatever_the_size_of_requests(
    jobs: JobStore, parts: PartStore, rival: PartStore
) -> None:
    for _ in range(40):
        submit(jobs, ask(n=5), ANN)
    for _ in range(2):
        submit(jobs, ask(n=100), BOB)
    share = Counter(drawn(parts, rival, images=200))
    assert share[BOB.id] == pytest.approx(150, abs=2)
    first = Counter(drawn(parts, rival, images=8))
    assert first[ANN.id] >= 1, "the lighter key waits for whole requests of the heavier one"


def test_who_comes_late_gets_its_share_at_once_and_no_more(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    late = Owner("cccccccc", "late", 4.0, Limits())
    client.hset(keys.WEIGHTS, late.id, late.weight)
    submit(jobs, ask(n=100), ANN)
    submit(jobs, ask(n=100), BOB)
    drawn(parts, images=60)
    submit(jobs, ask(n=100), late)
    share = Counter(drawn(parts, images=40))
    assert share[late.id] == pytest.approx(20, abs=2)
    assert share[BOB.id] == pytest.approx(15, abs=2)


def test_an_idle_key_saves_up_no_turns(jobs: JobStore, parts: PartStore) -> None:
    submit(jobs, ask(n=4), BOB)
    submit(jobs, ask(n=60), ANN)
    drawn(parts, images=50)
    submit(jobs, ask(n=60), BOB)
    assert drawn(parts, images=8).count(ANN.id) == pytest.approx(2, abs=1)


def test_a_key_that_comes_and_goes_gets_no_more_than_its_share(
    jobs: JobStore, parts: PartStore
) -> None:
    submit(jobs, ask(n=100), BOB)
    found = []
    for _ in range(40):
        submit(jobs, ask(), ANN)
        found += drawn(parts, images=2)
    assert found.count(BOB.id) >= 40


def test_a_key_that_asks_for_one_image_at_a_time_gets_no_more_than_its_share(
    jobs: JobStore, parts: PartStore
) -> None:
    submit(jobs, ask(n=100), BOB)
    found = [ANN.id]
    for _ in range(40):
        if found[-1] == ANN.id:  # its image is drawn: it asks for the next at once
            submit(jobs, ask(), ANN)
        found += drawn(parts, images=1)
    share = Counter(found[1:])
    assert share[ANN.id] == pytest.approx(10, abs=1), "it takes more than its share"


def test_bulk_fills_what_interactive_leaves_and_always_moves(
    jobs: JobStore, parts: PartStore
) -> None:
    bulk = submit(jobs, ask(n=100), ANN, "bulk")
    submit(jobs, ask(n=100), BOB)
    first = drawn(parts, images=80)
    assert first.count(ANN.id) == 10
    assert first[0] == BOB.id
    drawn(parts, images=36)
    assert set(drawn(parts, images=20)) == {ANN.id}, "nothing else waits"
    assert see(jobs, bulk).status == "started"


def test_a_part_that_is_handed_back_is_next_and_costs_its_owner_no_turn(
    jobs: JobStore, parts: PartStore, rival: PartStore
) -> None:
    job = submit(jobs, ask(n=30), ANN)
    submit(jobs, ask(n=30), BOB)
    for _ in range(10):
        (held,) = take(parts)
        parts.put_back(held)
    share = Counter(drawn(parts, rival, images=40))
    assert share[ANN.id] == pytest.approx(10, abs=2)
    again = take(parts)
    parts.put_back(again[0])
    assert take(rival)[0].part == again[0].part
    assert see(jobs, job).status == "started"


@pytest.mark.parametrize("n", [1, 30])
def test_an_image_that_is_handed_back_stays_first_however_often(
    n: int, jobs: JobStore, parts: PartStore
) -> None:
    job = submit(jobs, ask(n), ANN)
    submit(jobs, ask(n=30), BOB)
    for times in range(10):
        (held,) = take(parts)
        assert held.part == part_of(job), f"handed back {times} times, it lost its turn"
        parts.put_back(held)


def test_the_position_counts_the_images_that_really_come_before(
    jobs: JobStore, parts: PartStore
) -> None:
    submit(jobs, ask(n=30), ANN)
    drawn(parts, images=3)
    submit(jobs, ask(n=30), BOB)
    mine = submit(jobs, ask(n=2), ANN)
    seen = see(jobs, mine)
    assert seen.ahead is not None
    found = []
    while part_of(mine) not in found:
        (held,) = take(parts)
        found.append(held.part)
    assert len(found) - 1 == pytest.approx(seen.ahead, abs=4)
    assert see(jobs, mine).parts[0].status == "started"


def test_the_position_of_bulk_counts_the_interactive_images_that_overtake_it(
    jobs: JobStore, parts: PartStore
) -> None:
    bulk = submit(jobs, ask(n=4), ANN, "bulk")
    assert see(jobs, bulk).ahead == 0
    submit(jobs, ask(n=5), BOB)
    assert see(jobs, bulk).ahead == 5
    submit(jobs, ask(n=60), BOB)
    assert see(jobs, bulk).ahead == 7, "every eighth image is bulk's"


@pytest.mark.parametrize("before", range(9))
def test_an_interactive_image_is_next_however_many_of_bulk_were_drawn_before(
    before: int, jobs: JobStore, parts: PartStore
) -> None:
    submit(jobs, ask(20), ANN, priority="bulk")
    for _ in range(before):
        parts.claim(1)
    urgent = submit(jobs, ask(1), BOB)
    [claim] = parts.claim(1)
    assert claim.part == part_of(urgent)


def test_an_idle_queue_is_asked_without_writing_anything(
    parts: PartStore, client: redis.Redis
) -> None:
    for _ in range(10):
        assert parts.claim(4) == []
    assert set(client.keys("*")) <= {keys.WEIGHTS.encode()}


def test_who_comes_after_a_quiet_day_starts_where_the_others_are(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    submit(jobs, ask(40), ANN)
    for _ in range(20):
        parts.claim(1)
    client.delete(keys.CLOCK + QUEUE)  # as it is forgotten after a day without a claim
    submit(jobs, ask(20), BOB)
    owners = [keys.split_owned_id(parts.claim(1)[0].part)[0] for _ in range(8)]
    assert ANN.id in owners


def test_an_owner_whose_jobs_are_canceled_stands_in_line_no_more(
    jobs: JobStore, client: redis.Redis
) -> None:
    job = submit(jobs, ask(5), ANN)
    other = submit(jobs, ask(5), ANN)
    assert jobs.cancel(job.id, owner=ANN)
    fair = f"{keys.FAIR}{QUEUE}.interactive"
    assert client.zcard(fair) == 1
    assert jobs.cancel(other.id, owner=ANN)
    assert client.zcard(fair) == 0
    assert client.smembers(keys.QUEUES) == {f"{keys.QUEUE}{QUEUE}".encode()}


def test_a_large_image_counts_as_the_patches_that_it_costs(
    jobs: JobStore, parts: PartStore, client: redis.Redis
) -> None:
    """For its owner's share, whether it waits, was claimed and put back, or canceled."""
    size = (128, 128)
    cost = INFO.cost(size)
    assert cost > 2
    large = submit(jobs, replace(ask(n=20), size=size), ANN)
    submit(jobs, ask(n=100), BOB)
    extra = keys.EXTRA + QUEUE
    assert client.hgetall(extra) == {b"interactive:" + ANN.id.encode(): b"%d" % (20 * (cost - 1))}
    share = Counter(drawn(parts, images=3 * cost + 1))
    assert share == {ANN.id: 1, BOB.id: 3 * cost}, "its owner waits for as long as the others draw"
    while (held := take(parts)[0]).job != keys.owned_id(ANN.id, large.id):
        assert parts.finish(held, FILES, 1.0) is not None
    before = client.hget(extra, f"interactive:{ANN.id}")
    assert parts.put_back(held) == "queued"
    assert int(client.hget(extra, f"interactive:{ANN.id}") or 0) == int(before or 0) + cost - 1
    assert drawn(parts, images=1) == [ANN.id], "it has its turn back"
    assert jobs.cancel(large.id, owner=ANN)
    assert client.exists(extra) == 0
