"""Statistics for operators over all owners: what waits, for how long, and how jobs ended.

All of it is read from Redis, so each process returns the same. Knows no metrics format.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import redis

from pathar.contract import PRIORITIES, Priority
from store import keys
from store.access import ANYBODY, KeyStore
from store.parts import Cause
from store.registry import Registry
from store.scripts import UNREADABLE, Script, unreadable

CAUSES = (*get_args(Cause), "no worker", "numerics", "refused")
"""Why jobs fail: the causes that workers report, and those of the scripts."""
ENDINGS = (("finished", ""), ("canceled", ""), *(("failed", cause) for cause in CAUSES))
"""All pairs of end state and cause of a job."""

REVOKED = "(revoked)"
"""The key name for waiting images of revoked keys. Names of keys have no parentheses."""

EndKind = tuple[str, str, str, str, str]
"""Model, label, priority, status and cause of ended jobs."""


@dataclass(frozen=True)
class Line:
    """The waiting images of one model and priority, in all and by owner, and the seconds since the
    oldest was submitted; 0 when none waits."""

    model: str
    priority: Priority
    images: int
    oldest_s: float
    owners: Mapping[str, int]


@dataclass(frozen=True)
class Queue:
    """One queue, that of a version and numerics of `model`: waiting images (`lines`), images being
    drawn (`started`), and the `slots` of live workers."""

    name: str
    model: str
    slots: int
    started: int
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Use:
    """The use of one key: waiting images by priority, and bytes of its jobs and results as its
    limit counts them."""

    key: str
    waiting: Mapping[Priority, int]
    stored_bytes: int


@dataclass(frozen=True)
class Ended:
    """The number of jobs that ended in one way. `cause`: why they failed, else ""."""

    model: str
    label: str
    priority: str
    status: str
    cause: str
    jobs: int


@dataclass(frozen=True)
class Statistics:
    """All statistics at one moment. `started` images and `slots` of live workers are by model.

    `ended` has all ways in which jobs of the served models can end, with 0 where none has, and all
    others that have occurred. `used` has all keys, or ANYBODY without keys. `datasets` are data
    sets that are being drawn.
    """

    lines: tuple[Line, ...]
    started: Mapping[str, int]
    slots: Mapping[str, int]
    ended: tuple[Ended, ...]
    used: tuple[Use, ...]
    datasets: int


class StatisticsReader:
    """Reads statistics. Thread-safe, as its client is."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._registry = Registry(client)
        self._keys = KeyStore(client)
        self._statistics = Script(client, "statistics")

    def read(self) -> Statistics:
        """Read the statistics now. Versions of one model count together. RedisError."""
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
        ended, datasets = self._ended(), self._datasets()
        return Statistics(tuple(lines.values()), started, slots, ended, used, datasets)

    def queues(self) -> list[Queue]:
        """All queues now, including those without workers. RedisError."""
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
        """The use of each existing key; so clients cannot add names."""
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

    def _datasets(self) -> int:
        try:
            return self._redis.zcard(keys.DATASET_TURNS)
        except redis.ResponseError as error:
            unreadable("turns of data sets", error)
            return 0

    def _ended(self) -> tuple[Ended, ...]:
        """The counts of ended jobs. They start at 0: a rate does not see the first event of a
        series that starts with it. Labels are those of current and recent models: they are few."""
        counts: dict[EndKind, int] = {
            (known.info.name, label, priority, *ending): 0
            for known in self._registry.models()
            for label in (*known.info.label_names(), keys.SEVERAL)
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
    """Images by owner, from the script's `owner, images, ...`."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {bytes(owner).decode("utf-8", "replace"): int(images) for owner, images in pairs}


def _bytes(key: str, told: object) -> int:
    """A key's sum of bytes; 0 when it is missing or damaged."""
    try:
        if isinstance(told, Exception):
            raise told
        return int(cast(bytes, told or 0))
    except (redis.ResponseError, *UNREADABLE) as error:
        unreadable(f"the bytes of key {key}", error)
        return 0


def _kind(text: bytes | str) -> EndKind:
    """The `EndKind` in a field of `keys.ENDS`. TypeError, ValueError."""
    model, label, priority, status, cause = json.loads(text)
    if not all(isinstance(each, str) for each in (model, label, priority, status, cause)):
        raise TypeError("expected five strings")
    return model, label, priority, status, cause
