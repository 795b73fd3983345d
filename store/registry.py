"""Which models are served, by which live workers, and the speed that these have measured.

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
"""How long a worker counts as alive after its last heartbeat."""
FORGET_S = 600.0
"""How long a model is listed after its workers' last heartbeat: longer than a restart takes."""


@dataclass(frozen=True)
class Speed:
    """A worker's recent speed: images per second, and seconds from slot to files per image."""

    images_per_s: float
    image_s: float


@dataclass(frozen=True)
class KnownModel:
    """A model that a worker serves or served recently. `ready`: a warm, live worker serves it now.
    `slots` of live workers."""

    info: ModelInfo
    ready: bool
    slots: int


@dataclass(frozen=True)
class LastModel:
    """The last published model of a queue, when it was published (`at`), and since when its version
    has had workers without a gap (`since`). Times are seconds since 1970."""

    info: ModelInfo
    at: float
    since: float


@dataclass(frozen=True)
class Published:
    """What workers have published, at one moment: by queue, the model and the slots of live
    workers. `damaged` has the names of unreadable entries."""

    now: float
    seen: dict[str, LastModel] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    damaged: list[bytes] = field(default_factory=list)


class Registry:
    """Publishes and lists models. Thread-safe, as its client is."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._publish = Script(client, "publish")

    def models(self) -> list[KnownModel]:
        """The models served now or in the last FORGET_S seconds, in order of preference.

        Ready models come first, then the version whose workers started last. So during an update,
        with live workers of two versions, heartbeats do not change the order. Jobs of a model that
        is no longer listed wait for a worker of its version.
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
        """By queue: the name of its current or last model, and the slots of its live workers.
        Includes queues without workers, as jobs may still wait there."""
        said = self.published()
        return {q: (seen.info.name, said.slots.get(q, 0)) for q, seen in said.seen.items()}

    def speed(self, queue: str) -> Speed | None:
        """The combined speed of a queue's live workers; None before one has measured its speed."""
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
        """Publish that `worker`, warm and alive, serves this model. Repeat it within ALIVE_S."""
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
        """Undo `publish`: this worker no longer serves the model."""
        member = f"{keys.queue_name(info.version, info.numerics)}|{slots}|{worker}"
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrem(keys.WORKERS, member)
            pipe.hdel(keys.SPEEDS, member)
            pipe.execute()

    def published(self) -> Published:
        """The last published model of each queue and the slots of its live workers."""
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
                said.seen[name.decode()] = LastModel(ModelInfo.from_dict(entry["info"]), at, since)
            except UNREADABLE as error:
                unreadable(f"model {name!r}", error)
                said.damaged.append(name)
        return said


def _readable(answers: list[Any]) -> list[Any]:
    """The answers of Redis, with {} for a key of another type: the next worker that publishes
    replaces that key. Raises any other error."""
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
