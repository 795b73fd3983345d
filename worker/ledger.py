"""The parts that one worker holds, their stages and data, and which part gets the next slot.

A part waits for a slot, is drawn, rendered and stored; then its end is written to Redis. The worker
can lose it at any time before. Parts get slots in order of arrival. A large image takes several
slots, one after another and at once, before parts that came later. A part is `suspect` after
several workers died while drawing it. A suspect is drawn alone: if it crashes the worker again, no
other part is lost. Knows no tensors, no Redis and no RQ. Times are seconds on a monotonic clock.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from model.request import RequestError
from store.parts import Cause, Claim, HeldPart
from store.results import Stored
from worker.metrics import Outcome

if TYPE_CHECKING:
    from worker.picture import Picture

TaskStage = Literal["waiting", "drawing", "rendering", "storing", "ending"]

SUSPECT_LOSSES = 2
"""After so many workers have died while drawing a part, it is drawn alone."""


@dataclass(eq=False)
class Task:
    """A part in this worker. `held` is the part as the store returned it.

    `picture` is what is drawn of it, `slots` its slots in the engine, `ready` how many more it
    could use now, `since` when it got the first, `step` its number of decode steps so far, `cost`
    the patches that it counts as. `failure` is the reason why there are no files. Times in seconds:
    `decode_s` from slot to files; of that, `drawn_s` for tokens, `render_s` for pixels and `png_s`
    for PNGs;
    `store_s` for storing the files; `total_s` from the job's submission to the end, once finished.
    Any thread may call `lose`.
    """

    held: HeldPart
    stage: TaskStage = "waiting"
    picture: Picture | None = None
    slots: set[int] = field(default_factory=set)
    ready: int = 1
    cost: int = 1
    since: float = 0.0
    step: int = 0
    files: Stored = field(default_factory=dict)
    failure: str | None = None
    cause: Cause = "engine"
    drawn_s: float = 0.0
    render_s: float = 0.0
    png_s: float = 0.0
    decode_s: float = 0.0
    store_s: float = 0.0
    total_s: float | None = None
    lost: Outcome | None = None

    @property
    def suspect(self) -> bool:
        """Whether it may have crashed its workers: at least SUSPECT_LOSSES of them died."""
        return self.held.losses >= SUSPECT_LOSSES

    def lose(self, how: Outcome) -> None:
        """Record that this worker no longer owns the part. Keeps the first reason."""
        self.lost = self.lost or how

    def fail(self, error: Exception) -> None:
        """Record why the part cannot be drawn. Clients see the full text of our own errors, and
        only the type of others."""
        match error:
            case RequestError():
                self.failure, self.cause = str(error), "request"
            case TimeoutError():
                self.failure, self.cause = str(error), "timeout"
            case _:
                self.failure = f"image could not be drawn: {type(error).__name__}"


class Ledger:
    """Tasks by stage, in the order in which they entered it. Any thread may read, one may write."""

    def __init__(self, slots: int, time_limit: float) -> None:
        self._slots, self._time_limit = slots, time_limit
        self._stages: Mapping[TaskStage, dict[str, Task]] = {s: {} for s in get_args(TaskStage)}
        self._lock = threading.Lock()
        self.claims: Sequence[Claim] = ()
        """Claims not known to be started. One may have started if Redis's answer was lost."""

    def at(self, *stages: TaskStage) -> list[Task]:
        """The tasks at these stages, or at all stages; later stages first."""
        with self._lock:
            chosen = [stage for stage in self._stages if not stages or stage in stages]
            return [task for stage in reversed(chosen) for task in self._stages[stage].values()]

    def count(self, *stages: TaskStage) -> int:
        """The number of tasks at these stages."""
        return sum(len(self._stages[stage]) for stage in stages)

    def add(self, held: HeldPart) -> Task:
        """Add a part, which then waits for a slot."""
        with self._lock:
            return self._stages["waiting"].setdefault(held.execution, Task(held))

    def move(self, task: Task, stage: TaskStage) -> None:
        """Move a task to this stage."""
        with self._lock:
            del self._stages[task.stage][task.held.execution]
            self._stages[stage][task.held.execution] = task
            task.stage = stage

    def remove(self, task: Task) -> None:
        """Remove a task."""
        with self._lock:
            del self._stages[task.stage][task.held.execution]

    def room(self) -> int:
        """The number of parts to take now. 0 while a suspect waits or is drawn. Otherwise parts
        before and in the decode may use as many slots as there are, and as many parts may be after
        it."""
        begun = self.at("waiting", "drawing")
        if any(task.suspect for task in begun):
            return 0
        before = sum(max(1, len(task.slots) + task.ready) for task in begun)
        return max(0, self._slots - max(before, self.count("rendering", "storing")))

    def next(self) -> Task | None:
        """The task to give a slot now; None when no task may get one."""
        drawing = self._stages["drawing"].values()
        if self.used() >= self._slots:
            return None
        if (going_on := next((task for task in drawing if task.ready), None)) is not None:
            return going_on
        if not self._stages["waiting"] or self._alone():
            return None
        first = next(iter(self._stages["waiting"].values()))
        return None if first.suspect and drawing else first

    def place(self, task: Task, slot: int, now: float, ready: int = 0) -> None:
        """Record that the task from `next` got this slot at this time, and how many more it could
        use now. ValueError for another task or a used slot."""
        if task is not self.next() or slot in self.placed():
            raise ValueError(f"{task.held.part} cannot have slot {slot} now")
        with self._lock:
            task.slots.add(slot)
            task.ready = ready
        if task.stage == "waiting":
            task.since = now
            self.move(task, "drawing")

    def release(self, task: Task, slot: int, ready: int) -> None:
        """Record that a task has given back a slot, and how many more it could use now."""
        with self._lock:
            task.slots.remove(slot)
            task.ready = ready

    def placed(self) -> dict[int, Task]:
        """The tasks that are being drawn, by slot."""
        return {slot: task for task in self.at("drawing") for slot in task.slots}

    def used(self) -> int:
        """How many slots are in use."""
        return sum(len(task.slots) for task in self._stages["drawing"].values())

    def overdue(self, now: float) -> list[Task]:
        """The tasks that have been in their slots for longer than the time limit, which counts for
        each patch that an image costs."""
        limit = self._time_limit
        return [task for task in self.at("drawing") if now - task.since > limit * task.cost]

    def spare(self) -> list[Task]:
        """The tasks to put back because a suspect is drawn alone: they would wait and be at risk.
        The first waiting suspect stays, unless one is already drawn."""
        waiting = self.at("waiting")
        suspects = [task for task in waiting if task.suspect]
        if not suspects and not self._alone():
            return []
        kept = None if self._alone() else suspects[0]
        return [task for task in waiting if task is not kept]

    def _alone(self) -> bool:
        return any(task.suspect for task in self._stages["drawing"].values())
