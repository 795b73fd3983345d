from __future__ import annotations

import pytest

from worker.scheduler import Scheduler


def fill(scheduler: Scheduler, now: float = 0.0) -> list[str]:
    """Admit all that may be admitted, as the worker does; returns their names."""
    admitted = []
    while (name := scheduler.next()) is not None:
        slot = next(slot for slot in range(99) if slot not in scheduler._rows)
        scheduler.place(name, slot, now)
        admitted.append(name)
    return admitted


def test_parts_get_slots_in_the_order_they_came() -> None:
    scheduler = Scheduler(2, 60)
    for name in "abc":
        scheduler.add(name)
    assert fill(scheduler) == ["a", "b"]
    assert scheduler.drop("a") == 0
    assert fill(scheduler) == ["c"]
    assert scheduler.at(0) == "c"


def test_no_more_parts_are_wanted_than_there_are_free_slots() -> None:
    scheduler = Scheduler(3, 60)
    assert scheduler.room() == 3
    scheduler.add("a")
    assert scheduler.room() == 2
    fill(scheduler)
    assert scheduler.room() == 2
    assert (scheduler.held, scheduler.active) == (1, 1)


def test_a_part_joins_while_others_are_half_way() -> None:
    scheduler = Scheduler(2, 60)
    scheduler.add("a")
    fill(scheduler)
    scheduler.add("b")
    assert fill(scheduler) == ["b"]


def test_dropping_a_part_leaves_its_neighbours_where_they_are() -> None:
    scheduler = Scheduler(3, 60)
    for name in "abcd":
        scheduler.add(name)
    fill(scheduler)
    assert scheduler.drop("d") is None, "d had no slot yet"
    assert scheduler.drop("b") == 1
    assert scheduler.drop("b") is None
    assert (scheduler.at(0), scheduler.at(2)) == ("a", "c")


def test_a_suspect_part_is_drawn_alone() -> None:
    scheduler = Scheduler(4, 60)
    scheduler.add("a")
    scheduler.add("bomb", suspect=True)
    scheduler.add("c")
    assert scheduler.room() == 0
    assert fill(scheduler) == ["a"]
    scheduler.drop("a")
    assert fill(scheduler) == ["bomb"]
    assert scheduler.room() == 0
    scheduler.drop("bomb")
    assert fill(scheduler) == ["c"]


def test_parts_beside_a_suspect_are_spared() -> None:
    scheduler = Scheduler(4, 60)
    scheduler.add("a")
    fill(scheduler)
    assert scheduler.spare() == []
    for name in ("b", "bomb", "c", "other bomb"):
        scheduler.add(name, suspect="bomb" in name)
    assert scheduler.spare() == ["b", "c", "other bomb"]
    scheduler.drop("a")
    assert fill(scheduler) == ["bomb"]
    scheduler.add("d")
    assert scheduler.spare() == ["d"]


def test_time_counts_from_the_slot_not_from_the_queue() -> None:
    scheduler = Scheduler(1, 60)
    scheduler.add("a")
    scheduler.add("b")
    fill(scheduler, now=0.0)
    assert scheduler.overdue(60.0) == []
    assert scheduler.overdue(60.1) == ["a"]
    scheduler.drop("a")
    fill(scheduler, now=61.0)
    assert scheduler.overdue(100.0) == []


def test_a_slot_is_never_given_twice() -> None:
    scheduler = Scheduler(2, 60)
    scheduler.add("a")
    scheduler.add("b")
    scheduler.place("a", 0, 0.0)
    with pytest.raises(ValueError, match="slot 0"):
        scheduler.place("b", 0, 0.0)
