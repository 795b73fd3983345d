"""What operators ask about everybody's work: who waits, how long, and how jobs ended.

The same whichever process asks, since all of it is read from Redis. Knows no metrics format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import redis

from model.contract import PRIORITIES, Priority
from store import keys
from store.parts import Cause
from store.registry import Registry
from store.scripts import UNREADABLE, Script, unreadable

CAUSES = (*get_args(Cause), "no worker", "numerics", "refused")
"""Why jobs fail: what workers say, and what the scripts do."""
ENDINGS = (("finished", ""), ("canceled", ""), *(("failed", cause) for cause in CAUSES))
"""Every way in which a job ends, with its cause."""

Kind = tuple[str, str, str, str, str]
"""Model, label, priority, status and cause of jobs that ended."""


@dataclass(frozen=True)
class Line:
    """Images of one model and priority that wait, and the seconds since the oldest was asked for;
    0 where none waits."""

    model: str
    priority: Priority
    images: int
    oldest_s: float


@dataclass(frozen=True)
class Queue:
    """What waits and is drawn in one queue, that of a version and numerics of `model`; `slots` of
    living workers."""

    name: str
    model: str
    slots: int
    started: int
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Ended:
    """How many jobs ended in one way; `cause` says in a word or two why jobs failed."""

    model: str
    label: str
    priority: str
    status: str
    cause: str
    jobs: int


@dataclass(frozen=True)
class Census:
    """All of it at one moment; `started` images and `slots` of living workers by model.

    `ended` has every way in which jobs of the models that are served can end, 0 where none has, and
    beyond these what ever happened.
    """

    lines: tuple[Line, ...]
    started: Mapping[str, int]
    slots: Mapping[str, int]
    ended: tuple[Ended, ...]


class CensusTaker:
    """Counts. Thread-safe, as its client is."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._registry = Registry(client)
        self._census = Script(client, "census")

    def take(self) -> Census:
        """Count now; RedisError when Redis is away. Versions of one model count together."""
        lines: dict[tuple[str, Priority], Line] = {}
        started: dict[str, int] = {}
        slots: dict[str, int] = {}
        for queue in self.queues():
            name = queue.model
            started[name] = started.get(name, 0) + queue.started
            slots[name] = slots.get(name, 0) + queue.slots
            for line in queue.lines:
                held = lines.get((name, line.priority), Line(name, line.priority, 0, 0.0))
                images, age = held.images + line.images, max(held.oldest_s, line.oldest_s)
                lines[name, line.priority] = Line(name, line.priority, images, age)
        return Census(tuple(lines.values()), started, slots, self._ended())

    def queues(self) -> list[Queue]:
        """Each queue now, those too that no worker serves any more; RedisError."""
        models = self._registry.every()
        counts = self._census(*models)
        found = []
        for (queue, (name, slots)), (drawn, *waiting) in zip(models.items(), counts, strict=True):
            lines = tuple(
                Line(name, priority, images, float(oldest))
                for priority, (images, oldest) in zip(PRIORITIES, waiting, strict=True)
            )
            found.append(Queue(queue, name, slots, drawn, lines))
        return found

    def _ended(self) -> tuple[Ended, ...]:
        """From 0 on, since a rate sees nothing of a series that begins with its first event. Labels
        are those of models served now or lately, hence few, whatever was asked for."""
        counts: dict[Kind, int] = {
            (known.info.name, label, priority, *ending): 0
            for known in self._registry.models()
            for label in known.info.label_names()
            for priority in PRIORITIES
            for ending in ENDINGS
        }
        for text, count in self._redis.hgetall(keys.ENDS).items():
            try:
                counts[_kind(text)] = int(count)
            except UNREADABLE as error:
                unreadable(f"count {text!r}", error)
        return tuple(Ended(*kind, jobs) for kind, jobs in counts.items())


def _kind(text: bytes | str) -> Kind:
    """What a field of `keys.ENDS` says."""
    model, label, priority, status, cause = json.loads(text)
    if not all(isinstance(each, str) for each in (model, label, priority, status, cause)):
        raise TypeError("a word is missing")
    return model, label, priority, status, cause
