"""Which models workers serve, which of them live, and how fast they measured themselves to be.

Knows no jobs and no tensors.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, cast

import redis

from model.request import ModelInfo
from store import keys

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


class Registry:
    """Publish and list models. Thread-safe, as its client is."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def models(self) -> list[KnownModel]:
        """The models served here now or in the last FORGET_S seconds, the one to prefer first.

        Ready ones stand before the others, then the version whose workers came last: while one
        version takes another's place, both alive, the order does not change with their heartbeats.
        Jobs of a model that is forgotten stay as they are, and wait for a worker of its version.
        """
        now, entries, slots = self._published()
        known = []
        for queue, entry in entries.items():
            if slots.get(queue, 0) or now - entry["seen"] < FORGET_S:
                count = slots.get(queue, 0)
                model = KnownModel(ModelInfo.from_dict(entry["info"]), count > 0, count)
                known.append((model.ready, entry.get("since", 0.0), entry["seen"], model))
        return [model for *_, model in sorted(known, key=lambda item: item[:3], reverse=True)]

    def every(self) -> dict[str, tuple[str, int]]:
        """By queue: the name of the model that is or once was served there, and the slots of its
        living workers. Whoever waits for a model that is gone waits in one of these."""
        _, entries, slots = self._published()
        return {q: (each["info"]["name"], slots.get(q, 0)) for q, each in entries.items()}

    def speed(self, queue: str) -> Speed | None:
        """What the living workers of a queue do together; None before one has measured itself."""
        with self._redis.pipeline() as pipe:
            pipe.time()
            pipe.zrange(keys.WORKERS, 0, -1, withscores=True)
            pipe.hgetall(keys.SPEEDS)
            time, workers, speeds = pipe.execute()
        found = [
            Speed(**json.loads(speeds[member]))
            for member, alive_until in workers
            if alive_until > seconds(time)
            and member.decode().startswith(f"{queue}|")
            and member in speeds
        ]
        if not found:
            return None
        mean = sum(each.image_s for each in found) / len(found)
        return Speed(sum(each.images_per_s for each in found), mean)

    def publish(self, info: ModelInfo, worker: str, slots: int, speed: Speed | None = None) -> None:
        """Say that `worker`, warm and alive, serves this model; to be repeated within ALIVE_S."""
        queue = keys.queue_name(info.version, info.numerics)
        now, entries, alive = self._published()
        came = [
            entry.get("since", now)
            for name, entry in entries.items()
            if alive.get(name, 0) and entry["info"]["version"] == info.version
        ]
        entry = {"info": info.to_dict(), "seen": now, "since": min(came, default=now)}
        member = f"{queue}|{slots}|{worker}"
        silent = cast(list[bytes], self._redis.zrangebyscore(keys.WORKERS, "-inf", now))
        with self._redis.pipeline() as pipe:
            pipe.hset(keys.MODELS, queue, json.dumps(entry))
            for each in silent:
                pipe.zrem(keys.WORKERS, each)
                pipe.hdel(keys.SPEEDS, each)
            pipe.zadd(keys.WORKERS, {member: now + ALIVE_S})
            if speed is not None:
                pipe.hset(keys.SPEEDS, member, json.dumps(asdict(speed)))
            pipe.execute()

    def withdraw(self, info: ModelInfo, worker: str, slots: int) -> None:
        """Take `publish` back: this worker serves no more."""
        member = f"{keys.queue_name(info.version, info.numerics)}|{slots}|{worker}"
        with self._redis.pipeline() as pipe:
            pipe.zrem(keys.WORKERS, member)
            pipe.hdel(keys.SPEEDS, member)
            pipe.execute()

    def _published(self) -> tuple[float, dict[str, dict[str, Any]], dict[str, int]]:
        """The time, what was last said of each queue's model, and the slots of living workers."""
        with self._redis.pipeline() as pipe:
            pipe.time()
            pipe.hgetall(keys.MODELS)
            pipe.zrange(keys.WORKERS, 0, -1, withscores=True)
            time, known, workers = pipe.execute()
        slots: dict[str, int] = {}
        for member, alive_until in workers:
            queue, count, _ = member.decode().split("|", 2)
            if alive_until > seconds(time):
                slots[queue] = slots.get(queue, 0) + int(count)
        entries = {queue.decode(): json.loads(text) for queue, text in known.items()}
        return seconds(time), entries, slots


def seconds(time: Any) -> float:
    """Redis TIME's (seconds, microseconds) as one number."""
    return float(time[0]) + float(time[1]) / 1e6
