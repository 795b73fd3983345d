"""Who gets a slot next, and where each part is."""

from __future__ import annotations

import pytest

from model.request import ImageRequest, SamplingSettings
from store.parts import HeldPart
from worker.ledger import SUSPECT_LOSSES, Ledger, Task

IMAGE = ImageRequest("histology", 1, SamplingSettings())


def add(ledger: Ledger, name: str, losses: int = 0) -> Task:
    return ledger.add(HeldPart(name, 0, name, IMAGE, losses, 0.0, "bulk", "", ""))


def names(tasks: list[Task]) -> list[str]:
    return [task.held.job for task in tasks]


def fill(ledger: Ledger, now: float = 0.0) -> list[str]:
    """Admit all that may be admitted, as the worker does; returns their names."""
    admitted = []
    while (task := ledger.next()) is not None:
        slot = next(slot for slot in range(99) if slot not in ledger.placed())
        ledger.place(task, slot, now)
        admitted.append(task)
    return names(admitted)


def test_parts_get_slots_in_the_order_they_came() -> None:
    ledger = Ledger(2, 60)
    a, *_ = [add(ledger, name) for name in "abc"]
    assert fill(ledger) == ["a", "b"]
    ledger.move(a, "rendering")
    assert fill(ledger) == ["c"]
    assert names([ledger.placed()[0], ledger.placed()[1]]) == ["c", "b"]


def test_no_more_parts_are_wanted_than_there_are_free_slots() -> None:
    ledger = Ledger(3, 60)
    assert ledger.room() == 3
    a = add(ledger, "a")
    assert ledger.room() == 2
    fill(ledger)
    assert ledger.room() == 2
    assert (ledger.count("waiting", "drawing"), ledger.count("drawing")) == (1, 1)
    ledger.move(a, "ending")
    assert ledger.room() == 3


def test_no_more_parts_are_wanted_than_can_be_stored() -> None:
    ledger = Ledger(3, 60)
    done = [add(ledger, name) for name in "abc"]
    fill(ledger)
    for task, stage in zip(done, ("rendering", "storing", "storing"), strict=True):
        ledger.move(task, stage)  # type: ignore[arg-type]
    assert ledger.room() == 0
    ledger.move(done[1], "ending")
    assert ledger.room() == 1


def test_a_part_joins_while_others_are_half_way() -> None:
    ledger = Ledger(2, 60)
    add(ledger, "a")
    fill(ledger)
    add(ledger, "b")
    assert fill(ledger) == ["b"]


def test_removing_a_part_leaves_its_neighbours_where_they_are() -> None:
    ledger = Ledger(3, 60)
    tasks = {name: add(ledger, name) for name in "abcd"}
    fill(ledger)
    ledger.remove(tasks["d"])
    ledger.remove(tasks["b"])
    assert {slot: task.held.job for slot, task in ledger.placed().items()} == {0: "a", 2: "c"}


def test_those_that_are_further_on_stand_first() -> None:
    ledger = Ledger(2, 60)
    tasks = [add(ledger, name) for name in "abcd"]
    fill(ledger)
    ledger.move(tasks[0], "rendering")
    ledger.move(tasks[0], "ending")
    ledger.move(tasks[1], "rendering")
    assert names(ledger.at()) == ["a", "b", "c", "d"]
    assert names(ledger.at("waiting", "rendering")) == ["b", "c", "d"]


def test_a_suspect_part_is_drawn_alone() -> None:
    ledger = Ledger(4, 60)
    a, bomb, _ = add(ledger, "a"), add(ledger, "bomb", SUSPECT_LOSSES), add(ledger, "c")
    assert ledger.room() == 0
    assert fill(ledger) == ["a"]
    ledger.move(a, "rendering")
    assert fill(ledger) == ["bomb"]
    assert ledger.room() == 0
    ledger.move(bomb, "rendering")
    assert fill(ledger) == ["c"]


def test_parts_beside_a_suspect_are_spared() -> None:
    ledger = Ledger(4, 60)
    a = add(ledger, "a")
    fill(ledger)
    assert ledger.spare() == []
    for name in ("b", "bomb", "c", "other bomb"):
        add(ledger, name, SUSPECT_LOSSES if "bomb" in name else SUSPECT_LOSSES - 1)
    assert names(ledger.spare()) == ["b", "c", "other bomb"]
    for task in ledger.spare():
        ledger.remove(task)
    ledger.remove(a)
    assert fill(ledger) == ["bomb"]
    add(ledger, "d")
    assert names(ledger.spare()) == ["d"]


def test_time_counts_from_the_slot_not_from_the_queue() -> None:
    ledger = Ledger(1, 60)
    a, _ = add(ledger, "a"), add(ledger, "b")
    fill(ledger, now=0.0)
    assert ledger.overdue(60.0) == []
    assert ledger.overdue(60.1) == [a]
    ledger.remove(a)
    fill(ledger, now=61.0)
    assert ledger.overdue(100.0) == []


def test_a_slot_is_never_given_twice() -> None:
    ledger = Ledger(2, 60)
    a, b = add(ledger, "a"), add(ledger, "b")
    ledger.place(a, 0, 0.0)
    with pytest.raises(ValueError, match="slot 0"):
        ledger.place(b, 0, 0.0)


def test_the_first_word_of_how_a_part_was_lost_stays() -> None:
    task = add(Ledger(1, 60), "a")
    task.lose("canceled")
    task.lose("lost")
    assert task.lost == "canceled"


def test_a_large_image_gets_slots_before_parts_that_came_later() -> None:
    ledger = Ledger(4, 60)
    large, late = add(ledger, "large"), add(ledger, "late")
    ledger.place(large, 0, 0.0, ready=2)
    assert ledger.next() is large
    ledger.place(large, 1, 1.0, ready=1)
    ledger.place(large, 2, 2.0, ready=0)
    assert ledger.next() is late
    ledger.place(late, 3, 3.0)
    ledger.release(large, 1, 2)
    assert (ledger.used(), ledger.next()) == (3, large)
    assert names([ledger.placed()[slot] for slot in (0, 2, 3)]) == ["large", "large", "late"]


def test_what_a_large_image_could_use_is_not_taken_from_the_queue() -> None:
    ledger = Ledger(4, 60)
    large = add(ledger, "large")
    assert ledger.room() == 3
    ledger.place(large, 0, 0.0, ready=2)
    assert ledger.room() == 1
    ledger.release(large, 0, 9)
    assert ledger.room() == 0
    ledger.place(large, 0, 0.0, ready=0)
    assert ledger.room() == 3


def test_the_time_limit_of_a_large_image_is_that_of_what_it_costs() -> None:
    ledger = Ledger(4, 60)
    large = add(ledger, "large")
    large.cost = 10
    ledger.place(large, 0, 0.0)
    assert ledger.overdue(600.0) == []
    assert ledger.overdue(600.1) == [large]
