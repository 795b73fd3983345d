"""Request records: a job as its client sees it, and which models are there to draw it.

A job is one record and n parts; a part is one image and one RQ job. A job's status is derived
from its parts and stored nowhere. Knows no HTTP and no tensors; what workers do is in `parts.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, cast
from uuid import uuid4

import redis
from redis.client import Pipeline
from rq.job import Job as RQJob
from rq.job import JobStatus, Retry
from rq.serializers import JSONSerializer

from model.request import GenerationRequest, ImageRequest, ModelInfo, image_seed
from store import keys, scripts

Status = Literal["queued", "started", "finished", "failed", "canceled"]
ENDED_CHANNEL = keys.ENDED_CHANNEL
"""Pub/sub channel on which a job's id is published when it reaches an end state."""
END_STATES: tuple[Status, ...] = ("finished", "failed", "canceled")

RETRIES = 3
"""How often a part is drawn again after the worker that held it died."""
PART_TIMEOUT_S = 600
"""The longest that one image may take to draw once it has a slot."""
ALIVE_S = 10.0
"""How long a worker counts as alive after its last word."""
FORGET_S = 600.0
"""How long a model is remembered after its last worker's last word: longer than a restart takes."""


@dataclass(frozen=True)
class ModelRef:
    """The model that a job is bound to since its submission."""

    name: str
    version: str
    numerics: str


@dataclass(frozen=True)
class Part:
    """One image of a job. Times in seconds: waiting, drawing, and from submission to the end."""

    index: int
    seed: int
    status: Status
    queue_s: float | None
    decode_s: float | None
    total_s: float | None


@dataclass(frozen=True)
class Job:
    """A request as its client sees it. Times are seconds since 1970 by the clock of Redis."""

    id: str
    status: Status
    request: GenerationRequest
    model: ModelRef
    created_at: float
    started_at: float | None
    ended_at: float | None
    error: str | None
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class KnownModel:
    """A model that a worker serves or served lately; `ready` when a warm, living one does now."""

    info: ModelInfo
    ready: bool
    slots: int


