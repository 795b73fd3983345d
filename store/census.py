"""What operators ask about everybody's work: who waits, how long, and how jobs ended.

The same whichever process asks, since all of it is read from Redis. Knows no metrics format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import redis

from store import keys, scripts
from store.job import Priority
from store.registry import Registry

PRIORITIES: tuple[Priority, ...] = ("interactive", "bulk")


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
    """All of it at one moment; `started` images and `slots` of living workers by model."""

    lines: tuple[Line, ...]
    started: Mapping[str, int]
    slots: Mapping[str, int]
    ended: tuple[Ended, ...]


class CensusTaker:
    """Counts. Thread-safe, as its client is."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._registry = Registry(client)
        self._census = client.register_script(scripts.script("census"))

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
        ends = self._redis.hgetall(keys.ENDS).items()
        ended = tuple(_ended(json.loads(kind), int(count)) for kind, count in ends)
        return Census(tuple(lines.values()), started, slots, ended)

    def queues(self) -> list[Queue]:
        """Each queue now, those too that no worker serves any more; RedisError."""
        models = self._registry.every()
        counts = self._census(args=list(models))
        found = []
        for (queue, (name, slots)), (drawn, *waiting) in zip(models.items(), counts, strict=True):
            lines = tuple(
                Line(name, priority, images, float(oldest))
                for priority, (images, oldest) in zip(PRIORITIES, waiting, strict=True)
            )
            found.append(Queue(queue, name, slots, drawn, lines))
        return found


def _ended(kind: tuple[str, str, str, str, str], jobs: int) -> Ended:
    return Ended(*kind, jobs)
