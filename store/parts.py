"""What workers do with parts: claim, start, keep, finish, fail, hand back, sweep.

Each change is one Lua script of `scripts.py`. A part is read as raw bytes and checked here before
it is used. RQ's own loader would import what a record names, so it is never used. Knows no engine
and no pixels.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast
from uuid import uuid4

import redis

from model.given import GivenRef, unpacked
from model.request import ImageRequest
from pathar.contract import Status
from store import keys, results
from store.results import Stored
from store.scripts import Script

Cause = Literal["engine", "timeout", "request", "lost worker"]
"""Why a part fails: the engine failed, it took too long, the model does not accept the request, or
its workers died."""

LEASE_S = 10.0
"""A part is taken over when its worker has sent no heartbeat for this long."""
GAP_S = LEASE_S / 2
"""The longest gap between two heartbeats of a `steady` worker. During a longer gap Redis may have
been away for all workers. After a gap this long, the others' next heartbeats still come before
their leases expire."""
_MAX_PAYLOAD_BYTES = 1 << 20
"""The largest size of a part's payload in bytes, uncompressed."""
_FORBIDDEN = (
    b"success_callback_name",
    b"failure_callback_name",
    b"stopped_callback_name",
    b"webhooks",
    b"dependency_id",
    b"dependency_ids",
)
"""Fields of RQ's hash that make RQ import, call or contact something. Ours are empty."""


class RefusedPart(ValueError):
    """A rejected record: it has another function, callbacks, webhooks, or invalid data."""


@dataclass(frozen=True)
class Claim:
    """A part taken from the queue and not read yet: its id, RQ's raw hash, and the execution that
    may start it."""

    part: str
    fields: Mapping[bytes, bytes]
    execution: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True)
class HeldPart:
    """A part that this worker has started. `execution` is its proof of ownership.

    `losses` counts the workers that died while they held it or could not draw it. `queue_s` is how
    long it waited. `priority`, `key` (the name of the API key) and `trace` are those of its job.
    """

    job: str
    index: int
    execution: str
    image: ImageRequest
    losses: int
    queue_s: float
    priority: str
    key: str
    trace: str

    @property
    def part(self) -> str:
        """The id of the part."""
        return keys.part_id(self.job, self.index)


