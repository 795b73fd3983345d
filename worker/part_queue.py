"""The queue as the worker's loop sees it: parts to draw come from it, and their ends go to it.

While Redis is away, no part is taken and the ends wait. Knows no engine, no RQ and no Lua.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import redis

from pathar.contract import Status
from store.parts import Cause, Claim, PartStore, RefusedPart, read_part
from store.scripts import LOST_REASON
from worker.health import EngineHealth
from worker.ledger import Ledger, Task
from worker.reports import Reports
from worker.storing import FIRST_BACKOFF_S, MAX_BACKOFF_S

TAKE_EVERY_S = 0.01
"""Between decode steps, the shortest time between two polls of the queue."""
LEAVE_S = 0.5
"""How long an image that failed in this worker is left to other workers."""

log = logging.getLogger("pathar.worker")


@dataclass
class PartQueue:
    """Moves parts from the queue to `ledger` and back. `discard` deletes a rejected part's files.
    Not thread-safe: only the loop's thread may use it."""

    parts: PartStore
    ledger: Ledger
    reports: Reports
    health: EngineHealth
    discard: Callable[[Task], None]
    _again_at: float = 0.0
    _take_again_at: float = 0.0
    _backoff: float = 0.0

    def take(self) -> None:
        """Claim and start as many parts as there are free slots."""
        at, room = time.monotonic(), self.ledger.room()
        if room <= 0 or at < max(self._take_again_at, self._again_at, self.health.rest_until):
            return
        self._take_again_at = at + TAKE_EVERY_S
        try:
            self.ledger.claims = self.ledger.claims or self.parts.claim(room)
            for claim in self.ledger.claims:
                self._begin(claim)
                self.ledger.claims = self.ledger.claims[1:]
            for task in reversed(self.ledger.spare()):
                self.parts.put_back(task.held)
                self.ledger.remove(task)
            self._backoff = 0.0
        except redis.RedisError as error:
            self._wait(error)

    def _begin(self, claim: Claim) -> None:
        if self.health.failed_with(claim.part) and self.parts.others_live():
            self.parts.put_back(claim)
            self._take_again_at = time.monotonic() + LEAVE_S
            return
        try:
            image = self.parts.completed(claim, read_part(claim))
        except RefusedPart as error:
            if self.parts.refuse(claim, f"refused: {error}"):
                self.reports.refused(error)
            return
        held = self.parts.start(claim, image)
        if held is not None:
            self.reports.began(self.ledger.add(held))

    def end(self) -> None:
        """Write the ends of tasks to Redis, oldest first. Retries later when Redis is away."""
        try:
            for task in self.ledger.at("ending") if time.monotonic() >= self._again_at else ():
                self.reports.ended(task, self._end(task))
                self.ledger.remove(task)
        except redis.RedisError as error:
            self._wait(error)

    def _end(self, task: Task) -> Status | None:
        """Redis rejects the end, with None, when this worker no longer owns the part."""
        held, started = task.held, time.monotonic()
        if task.failure is not None and task.cause != "request":
            return self.parts.put_back(held, task.cause, task.failure)
        if task.failure is not None:
            return "failed" if self.parts.fail(held, task.failure, task.cause) else None
        task.total_s = self.parts.finish(held, task.files, task.decode_s)
        task.store_s += time.monotonic() - started
        if task.total_s is None:
            self.discard(task)
        return None if task.total_s is None else "finished"

    def hand_back(self, cause: Cause | None) -> None:
        """Put all held parts back in the queue, in their old order. A `cause` costs each a retry.
        RedisError is only logged: the leases then expire."""
        self._again_at = 0.0
        self.end()
        try:
            for claim in reversed(self.ledger.claims):
                self.parts.put_back(claim)
            for task in reversed(self.ledger.at()):
                self.parts.put_back(task.held, cause, LOST_REASON)
                self.reports.left(task, "handed_back")
                self.ledger.remove(task)
        except redis.RedisError as error:
            log.warning("could not hand back the parts; their leases will expire: %s", error)

    def _wait(self, error: redis.RedisError) -> None:
        if self._backoff == 0.0:
            log.warning("Redis: %s; trying again", error)
        self._backoff = min(max(2 * self._backoff, FIRST_BACKOFF_S), MAX_BACKOFF_S)
        self._again_at = time.monotonic() + self._backoff
