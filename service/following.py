"""Following jobs without a thread or a question to Redis for each reader.

One feed for each job that somebody follows in this process: a task that reads what happens to it
and encodes each event once, as a server-sent event, for all its readers. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import redis
from starlette.concurrency import run_in_threadpool

from model.contract import END_STATES
from service.waiting import JobNews, look_pause
from store.access import KeyStore, Owner
from store.job import Event
from store.jobs import JobStore
from store.keys import EVENTS_CHANNEL, REVOKED_CHANNEL, owned_id

PING = b": ping\n\n"
PING_SECONDS = 15.0
"""A stream that has nothing to tell says so, or proxies and clients take it for dead."""
GATHER_SECONDS = 0.001
LONGEST_GATHER_SECONDS = 0.2
"""After news a feed waits, the first for each of its readers and the second at most, and tells
what came meanwhile in one go."""
AT_ONCE = 256
"""Events that are read from Redis, and sent to a reader, in one go."""

T = TypeVar("T")
log = logging.getLogger("pathar.service")


class Feeds:
    """Of one process, by job."""

    def __init__(self, jobs: JobStore, keys: KeyStore, news: JobNews) -> None:
        self._jobs, self._keys, self._news = jobs, keys, news
        self._feeds: dict[str, Feed] = {}
        self._readers: Counter[str] = Counter()

    def readers(self, owner: Owner) -> int:
        """How many streams of an owner are open."""
        return self._readers[owner.id]

    def find(self, owner: Owner, job_id: str) -> Feed | None:
        """The feed of a job that somebody follows."""
        return self._feeds.get(owned_id(owner.id, job_id))

    @contextmanager
    def follow(self, owner: Owner, job_id: str) -> Iterator[Feed]:
        """A job's feed, for as long as the context lasts."""
        name = owned_id(owner.id, job_id)
        feed = self._feeds.get(name)
        if feed is None:
            feed = self._feeds[name] = Feed(owner, job_id, self._jobs, self._keys, self._news)
        feed.readers += 1
        self._readers[owner.id] += 1
        try:
            yield feed
        finally:
            self._readers[owner.id] -= 1
            feed.readers -= 1
            if not feed.readers:
                feed.close()
                del self._feeds[name]
                self._readers += Counter()  # which forgets those that have none


class Feed:
    """What has happened to one job, from its beginning, and what happens to it until `over`."""

    def __init__(
        self, owner: Owner, job_id: str, jobs: JobStore, keys: KeyStore, news: JobNews
    ) -> None:
        self.readers = 0
        self.over = False
        self._owner, self._job_id = owner, job_id
        self._jobs, self._keys, self._news = jobs, keys, news
        self._ids: list[tuple[int, int]] = []
        self._told: list[bytes] = []
        self._pulse = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        """Nobody reads it any more."""
        self._task.cancel()

    def ended_by(self, after: str) -> bool:
        """Whether there is nothing more to come after an event."""
        return self.over and self._place(after) == len(self._told)

    async def read(self, after: str) -> AsyncIterator[bytes]:
        """Server-sent events after the one whose id is `after`."""
        at = 0
        while True:
            pulse = self._pulse
            at = max(at, self._place(after))
            while at < len(self._told):
                pieces = self._told[at : at + AT_ONCE]
                at += len(pieces)
                yield b"".join(pieces)
            if self.over:
                return
            if pulse is self._pulse:
                try:
                    await asyncio.wait_for(pulse.wait(), PING_SECONDS)
                except TimeoutError:
                    yield PING

    def _place(self, after: str) -> int:
        return bisect_right(self._ids, _position(after))

    async def _run(self) -> None:
        try:
            await self._follow()
        except Exception:
            log.exception("a stream of events ends early", extra={"job": self._job_id})
        finally:
            self.over = True
            self._pulse.set()

    async def _follow(self) -> None:
        """Until the job's last event, or until its owner's key is revoked or the process stops."""
        after, ended, quiet = "0", False, True
        now = asyncio.get_running_loop().time
        due = now() + look_pause()
        job = owned_id(self._owner.id, self._job_id)
        with self._news.watch((EVENTS_CHANNEL, job), (REVOKED_CHANNEL, self._owner.id)) as woken:
            while not self._news.closing:
                heard = woken.is_set()
                woken.clear()
                read = partial(self._jobs.events, self._job_id, after, owner=self._owner)
                events = await _asked(partial(read, count=AT_ONCE))
                if events:
                    after, quiet = events[-1].id, False
                    self._tell(events)
                    if events[-1].kind in END_STATES:
                        return
                    continue
                if ended and events == []:  # all were told, for the job was looked at before them
                    return
                looks = now() >= due
                if (looks or heard) and await _asked(self._admitted) is False:
                    return
                if looks:
                    ended = quiet and bool(await _asked(self._has_ended))
                    due, quiet = now() + look_pause(), True
                    continue
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), due - now())
                    await asyncio.sleep(min(LONGEST_GATHER_SECONDS, self.readers * GATHER_SECONDS))

    def _tell(self, events: list[Event]) -> None:
        self._ids += [_position(event.id) for event in events]
        self._told += [_encoded(event) for event in events]
        self._pulse.set()
        self._pulse = asyncio.Event()

    def _admitted(self) -> bool:
        return self._keys.admits(self._owner)

    def _has_ended(self) -> bool:
        job = self._jobs.get(self._job_id, owner=self._owner)
        return job is None or job.status in END_STATES


def _position(event_id: str) -> tuple[int, int]:
    """An event's place in its job's stream."""
    time, _, number = event_id.partition("-")
    return int(time), int(number or 0)


def _encoded(event: Event) -> bytes:
    data = json.dumps(dict(event.data), separators=(",", ":"))
    return f"event: {event.kind}\nid: {event.id}\ndata: {data}\n\n".encode()


async def _asked(ask: Callable[[], T]) -> T | None:
    """What the store says; None while Redis is away, for the stream goes on when it is back."""
    with suppress(redis.RedisError):
        return await run_in_threadpool(ask)
    return None
