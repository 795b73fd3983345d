"""Which models workers serve, which of them live, and how fast they measured themselves to be.

Knows no jobs and no tensors.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import redis

from model.request import ModelInfo
from store import keys
from store.scripts import UNREADABLE, Script, unreadable

ALIVE_S = 10.0
"""How long a worker counts as alive after its last word."""
FORGET_S = 600.0
"""How long a model is remembered after its last worker's last word: longer than a restart takes."""


@dataclass(frozen=True)
class Speed:
    """What a worker measured lately: images a second, and seconds from a slot to the files."""

    images_per_s: float
    image_s: float


@dataclass(frozen=True)
class KnownModel:
    """A model that a worker serves or served lately; `ready` when a warm, living one does now."""

    info: ModelInfo
    ready: bool
    slots: int


@dataclass(frozen=True)
class Seen:
    """What was last said of a queue's model, when that was, and since when its version has had
    workers without a break. Times are seconds since 1970."""

    info: ModelInfo
    at: float
    since: float


@dataclass(frozen=True)
class Published:
    """All that workers said, at one moment: by queue, its model and the slots of living workers.
    `damaged` are the names of what cannot be read."""

    now: float
    seen: dict[str, Seen] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    damaged: list[bytes] = field(default_factory=list)


class Registry:
    """Publish and list models. Thread-safe, as its client is."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._publish = Script(client, "publish")

    def models(self) -> list[KnownModel]:
        """The models served here now or in the last FORGET_S seconds, the one to prefer first.

        Ready ones stand before the others, then the version whose workers came last: while one
        version takes another's place, both alive, the order does not change with their heartbeats.
        Jobs of a model that is forgotten stay as they are, and wait for a worker of its version.
        """
        said = self.published()
        known = []
        for queue, seen in said.seen.items():
            count = said.slots.get(queue, 0)
            if count or said.now - seen.at < FORGET_S:
                model = KnownModel(seen.info, count > 0, count)
                known.append((model.ready, seen.since, seen.at, model))
        return [model for *_, model in sorted(known, key=lambda item: item[:3], reverse=True)]

    def every(self) -> dict[str, tuple[str, int]]:
        """By queue: the name of the model that is or once was served there, and the slots of its
        living workers. Whoever waits for a model that is gone waits in one of these."""
        said = self.published()
        return {q: (seen.info.name, said.slots.get(q, 0)) for q, seen in said.seen.items()}

    def speed(self, queue: str) -> Speed | None:
        """What the living workers of a queue do together; None before one has measured itself."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(keys.WORKERS, 0, -1, withscores=True)
            pipe.hgetall(keys.SPEEDS)
            time, workers, speeds = _readable(pipe.execute(raise_on_error=False))
        found = []
        for member, alive_until in workers:
            ours = member.startswith(f"{queue}|".encode()) and member in speeds
            if ours and alive_until > seconds(time):
                with suppress(*UNREADABLE):
                    measured = Speed(**json.loads(speeds[member]))
                    if measured.images_per_s > 0 and measured.image_s >= 0:
                        found.append(measured)
        if not found:
            return None
        mean = sum(each.image_s for each in found) / len(found)
        return Speed(sum(each.images_per_s for each in found), mean)

    def publish(self, info: ModelInfo, worker: str, slots: int, speed: Speed | None = None) -> None:
        """Say that `worker`, warm and alive, serves this model; to be repeated within ALIVE_S."""
        queue = keys.queue_name(info.version, info.numerics)
        said = self.published()
        came = [
            seen.since
            for name, seen in said.seen.items()
            if said.slots.get(name, 0) and seen.info.version == info.version
        ]
        now, since = said.now, min(came, default=said.now)
        entry = {"info": info.to_dict(), "seen": now, "since": since}
        member = f"{queue}|{slots}|{worker}"
        measured = json.dumps(asdict(speed)) if speed is not None else ""
        until = f"{now + ALIVE_S:.6f}"
        damaged = [*said.damaged, *said.damaged]
        told = (queue, json.dumps(entry), member, f"{now:.6f}", until, measured)
        self._publish(*told, len(said.damaged), *damaged)

    def withdraw(self, info: ModelInfo, worker: str, slots: int) -> None:
        """Take `publish` back: this worker serves no more."""
        member = f"{keys.queue_name(info.version, info.numerics)}|{slots}|{worker}"
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrem(keys.WORKERS, member)
            pipe.hdel(keys.SPEEDS, member)
            pipe.execute()

    def published(self) -> Published:
        """What was last said of each queue, and by whom."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(keys.MODELS)
            pipe.zrange(keys.WORKERS, 0, -1, withscores=True)
            time, known, workers = _readable(pipe.execute(raise_on_error=False))
        said = Published(seconds(time))
        for member, alive_until in workers:
            try:
                queue, count, _ = member.decode().split("|", 2)
                alive = int(count) if alive_until > said.now else 0
                said.slots[queue] = said.slots.get(queue, 0) + alive
            except UNREADABLE as error:
                unreadable(f"worker {member!r}", error)
                said.damaged.append(member)
        for name, text in known.items():
            try:
                entry = json.loads(text)
                at, since = float(entry["seen"]), float(entry.get("since", 0.0))
                said.seen[name.decode()] = Seen(ModelInfo.from_dict(entry["info"]), at, since)
            except UNREADABLE as error:
                unreadable(f"model {name!r}", error)
                said.damaged.append(name)
        return said


def _readable(answers: list[Any]) -> list[Any]:
    """The answers of Redis. A key of another type is as good as an empty one: the next worker that
    publishes begins it anew. Any other error is raised."""
    for at, answer in enumerate(answers):
        if isinstance(answer, redis.RedisError):
            if not str(answer).startswith("WRONGTYPE"):
                raise answer
            unreadable("models, workers or speeds", answer)
            answers[at] = {}
    return answers


def seconds(time: Any) -> float:
    """Redis TIME's (seconds, microseconds) as one number."""
    return float(time[0]) + float(time[1]) / 1e6
