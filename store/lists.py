"""Lists of an owner's jobs, in pages of summaries; Redis is asked for many jobs at once.

The images of ended jobs are not read. Knows no HTTP.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from typing import Any, cast

import redis

from pathar.contract import Status
from store import keys
from store.job import SUMMED_UP, Page, Summary, read_summary
from store.registry import Registry, Speed
from store.scripts import UNREADABLE, Script, unreadable

SCANNED = 500
"""The most jobs that are read for one page of a filtered list."""
MOST_JOBS = 100
"""The most jobs of a filtered list that one script call reads."""
MOST_IMAGES = 10_000
"""A script call stops after this many images of unfinished jobs, so that Redis stays responsive."""


class BadCursor(ValueError):
    """The text is not a cursor of a page."""


class JobLists:
    """Returns pages of jobs. Thread-safe, as its client is."""

    def __init__(self, client: redis.Redis, registry: Registry) -> None:
        self._redis = client
        self._registry = registry
        self._summaries = Script(client, "summaries")

    def page(
        self, owner: str, status: Status | None, label: str | None, cursor: str | None, limit: int
    ) -> Page:
        """Up to `limit` of the owner's jobs after a cursor, newest first. BadCursor."""
        ids = self._ids(owner, cursor)
        speed = cache(self._registry.speed)  # each queue is read once
        found: list[Summary] = []
        left: list[tuple[float, str]] = []
        looked = 0
        while True:
            filtered = status is not None or label is not None
            wanted = min(MOST_JOBS if filtered else limit - len(found), SCANNED - looked)
            left += islice(ids, max(0, wanted - len(left)))
            if not left:
                return Page(tuple(found), None)
            answers = self._look([job for _, job in left], label)
            for (at, job), answer in zip(left, answers, strict=False):
                looked += 1
                # None: the job has another label, or has expired; then `submit` removes its entry
                summary = None if answer is None else _read(job, answer, speed)
                if summary is not None and status in (None, summary.status):
                    found.append(summary)
                if len(found) == limit or looked == SCANNED:
                    return Page(tuple(found), _cursor(at, job))
            left = left[len(answers) :]

    def _look(self, jobs: list[str], label: str | None) -> list[Any]:
        ask: dict[str, Any] = {"names": SUMMED_UP, "most": MOST_IMAGES}
        if label is not None:
            ask["label"] = label
        return cast(list[Any], self._summaries(json.dumps(ask), *jobs))

    def _ids(self, owner: str, cursor: str | None) -> Iterator[tuple[float, str]]:
        """Yields the times and ids of an owner's jobs after a cursor, newest first."""
        before, last = _position(cursor) if cursor else (float("inf"), "")
        skipping = bool(cursor)
        start = 0
        while True:
            found = self._redis.zrevrangebyscore(
                keys.JOBS + owner, before, "-inf", start=start, num=SCANNED, withscores=True
            )
            chunk = cast(list[tuple[bytes, float]], found)
            for member, at in chunk:
                job_id = member.decode()
                if skipping and at == before and job_id >= last:
                    continue
                yield at, job_id
            if len(chunk) < SCANNED:
                return
            start += SCANNED


def _read(job: str, answer: list[Any], speed: Callable[[str], Speed | None]) -> Summary | None:
    values, states, done, slowest, places = answer
    named = zip(SUMMED_UP, values, strict=True)
    try:
        fields = {name: value.decode() for name, value in named if value is not None}
        measured = speed(fields["queue"]) if places or b"started" in states else None
        known = [cast(Status, state.decode()) for state in states]
        return read_summary(job, fields, known, done, slowest, places, measured)
    except UNREADABLE as error:
        unreadable(f"job {job}", error)
        return None


def _cursor(at: float, job: str) -> str:
    return base64.urlsafe_b64encode(f"{at!r} {job}".encode()).decode().rstrip("=")


def _position(cursor: str) -> tuple[float, str]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        at, job = base64.b64decode(padded, altchars=b"-_", validate=True).decode().split(" ")
        place = float(at)
    except ValueError as error:
        raise BadCursor(cursor) from error
    if not math.isfinite(place):
        raise BadCursor(cursor)
    return place, job