class PartStore:
    """The parts of one queue, for one worker. Thread-safe, as its client is, except `heartbeat`.
    `damaged` is called with the number of unreadable records."""

    def __init__(
        self,
        client: redis.Redis,
        queue: str,
        worker: str,
        *,
        result_ttl: int,
        damaged: Callable[[int], None] | None = None,
    ) -> None:
        self._redis = client
        self.queue = queue
        self.worker = worker
        self.damaged = damaged
        self._ttl = result_ttl
        self._heartbeat_at, self._steady_since = float("-inf"), float("inf")
        names = ("claim", "start", "refuse", "heartbeat", "finish", "fail", "put_back", "sweep")
        self._scripts = {name: Script(client, name, damaged) for name in names}

    def claim(self, count: int) -> list[Claim]:
        """Claim up to `count` parts, oldest first. They belong to the worker only after `start`."""
        return [
            Claim(part.decode(errors="replace"), dict(zip(flat[::2], flat[1::2], strict=True)))
            for part, flat in self._run("claim", count, int(LEASE_S), uuid4().hex)
        ]

    def completed(self, claim: Claim, image: ImageRequest) -> ImageRequest:
        """A claimed part's image with what its job was given and keeps.
        RefusedPart when the job does not keep what the part names."""
        if not isinstance(image.given, GivenRef):
            return image
        job, _ = keys.split_part_id(claim.part)
        try:
            kept = cast("bytes | None", self._redis.hget(keys.RECORD + job, "given"))
            return replace(image, given=unpacked(kept or b"", image.given, image.size))
        except ValueError as error:
            raise RefusedPart(f"{claim.part}: {error}") from error
        except redis.ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            raise RefusedPart(f"{claim.part}: its job is no record") from error

    def start(self, claim: Claim, image: ImageRequest) -> HeldPart | None:
        """Start a claimed part, so that its execution owns it. None when another execution owns
        it, or it was canceled or deleted. Can be retried if the answer was lost."""
        told = (claim.part, claim.execution, self.worker, LEASE_S, self._ttl)
        started = self._run("start", *told)
        if started is None:
            return None
        losses, queue_s, *told = started
        job, index = keys.split_part_id(claim.part)
        held = (job, index, claim.execution, image, int(losses), float(queue_s))
        return HeldPart(*held, *(value.decode(errors="replace") for value in told))

    def refuse(self, claim: Claim, reason: str) -> bool:
        """Mark a claimed record failed without using its contents; its job fails with `reason`.
        False when RQ's own tools had withdrawn it: then its job is canceled."""
        return bool(self._run("refuse", claim.part, self._ttl, reason))

    def heartbeat(self, held: Sequence[tuple[HeldPart | Claim, int]], steps: int) -> set[str]:
        """Send a heartbeat: renew the leases of parts and report how many of `steps` each has done.

        Returns the executions that do not own their part.
        """
        told = [item for part, step in held for item in (part.part, part.execution, step)]
        before, self._heartbeat_at = self._heartbeat_at, float("-inf")  # stays so after an error
        time, lost = self._run("heartbeat", LEASE_S, self._ttl, steps, *told)
        self._heartbeat_at = float(time)
        if not 0 <= self._heartbeat_at - before <= GAP_S:
            self._steady_since = self._heartbeat_at
        return {execution.decode() for execution in lost}

    @property
    def steady(self) -> bool:
        """Whether this worker's heartbeats had no gap over GAP_S for LEASE_S, by Redis's clock.

        Only then do missing heartbeats mean that another worker is dead. When Redis was away or
        full, or its clock was set, all leases expire although no worker died. Their holders renew
        them when Redis answers again.
        """
        return self._heartbeat_at - self._steady_since >= LEASE_S

    def finish(self, held: HeldPart, files: Stored, decode_s: float) -> float | None:
        """Write what `ResultStore.put` returned and mark the part finished, atomically.

        Returns the seconds since its job was submitted. Returns None and writes nothing when
        another worker has taken the part over or its job has ended.
        """
        named = [item for file in results.fields(files) for item in file]
        head = (held.part, held.execution, self._ttl, f"{decode_s:.6f}")
        total_s = self._run("finish", *head, *named)
        return None if total_s is None else float(total_s)

    def fail(self, held: HeldPart, reason: str, cause: Cause) -> bool:
        """Fail the part and its job, with a `reason` for the client and a `cause` for the metrics.
        False when the execution does not own the part."""
        told = (held.part, held.execution, self._ttl, reason, cause)
        return bool(self._run("fail", *told))

    def put_back(
        self, held: HeldPart | Claim, cause: Cause | None = None, reason: str = ""
    ) -> Status | None:
        """Put a part back at the front of the queue. A `cause` means that it could not be drawn
        here, which uses up one retry. After the last retry the part fails with `reason`.

        Returns its state; None when the execution did not own the part.
        """
        state = self._run("put_back", held.part, held.execution, self._ttl, cause or "", reason)
        return None if state is None else cast(Status, state.decode())

    def others_live(self) -> bool:
        """Whether other workers of this queue are alive."""
        now, _ = self._redis.time()
        entries = cast("list[bytes]", self._redis.zrangebyscore(keys.WORKERS, now, "+inf"))
        names = [entry.decode(errors="replace").split("|", 2) for entry in entries]
        return any(each[0] == self.queue and each[-1] != self.worker for each in names)

    def was_canceled(self, held: HeldPart) -> bool:
        """Whether a part was canceled: it ended without being finished or failed."""
        asked = [f"outcome:{held.index}", "ended_at"]
        outcome, ended = cast(
            "list[bytes | None]", self._redis.hmget(keys.RECORD + held.job, asked)
        )
        return outcome == b"canceled" or (outcome is None and ended is not None)

    def sweep(self) -> int:
        """Put the parts of dead workers back in the queue; returns how many. Any `steady` worker
        may do this."""
        return int(self._run("sweep", LEASE_S, self._ttl))

    def _run(self, name: str, *args: str | int | float | bytes) -> Any:
        return self._scripts[name](self.queue, *args)


def read_part(claim: Claim) -> ImageRequest:
    """The image request in a claimed record.

    RefusedPart when the record is not exactly what `JobStore.submit` writes. Nothing that the
    record names is imported, called or contacted.
    """
    for name in _FORBIDDEN:
        if claim.fields.get(name):
            raise RefusedPart(f"{claim.part}: has {name.decode()}")
    function, instance, args, kwargs = _payload(claim)
    if function != keys.FUNCTION or instance is not None or args != []:
        raise RefusedPart(f"{claim.part}: calls {str(function)[:80]!r}, not {keys.FUNCTION!r}")
    if not isinstance(kwargs, dict) or set(kwargs) != {"job_id", "index", "image"}:
        raise RefusedPart(f"{claim.part}: its arguments are not job_id, index and image")
    try:
        own = keys.split_part_id(claim.part) == (kwargs["job_id"], kwargs["index"])
        image = ImageRequest.from_dict(kwargs["image"])
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedPart(f"{claim.part}: not an image request: {error!r}") from error
    if not own:
        raise RefusedPart(f"{claim.part}: its arguments are for another part")
    return image


def _payload(claim: Claim) -> list[Any]:
    """The four values of RQ's `data` field: function, instance, args, kwargs."""
    packed = claim.fields.get(b"data", b"")
    try:
        unpacker = zlib.decompressobj()
        payload = json.loads(unpacker.decompress(packed, _MAX_PAYLOAD_BYTES))
    except (zlib.error, RecursionError, ValueError) as error:
        raise RefusedPart(f"{claim.part}: payload is not JSON: {error!r}") from error
    if not isinstance(payload, list) or len(payload) != 4 or unpacker.unconsumed_tail:
        raise RefusedPart(f"{claim.part}: payload is not a function and its arguments")
    return payload
