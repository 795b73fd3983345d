"""What workers do with parts: claim, start, keep, finish, fail, hand back, sweep.

Each change is one Lua script of `scripts.py`. A part is read as raw bytes and checked here before
anything in it is believed; RQ's own loader, which would import what a record names, is never used.
Knows no engine and no pixels.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast
from uuid import uuid4

import redis

from model.contract import Status
from model.request import ImageRequest
from store import keys, results
from store.results import Stored
from store.scripts import Script

Cause = Literal["engine", "timeout", "request", "lost worker"]
"""Why a part fails: the engine cannot draw it, it takes too long, the request cannot be drawn, its
workers died."""

LEASE_S = 10.0
"""A part whose holder has said nothing for this long is taken over."""
GAP_S = LEASE_S / 2
"""A worker whose signs of life lie further apart may not have reached Redis in between, and others
neither: this long, and their own next sign is due before their leases run out."""
_MAX_PAYLOAD = 1 << 20
"""The most bytes that a part's payload may unpack to."""
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
    """A queued record that is none of ours: another function, callbacks, webhooks, other data."""


@dataclass(frozen=True)
class Claim:
    """A part taken from the queue and not looked at yet: its id and RQ's raw hash, and the
    execution that may start it."""

    part: str
    fields: Mapping[bytes, bytes]
    execution: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True)
class HeldPart:
    """A part that this worker has started. `execution` is its proof of ownership.

    `losses` says how many workers died over it, `queue_s` how long it waited; `priority`, the name
    of the API `key` and the `trace` are its job's.
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
        """Its id."""
        return keys.part_id(self.job, self.index)


class PartStore:
    """The parts of one queue, for one worker. Thread-safe, as its client is; but for `beat`.
    `damaged` is told how many records could not be read."""

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
        self._beaten_at, self._steady_since = float("-inf"), float("inf")
        names = ("claim", "start", "refuse", "beat", "finish", "fail", "put_back", "sweep")
        self._scripts = {name: Script(client, name, damaged) for name in names}

    def claim(self, count: int) -> list[Claim]:
        """Take up to `count` parts, oldest first. Until `start`, they are only set aside."""
        return [
            Claim(part.decode(errors="replace"), dict(zip(flat[::2], flat[1::2], strict=True)))
            for part, flat in self._run("claim", count, int(LEASE_S), uuid4().hex)
        ]

    def start(self, claim: Claim, image: ImageRequest) -> HeldPart | None:
        """Own a claimed part; None when it is somebody else's, canceled or gone. Where the answer
        was lost it may be asked again."""
        told = (claim.part, claim.execution, self.worker, LEASE_S, self._ttl)
        started = self._run("start", *told)
        if started is None:
            return None
        losses, queue_s, *told = started
        job, index = keys.split_part_id(claim.part)
        held = (job, index, claim.execution, image, int(losses), float(queue_s))
        return HeldPart(*held, *(value.decode(errors="replace") for value in told))

    def refuse(self, claim: Claim, reason: str) -> bool:
        """Mark a claimed record failed, unread; the job that it stood for fails with `reason`.
        False when it had been taken away with RQ's own tools: its job is canceled."""
        return bool(self._run("refuse", claim.part, self._ttl, reason))

    def beat(self, held: Sequence[tuple[HeldPart | Claim, int]], steps: int) -> set[str]:
        """Renew the leases of parts and say at which of an image's `steps` each of them is.

        Returns the executions that do not own their part.
        """
        told = [item for part, step in held for item in (part.part, part.execution, step)]
        before, self._beaten_at = self._beaten_at, float("-inf")  # stays so when Redis refuses
        time, lost = self._run("beat", LEASE_S, self._ttl, steps, *told)
        self._beaten_at = float(time)
        if not 0 <= self._beaten_at - before <= GAP_S:
            self._steady_since = self._beaten_at
        return {execution.decode() for execution in lost}

    @property
    def steady(self) -> bool:
        """Whether this worker has beaten without a gap for LEASE_S, by the clock of Redis.

        Only then is another's silence its own. When Redis was away or full, or its clock was set,
        all leases run out though nobody died; their holders renew them once they get through.
        """
        return self._beaten_at - self._steady_since >= LEASE_S

    def finish(self, held: HeldPart, files: Stored, decode_s: float) -> float | None:
        """Write what `ResultStore.put` said of the files and mark the part finished, in one step.

        Returns the seconds since its job was submitted; None when refused: another worker has
        taken the part over, or its job has ended. Nothing of it is written then.
        """
        named = [item for file in results.fields(files) for item in file]
        head = (held.part, held.execution, self._ttl, f"{decode_s:.6f}")
        total_s = self._run("finish", *head, *named)
        return None if total_s is None else float(total_s)

    def fail(self, held: HeldPart, reason: str, cause: Cause) -> bool:
        """Fail the part and so its job, for a reason that the client reads and a cause that is
        counted; False when refused."""
        told = (held.part, held.execution, self._ttl, reason, cause)
        return bool(self._run("fail", *told))

    def put_back(
        self, held: HeldPart | Claim, cause: Cause | None = None, reason: str = ""
    ) -> Status | None:
        """Put a part back at the front of the queue. With a `cause` it could not be drawn here,
        which costs it a try; after its last one it fails for that `reason`.

        Returns its state; None when it was not this execution's.
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
        """Whether a part ended without anybody drawing it."""
        asked = [f"outcome:{held.index}", "ended_at"]
        outcome, ended = cast(
            "list[bytes | None]", self._redis.hmget(keys.RECORD + held.job, asked)
        )
        return outcome == b"canceled" or (outcome is None and ended is not None)

    def sweep(self) -> int:
        """Take back what dead workers held; returns how many parts. Any worker may that is
        `steady`."""
        return int(self._run("sweep", LEASE_S, self._ttl))

    def _run(self, name: str, *args: str | int | float | bytes) -> Any:
        return self._scripts[name](self.queue, *args)


def read_part(claim: Claim) -> ImageRequest:
    """The image that a claimed record asks for.

    RefusedPart when it is not exactly what `JobStore.submit` writes. Nothing named in the record
    is imported, called or contacted.
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
        raise RefusedPart(f"{claim.part}: names another part in its arguments")
    return image


def _payload(claim: Claim) -> list[Any]:
    """The four values of RQ's `data` field: function, instance, args, kwargs."""
    packed = claim.fields.get(b"data", b"")
    try:
        unpacker = zlib.decompressobj()
        payload = json.loads(unpacker.decompress(packed, _MAX_PAYLOAD))
    except (zlib.error, RecursionError, ValueError) as error:
        raise RefusedPart(f"{claim.part}: payload is not JSON: {error!r}") from error
    if not isinstance(payload, list) or len(payload) != 4 or unpacker.unconsumed_tail:
        raise RefusedPart(f"{claim.part}: payload is not a function and its arguments")
    return payload