class JobStore:
    """Submit, look up and cancel jobs; publish and list models. Thread-safe, as its client is."""

    def __init__(self, client: redis.Redis, *, result_ttl: int) -> None:
        self._redis = client
        self._ttl = result_ttl
        self._snapshot = client.register_script(scripts.SNAPSHOT)
        self._cancel = client.register_script(scripts.CANCEL)

    def submit(self, request: GenerationRequest, model: ModelInfo) -> Job:
        """Accept a request: its record and its n RQ jobs in one MULTI, or nothing at all.

        WATCH keeps the client from repeating the MULTI after a lost reply, which would queue the
        parts again; then redis.exceptions.RedisError, and the job may or may not be there.
        """
        job_id, ref = uuid4().hex, ModelRef(model.name, model.version, model.numerics)
        queue = keys.queue_name(model.version, model.numerics)
        with self._redis.pipeline() as pipe:
            pipe.watch(keys.RECORD + job_id)  # type: ignore[no-untyped-call]
            created_at = seconds(pipe.time())
            pipe.multi()
            pipe.hset(keys.RECORD + job_id, mapping=_record(request, ref, queue, created_at))
            for index, image in enumerate(request.images()):
                self._save_part(pipe, queue, job_id, index, image)
            pipe.sadd(keys.QUEUES, keys.QUEUE + queue)
            names = [keys.part_id(job_id, index) for index in range(request.n)]
            pipe.rpush(keys.QUEUE + queue, *names)
            pipe.execute()
        parts = tuple(_part(request, {}, index, "queued") for index in range(request.n))
        return Job(job_id, "queued", request, ref, created_at, None, None, None, parts)

    def get(self, job_id: str) -> Job | None:
        """The job as it is now, read in one step; None when there is none of this id."""
        if not keys.is_job_id(job_id):
            return None
        found = self._snapshot(args=[job_id])
        if found is None:
            return None
        flat, states = found
        fields = {flat[at].decode(): flat[at + 1].decode() for at in range(0, len(flat), 2)}
        return _job(job_id, fields, [cast(Status, state.decode()) for state in states])

    def cancel(self, job_id: str) -> bool:
        """End a job now, dropping what is not finished; False when it is unknown or has ended."""
        return keys.is_job_id(job_id) and bool(self._cancel(args=[job_id, self._ttl]))

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

    def publish_model(self, info: ModelInfo, worker: str, slots: int) -> None:
        """Say that `worker`, warm and alive, serves this model; to be repeated within ALIVE_S."""
        queue = keys.queue_name(info.version, info.numerics)
        now, entries, alive = self._published()
        came = [
            entry.get("since", now)
            for name, entry in entries.items()
            if alive.get(name, 0) and entry["info"]["version"] == info.version
        ]
        entry = {"info": info.to_dict(), "seen": now, "since": min(came, default=now)}
        with self._redis.pipeline() as pipe:
            pipe.hset(keys.MODELS, queue, json.dumps(entry))
            pipe.zadd(keys.WORKERS, {f"{queue}|{slots}|{worker}": now + ALIVE_S})
            pipe.zremrangebyscore(keys.WORKERS, "-inf", now)
            pipe.execute()

    def withdraw_model(self, info: ModelInfo, worker: str, slots: int) -> None:
        """Take `publish_model` back: this worker serves no more."""
        queue = keys.queue_name(info.version, info.numerics)
        self._redis.zrem(keys.WORKERS, f"{queue}|{slots}|{worker}")

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

    def _save_part(
        self, pipe: Pipeline, queue: str, job_id: str, index: int, image: ImageRequest
    ) -> None:
        part = RQJob.create(
            keys.FUNCTION,
            kwargs={"job_id": job_id, "index": index, "image": image.to_dict()},
            id=keys.part_id(job_id, index),
            origin=queue,
            status=JobStatus.QUEUED,
            timeout=PART_TIMEOUT_S,
            retry=Retry(max=RETRIES),
            description=f"image {index} of {job_id}",
            serializer=JSONSerializer,
            connection=self._redis,
        )
        part.save(pipeline=pipe)


def derive_status(states: list[Status]) -> Status:
    """A job's status from those of its parts."""
    if "failed" in states:
        return "failed"
    if "canceled" in states:
        return "canceled"
    everywhere: tuple[Status, ...] = ("finished", "queued")
    for status in everywhere:
        if all(state == status for state in states):
            return status
    return "started"


def _record(
    request: GenerationRequest, model: ModelRef, queue: str, created_at: float
) -> dict[Any, Any]:
    return {
        "request": json.dumps(request.to_dict()),
        "n": request.n,
        "queue": queue,
        "model_name": model.name,
        "model_version": model.version,
        "model_numerics": model.numerics,
        "created_at": created_at,
    }


def _job(job_id: str, fields: dict[str, str], states: list[Status]) -> Job:
    request = GenerationRequest.from_dict(json.loads(fields["request"]))
    model = ModelRef(fields["model_name"], fields["model_version"], fields["model_numerics"])
    return Job(
        id=job_id,
        status=derive_status(states),
        request=request,
        model=model,
        created_at=float(fields["created_at"]),
        started_at=_number(fields, "started_at"),
        ended_at=_number(fields, "ended_at"),
        error=fields.get("error"),
        parts=tuple(_part(request, fields, index, state) for index, state in enumerate(states)),
    )


def _part(request: GenerationRequest, fields: dict[str, str], index: int, status: Status) -> Part:
    times = (_number(fields, f"{name}:{index}") for name in ("queue_s", "decode_s", "total_s"))
    return Part(index, image_seed(request.seed, index), status, *times)


def _number(fields: dict[str, str], name: str) -> float | None:
    return float(fields[name]) if name in fields else None


def seconds(time: Any) -> float:
    """Redis TIME's (seconds, microseconds) as one number."""
    return float(time[0]) + float(time[1]) / 1e6
