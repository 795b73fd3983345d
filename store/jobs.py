"""What clients do with jobs: submit, look up, list, follow, cancel, drop.

A job is one record and n parts; a part is one image and one RQ job. Each job belongs to an owner,
and each lookup is limited to one owner. `job.py` has the form of a job, `lists.py` lists of jobs,
`parts.py` what workers do. Knows no HTTP and no tensors.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Literal, cast
from uuid import uuid4

import redis
from rq.job import Job as RQJob
from rq.job import JobStatus, Retry
from rq.serializers import JSONSerializer

from model.given import Given, Size, packed, reference
from model.request import GenerationRequest, ImageRequest, ModelInfo
from pathar.contract import DEFAULT_PRIORITY, Priority, Status, is_job_id
from store import keys
from store.access import ANYBODY, Owner
from store.job import Event, Job, Page, Part, read_job, read_part_state
from store.lists import JobLists
from store.registry import Registry
from store.results import room
from store.scripts import PART_BYTES, RECORD_BYTES, RETRIES, UNREADABLE, Script, unreadable

LimitName = Literal["requests", "stored", "waiting", "queue", "booked"]
"""The limit that an order exceeds. `booked`: it was retried before the time it had been given."""
NO_ROOM: Mapping[LimitName, str] = {
    "requests": "this key sends more requests a minute than it may",
    "stored": "the jobs and results of this key take as many bytes as they may; drop some",
    "waiting": "this key has as many images waiting as it may",
    "queue": "the queue is full",
    "booked": "this request was retried before its Retry-After was over",
}
"""The explanation of each limit."""

QUEUED = JobStatus.QUEUED.value
GIVEN_BYTES = 512
"""The bytes that what a job was given counts beside its text: its field, and references to it."""
PART_TIMEOUT_S = 600
"""The longest that one image may take to draw once it has a slot."""
MAX_WAITING = 10_000
"""The default limit of images that wait in one queue."""
_PART_FIELDS = ("step", "queue_s", "decode_s", "total_s")


class Refused(Exception):
    """An order that was not accepted."""


class OtherBody(Refused):
    """The id belongs to a job with another body."""


class Expired(Refused):
    """The id belongs to this same job, which has expired."""


class NotKept(Refused):
    """Redis could not write the order to its disk. The job may still be drawn."""


class TooMuch(Refused):
    """Over a limit. In `retry_after` seconds there is room, which is reserved for this order."""

    def __init__(self, limit: LimitName, retry_after: float) -> None:
        self.limit, self.retry_after = limit, retry_after
        super().__init__(f"over the limit {limit!r} for {retry_after:.0f} s")


class JobStore:
    """Submits, looks up, lists, follows, cancels and drops jobs. Thread-safe, as its client is."""

    def __init__(
        self, client: redis.Redis, *, result_ttl: int, max_waiting: int = MAX_WAITING
    ) -> None:
        self._redis = client
        self._ttl = result_ttl
        self._max_waiting = max_waiting
        self._registry = Registry(client)
        self._submit = Script(client, "submit")
        self._lists = JobLists(client, self._registry)
        self._snapshot = Script(client, "snapshot")
        self._part_script = Script(client, "part")
        self._cancel = Script(client, "cancel")
        self._drop = Script(client, "drop")

    def submit(
        self,
        request: GenerationRequest,
        model: ModelInfo,
        *,
        owner: Owner,
        priority: Priority = DEFAULT_PRIORITY,
        job_id: str | None = None,
        digest: str = "",
        trace: str = "",
        notify: str | None = None,
        given: Given | None = None,
    ) -> tuple[Job, bool]:
        """Accept a request; returns the job and whether it is new. `trace` is passed on to workers,
        and the job's end is sent to the URL `notify`. The job keeps `given`, which all of its
        images are given.

        If there is a job with `job_id` and the same `digest` (of the client's body), returns that
        job. Raises OtherBody for another digest, Expired when that job has expired, TooMuch over a
        limit, and NotKept when Redis cannot write to its disk. The change is atomic. After a
        RedisError it may or may not have happened; a retry with the same id is safe.
        """
        public = job_id or uuid4().hex
        job = keys.owned_id(owner.id, public)
        queue = keys.queue_name(model.version, model.numerics)
        speed = self._registry.speed(queue)
        if given is not None:
            request = replace(request, given=reference(given, request.size))
        record = _record(request, model, owner, trace, notify, given)
        order = {
            "job": job, "owner": owner.id, "queue": queue, "n": request.total, "priority": priority,
            "digest": digest, "call": uuid4().hex, "ticket": f"{owner.id}-{job_id or digest}",
            "named": job_id is not None,
            "limits": {**_limits(owner), "queue": self._max_waiting},
            "rate": speed.images_per_s if speed else None, "ttl": self._ttl,
            "room": room(model, request.size), "cost": request.cost(model, given),
            "given": given_bytes(given), "record": record, "part": self._part(queue),
        }  # fmt: skip
        answer, *rest = self._submit(json.dumps(order), *_payloads(job, request))
        match answer:
            case b"other":
                raise OtherBody(public)
            case b"gone":
                raise Expired(public)
            case b"later":
                raise TooMuch(rest[1].decode(), float(rest[0]))
        check_kept(self._redis)
        found = self.get(public, owner=owner)
        if found is None:
            raise Expired(public)
        return found, answer == b"made"

    def find(self, job_id: str, *, owner: Owner, digest: str) -> Job | None:
        """The job that the same order made before, even if its model has no worker now; None for a
        new id. OtherBody when the id belongs to another body, Expired when the job has expired,
        NotKept as in `submit`."""
        job = keys.owned_id(owner.id, job_id)
        with self._redis.pipeline(transaction=False) as pipe:  # a full Redis refuses MULTI
            pipe.hget(keys.RECORD + job, "digest")
            pipe.get(keys.GONE + job)
            kept, gone = pipe.execute()
        known = kept if kept is not None else gone
        if known is None:
            return None
        if known.decode() != digest:
            raise OtherBody(job_id)
        check_kept(self._redis)
        found = self.get(job_id, owner=owner)
        if found is None:
            raise Expired(job_id)
        return found

    def part(self, job_id: str, index: int, *, owner: Owner) -> Part | None:
        """One image of a job, without reading the others; None when there is none."""
        if not is_job_id(job_id) or index < 0:
            return None
        names = ["request", "steps", *(f"{name}:{index}" for name in _PART_FIELDS)]
        found = self._part_script(keys.owned_id(owner.id, job_id), index, *names)
        if found is None:
            return None
        state, values = cast(Status, found[0].decode()), found[1]
        try:
            fields = {n: v.decode() for n, v in zip(names, values, strict=True) if v is not None}
            request = GenerationRequest.from_dict(json.loads(fields["request"]))
            return read_part_state(request, fields, index, state, int(fields["steps"]))
        except UNREADABLE as error:
            unreadable(f"image {index} of job {job_id}", error)
            return None

    def get(self, job_id: str, *, owner: Owner) -> Job | None:
        """The owner's job as it is now, read atomically; None when there is none with this id."""
        found = self._snapshot(keys.owned_id(owner.id, job_id)) if is_job_id(job_id) else None
        if found is None:
            return None
        flat, told, places = found
        states = [cast(Status, state.decode()) for state in told]
        try:
            fields = {flat[at].decode(): flat[at + 1].decode() for at in range(0, len(flat), 2)}
            speed = self._registry.speed(fields["queue"]) if places or "started" in states else None
            return read_job(keys.owned_id(owner.id, job_id), fields, states, places, speed)
        except UNREADABLE as error:
            unreadable(f"job {job_id}", error)
            return None

    def expired(self, job_id: str, *, owner: Owner) -> bool:
        """Whether a job of this id has expired within about the last week."""
        known = is_job_id(job_id)
        return known and bool(self._redis.exists(keys.GONE + keys.owned_id(owner.id, job_id)))

    def page(
        self,
        *,
        owner: Owner,
        status: Status | None = None,
        label: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        """A page of the owner's jobs, newest first. BadCursor on an invalid cursor."""
        return self._lists.page(owner.id, status, label, cursor, limit)

    def cancel(self, job_id: str, *, owner: Owner) -> bool:
        """Cancel a job and drop its unfinished images; False when it is unknown or has ended."""
        if not is_job_id(job_id):
            return False
        job = keys.owned_id(owner.id, job_id)
        return bool(self._cancel(job, self._ttl, uuid4().hex))

    def drop(self, job_id: str, *, owner: Owner) -> bool:
        """Delete the results of a job that has ended; they no longer count against its owner's
        limit. False when the job is unknown or has not ended."""
        if not is_job_id(job_id):
            return False
        return bool(self._drop(keys.owned_id(owner.id, job_id)))

    def events(
        self, job_id: str, after: str = "0", *, owner: Owner, count: int = 256
    ) -> list[Event]:
        """Up to `count` events after the one with the id `after`, oldest first."""
        stream = keys.EVENTS + keys.owned_id(owner.id, job_id)
        entries = cast(
            list[tuple[bytes, dict[bytes, bytes]]],
            self._redis.xrange(stream, f"({after}", count=count),
        )
        return [
            Event(at.decode(), fields[b"kind"].decode(), json.loads(fields[b"data"]))
            for at, fields in entries
        ]

    def _part(self, queue: str) -> dict[str, str]:
        """The fields that are the same in the RQ hashes of all parts, as RQ writes them."""
        part = RQJob.create(
            keys.FUNCTION,
            id="part",
            origin=queue,
            status=JobStatus.QUEUED,
            timeout=PART_TIMEOUT_S,
            retry=Retry(max=RETRIES),
            serializer=JSONSerializer,
            connection=self._redis,
        )
        fields = part.to_dict(include_meta=False)
        own = ("data", "description")
        told = {name: value for name, value in fields.items() if name not in own}
        return {**{name: str(value) for name, value in told.items()}, "status": QUEUED}


def check_kept(client: redis.Redis) -> None:
    """Raises NotKept when Redis could not write its append-only file: the accepted order would be
    lost with the Redis process. Redis writes before it reads the next command, so INFO is up to
    date."""
    with suppress(redis.ResponseError):  # this user may not be allowed to run INFO
        told = client.info("persistence")
        if told.get("aof_enabled") and told.get("aof_last_write_status") != "ok":
            raise NotKept


def most_images(
    owner: Owner, model: ModelInfo, given: Given | None = None, size: Size | None = None
) -> int | None:
    """The most images of this size that a job of this owner which is given this may have, so that
    its results stay within the limit of bytes; None without a limit."""
    limit = _limits(owner).get("stored_bytes")
    if limit is None:
        return None
    left = limit - RECORD_BYTES - given_bytes(given)
    return max(0, left) // (PART_BYTES + room(model, size))


def given_bytes(given: Given | None) -> int:
    """The bytes that what a job was given counts, until the job expires or is dropped: what is
    kept, and what Redis adds to round up its memory."""
    return 0 if given is None else len(packed(given)) * 5 // 4 + GIVEN_BYTES


def _limits(owner: Owner) -> dict[str, int]:
    """An owner's limits; none without keys, as there is nobody to share with."""
    return {} if owner.id == ANYBODY.id else asdict(owner.limits)


def _record(
    request: GenerationRequest,
    model: ModelInfo,
    owner: Owner,
    trace: str,
    notify: str | None,
    given: Given | None,
) -> dict[str, str]:
    return {
        **({} if given is None else {"given": packed(given)}),
        **({} if notify is None else {"notify": notify}),
        "key_name": owner.name,
        "trace": trace,
        "request": json.dumps(request.to_dict()),
        "label": request.labels[0] if len(request.labels) == 1 else keys.SEVERAL,
        "labels": "".join(f"{label}\n" for label in ("", *request.labels)),
        "model_name": model.name,
        "model_version": model.version,
        "model_numerics": model.numerics,
        "steps": str(model.steps),
    }


def _payloads(job: str, request: GenerationRequest) -> list[bytes]:
    """RQ's `data` field of each part: the function name and its arguments."""
    return [_payload(job, index, image) for index, image in enumerate(request.images())]


def _payload(job: str, index: int, image: ImageRequest) -> bytes:
    arguments = {"job_id": job, "index": index, "image": image.to_dict()}
    return zlib.compress(json.dumps((keys.FUNCTION, None, [], arguments)).encode())
