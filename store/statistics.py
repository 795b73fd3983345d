"""What operators ask about everybody's work: who waits, how long, and how jobs ended.

The same whichever process asks, since all of it is read from Redis. Knows no metrics format.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import redis

from model.contract import PRIORITIES, Priority
from store import keys
from store.access import ANYBODY, KeyStore
from store.parts import Cause
from store.registry import Registry
from store.scripts import UNREADABLE, Script, unreadable

CAUSES = (*get_args(Cause), "no worker", "numerics", "refused")
"""Why jobs fail: what workers say, and what the scripts do."""
ENDINGS = (("finished", ""), ("canceled", ""), *(("failed", cause) for cause in CAUSES))
"""Every way in which a job ends, with its cause."""

REVOKED = "(revoked)"
"""In place of a name: images that wait of keys that there are no more. No key has parentheses."""

Kind = tuple[str, str, str, str, str]
"""Model, label, priority, status and cause of jobs that ended."""


@dataclass(frozen=True)
class Line:
    """Images of one model and priority that wait, how many of each owner, and the seconds since the
    oldest was asked for; 0 where none waits."""

    model: str
    priority: Priority
    images: int
    oldest_s: float
    owners: Mapping[str, int]


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
class Use:
    """What the key of this name takes: images that wait by priority, and bytes of its jobs and
    results, as its limit counts them."""

    key: str
    waiting: Mapping[Priority, int]
    stored_bytes: int


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
class Statistics:
    """All of it at one moment; `started` images and `slots` of living workers by model.

    `ended` has every way in which jobs of the models that are served can end, 0 where none has, and
    beyond these what ever happened. `used` has every key, or anybody where there is none.
    """

    lines: tuple[Line, ...]
    started: Mapping[str, int]
    slots: Mapping[str, int]
    ended: tuple[Ended, ...]
    used: tuple[Use, ...]


class StatisticsReader:
    """Reads statistics. Thread-safe, as its client is."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._registry = Registry(client)
        self._keys = KeyStore(client)
        self._statistics = Script(client, "statistics")

    def read(self) -> Statistics:
        """Count now; RedisError when Redis is away. Versions of one model count together."""
        lines: dict[tuple[str, Priority], Line] = {}
        started: dict[str, int] = {}
        slots: dict[str, int] = {}
        for queue in self.queues():
            name = queue.model
            started[name] = started.get(name, 0) + queue.started
            slots[name] = slots.get(name, 0) + queue.slots
            for line in queue.lines:
                held = lines.get((name, line.priority), Line(name, line.priority, 0, 0.0, {}))
                images, age = held.images + line.images, max(held.oldest_s, line.oldest_s)
                owners = Counter(held.owners) + Counter(line.owners)
                lines[name, line.priority] = Line(name, line.priority, images, age, owners)
        used = self._used(lines.values())
        return Statistics(tuple(lines.values()), started, slots, self._ended(), used)

    def queues(self) -> list[Queue]:
        """Each queue now, those too that no worker serves any more; RedisError."""
        models = self._registry.every()
        counts = self._statistics(*models)
        found = []
        for (queue, (name, slots)), (drawn, *waiting) in zip(models.items(), counts, strict=True):
            lines = tuple(
                Line(name, priority, images, float(oldest), _by_owner(owners))
                for priority, (images, oldest, owners) in zip(PRIORITIES, waiting, strict=True)
            )
            found.append(Queue(queue, name, slots, drawn, lines))
        return found

    def _used(self, lines: Iterable[Line]) -> tuple[Use, ...]:
        """By names of keys that there are, hence few, whatever is asked for."""
        owners = self._keys.all() or [ANYBODY]
        names = {owner.id: owner.name for owner in owners}
        waiting = {name: dict.fromkeys(PRIORITIES, 0) for name in (*names.values(), REVOKED)}
        for line in lines:
            for owner, images in line.owners.items():
                waiting[names.get(owner, REVOKED)][line.priority] += images
        with self._redis.pipeline(transaction=False) as pipe:
            for owner in names:
                pipe.hget(keys.BYTES + owner, "sum")
            sums = pipe.execute(raise_on_error=False)
        stored = {name: _bytes(name, told) for name, told in zip(names.values(), sums, strict=True)}
        return tuple(Use(name, images, stored.get(name, 0)) for name, images in waiting.items())

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


def _by_owner(flat: Sequence[bytes | int]) -> dict[str, int]:
    """`owner, images, ...` as the script says it."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {bytes(owner).decode("utf-8", "replace"): int(images) for owner, images in pairs}


def _bytes(key: str, told: object) -> int:
    """What a key's sum says; 0 where there is none or it is damaged."""
    try:
        if isinstance(told, Exception):
            raise told
        return int(cast(bytes, told or 0))
    except (redis.ResponseError, *UNREADABLE) as error:
        unreadable(f"the bytes of key {key}", error)
        return 0


def _kind(text: bytes | str) -> Kind:
    """What a field of `keys.ENDS` says."""
    model, label, priority, status, cause = json.loads(text)
    if not all(isinstance(each, str) for each in (model, label, priority, status, cause)):
        raise TypeError("a word is missing")
    return model, label, priority, status, cause
