"""The parts that one worker holds, each with all that is known of it here, and who is next.

A part waits for a slot, is drawn in one, painted, stored, and then Redis is told of its end; it can
be lost at any time before. Parts get slots in the order they came. One that several workers have
died over is `suspect` and drawn alone: when it is the one that kills, its neighbours are not taken
along. Knows no tensors, no Redis and no RQ; times are seconds on a clock that only goes forward.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from model.request import RequestError
from store.parts import Cause, Claim, HeldPart
from store.results import Stored
from worker.metrics import Outcome

Stage = Literal["waiting", "drawing", "painting", "storing", "telling"]

SUSPECT_LOSSES = 2
"""A part that so many workers died over is drawn alone."""


@dataclass(eq=False)
class Task:
    """A part's life in this worker: `held` as the store gave it, and what has come of it.

    `slot` and `since` are its place in the engine and when it got it, `step` how many decode steps
    are made. `failure` is why there are no files. `decode_s` is the time from its slot to its
    files, `drawn_s` what of that went into tokens, `paint_s` and `png_s` into pixels and PNGs;
    `store_s` is what it took to store them, `total_s` the time since its job was submitted, once it
    is finished. Any thread may say that it is lost.
    """

    held: HeldPart
    stage: Stage = "waiting"
    slot: int = -1
    since: float = 0.0
    step: int = 0
    files: Stored = field(default_factory=dict)
    failure: str | None = None
    cause: Cause = "engine"
    drawn_s: float = 0.0
    paint_s: float = 0.0
    png_s: float = 0.0
    decode_s: float = 0.0
    store_s: float = 0.0
    total_s: float | None = None
    lost: Outcome | None = None

    @property
    def suspect(self) -> bool:
        """Whether it may be what its workers died of."""
        return self.held.losses >= SUSPECT_LOSSES

    def lose(self, how: Outcome) -> None:
        """It is ours no more. The first reason stays."""
        self.lost = self.lost or how

    def fail(self, error: Exception) -> None:
        """It cannot be drawn; only our own sentences are shown to the client in full."""
        match error:
            case RequestError():
                self.failure, self.cause = str(error), "request"
            case TimeoutError():
                self.failure, self.cause = str(error), "timeout"
            case _:
                self.failure = f"image could not be drawn: {type(error).__name__}"


class Ledger:
    """Tasks by stage, in the order they came there. Any thread may read; one changes."""

    def __init__(self, slots: int, time_limit: float) -> None:
        self._slots, self._time_limit = slots, time_limit
        self._stages: Mapping[Stage, dict[str, Task]] = {stage: {} for stage in get_args(Stage)}
        self._lock = threading.Lock()
        self.claims: Sequence[Claim] = ()
        """What was claimed and, as far as is known here, not started: an answer may be lost."""

    def at(self, *stages: Stage) -> list[Task]:
        """The tasks at these stages, or all: those that are further on first."""
        with self._lock:
            chosen = [stage for stage in self._stages if not stages or stage in stages]
            return [task for stage in reversed(chosen) for task in self._stages[stage].values()]

    def count(self, *stages: Stage) -> int:
        """How many there are at these stages."""
        return sum(len(self._stages[stage]) for stage in stages)

    def add(self, held: HeldPart) -> Task:
        """Hold one more part; it waits for a slot."""
        with self._lock:
            return self._stages["waiting"].setdefault(held.execution, Task(held))

    def move(self, task: Task, stage: Stage) -> None:
        """It has come to this stage."""
        with self._lock:
            del self._stages[task.stage][task.held.execution]
            self._stages[stage][task.held.execution] = task
            task.stage = stage

    def remove(self, task: Task) -> None:
        """Hold it no more."""
        with self._lock:
            del self._stages[task.stage][task.held.execution]

    def room(self) -> int:
        """How many more parts are wanted: none while one is drawn alone, and no more of them than
        there are slots, before and after the decode."""
        if any(task.suspect for task in self.at("waiting", "drawing")):
            return 0
        before, after = self.count("waiting", "drawing"), self.count("painting", "storing")
        return self._slots - max(before, after)

    def next(self) -> Task | None:
        """The one to admit now, None when nobody may."""
        drawing = self._stages["drawing"]
        if not self._stages["waiting"] or len(drawing) >= self._slots or self._alone():
            return None
        first = next(iter(self._stages["waiting"].values()))
        return None if first.suspect and drawing else first

    def place(self, task: Task, slot: int, now: float) -> None:
        """The one that `next` named got this slot at this time."""
        if task is not self.next() or slot in self.placed():
            raise ValueError(f"{task.held.part} cannot have slot {slot} now")
        task.slot, task.since = slot, now
        self.move(task, "drawing")

    def placed(self) -> dict[int, Task]:
        """Those that are drawn, by slot."""
        return {task.slot: task for task in self.at("drawing")}

    def overdue(self, now: float) -> list[Task]:
        """Those that have been in their slots for longer than the time limit."""
        return [task for task in self.at("drawing") if now - task.since > self._time_limit]

    def spare(self) -> list[Task]:
        """Those that wait beside a suspect: they would only wait, and be at risk. The first suspect
        stays."""
        waiting = self.at("waiting")
        suspects = [task for task in waiting if task.suspect]
        if not suspects and not self._alone():
            return []
        kept = None if self._alone() else suspects[0]
        return [task for task in waiting if task is not kept]

    def _alone(self) -> bool:
        return any(task.suspect for task in self._stages["drawing"].values())
