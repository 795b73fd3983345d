"""Who gets a slot next, and who has had one for too long. Plain Python.

Knows no tensors, no Redis and no RQ: parts are names, slots are numbers, times are seconds on any
clock that only goes forward.

Parts are admitted in the order they came. A part that has cost two workers their lives is
`suspect` and drawn alone: when it is the one that kills, its neighbours are not taken along.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class _Row:
    name: str
    suspect: bool
    since: float


class Scheduler:
    """The parts that one worker holds: waiting for a slot, or in one."""

    def __init__(self, slots: int, time_limit: float) -> None:
        self._slots = slots
        self._time_limit = time_limit
        self._waiting: deque[tuple[str, bool]] = deque()
        self._rows: dict[int, _Row] = {}

    @property
    def held(self) -> int:
        """Parts held, waiting ones included."""
        return len(self._waiting) + len(self._rows)

    @property
    def active(self) -> int:
        """Parts in a slot."""
        return len(self._rows)

    def room(self) -> int:
        """How many more parts are wanted; none while one is drawn alone."""
        if any(suspect for _, suspect in self._waiting) or self._alone():
            return 0
        return self._slots - self.held

    def add(self, name: str, *, suspect: bool = False) -> None:
        """Hold one more part; it waits for a slot."""
        self._waiting.append((name, suspect))

    def next(self) -> str | None:
        """The part to admit now, None when nobody may."""
        if not self._waiting or len(self._rows) >= self._slots or self._alone():
            return None
        name, suspect = self._waiting[0]
        return None if suspect and self._rows else name

    def spare(self) -> list[str]:
        """Hold these waiting parts no more, in this order: beside a suspect they would only wait,
        and be at risk. The first suspect stays.
        """
        names = [name for name, suspect in self._waiting if suspect]
        if not names and not self._alone():
            return []
        kept = None if self._alone() else names[0]
        spared = [name for name, _ in self._waiting if name != kept]
        self._waiting = deque(item for item in self._waiting if item[0] == kept)
        return spared

    def place(self, name: str, slot: int, now: float) -> None:
        """The part that `next` named got this slot at this time."""
        first, suspect = self._waiting.popleft()
        if first != name or slot in self._rows:
            raise ValueError(f"{name} cannot have slot {slot} now")
        self._rows[slot] = _Row(name, suspect, now)

    def placed(self) -> list[tuple[int, str]]:
        """The slots that are taken, each with its part."""
        return [(slot, row.name) for slot, row in self._rows.items()]

    def at(self, slot: int) -> str:
        """The part in a slot; KeyError when it is empty."""
        return self._rows[slot].name

    def since(self, slot: int) -> float:
        """When the part in a slot got it; KeyError when it is empty."""
        return self._rows[slot].since

    def drop(self, name: str) -> int | None:
        """Hold a part no more; returns the slot that it leaves, None when it had none."""
        self._waiting = deque(item for item in self._waiting if item[0] != name)
        for slot, row in self._rows.items():
            if row.name == name:
                del self._rows[slot]
                return slot
        return None

    def overdue(self, now: float) -> list[str]:
        """The parts that have been in their slots for longer than the time limit."""
        return [row.name for row in self._rows.values() if now - row.since > self._time_limit]

    def _alone(self) -> bool:
        return any(row.suspect for row in self._rows.values())
