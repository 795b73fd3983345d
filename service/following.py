"""Event streams of jobs, without a thread or a query to Redis for each reader.

Each job with readers in this process has one feed: a task that reads the job's events and encodes
each event once, as a server-sent event, for all readers. Knows no HTTP.
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

from pathar.contract import END_STATES
from service.waiting import Subscriber, look_pause
from store.access import KeyStore, Owner
from store.job import Event
from store.jobs import JobStore
from store.keys import EVENTS_CHANNEL, REVOKED_CHANNEL, owned_id

PING = b": ping\n\n"
PING_S = 15.0
"""A stream without events sends a ping this often, so that proxies and clients keep it open."""
GATHER_S = 0.001
LONGEST_GATHER_S = 0.2
"""After a notification a feed waits GATHER_S for each reader, at most LONGEST_GATHER_S, and sends
the events of this time together."""
MOST_EVENTS = 256
"""The most events that are read from Redis, or sent to a reader, at once."""

T = TypeVar("T")
log = logging.getLogger("pathar.service")


class Feeds:
    """The feeds of one process, by job."""

    def __init__(self, jobs: JobStore, keys: KeyStore, subscriber: Subscriber) -> None:
        self._jobs, self._keys, self._subscriber = jobs, keys, subscriber
        self._feeds: dict[str, Feed] = {}
        self._readers: Counter[str] = Counter()

    def readers(self, owner: Owner) -> int:
        """The number of open streams of an owner."""
        return self._readers[owner.id]

    def find(self, owner: Owner, job_id: str) -> Feed | None:
        """The feed of a job; None when it has no reader."""
        return self._feeds.get(owned_id(owner.id, job_id))

    @contextmanager
    def follow(self, owner: Owner, job_id: str) -> Iterator[Feed]:
        """A job's feed, for one reader, until the context ends."""
        name = owned_id(owner.id, job_id)
        feed = self._feeds.get(name)
        if feed is None:
            feed = self._feeds[name] = Feed(owner, job_id, self._jobs, self._keys, self._subscriber)
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
                self._readers += Counter()  # removes owners without readers


class Feed:
    """All events of one job, past and new, until `over`."""

    def __init__(
        self, owner: Owner, job_id: str, jobs: JobStore, keys: KeyStore, subscriber: Subscriber
    ) -> None:
        self.readers = 0
        self.over = False
        self._owner, self._job_id = owner, job_id
        self._jobs, self._keys, self._subscriber = jobs, keys, subscriber
        self._ids: list[tuple[int, int]] = []
        self._told: list[bytes] = []
        self._pulse = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        """Stop the feed: it has no readers."""
        self._task.cancel()

    def ended_by(self, after: str) -> bool:
        """Whether there are no further events after the one with the id `after`."""
        return self.over and self._place(after) == len(self._told)

    async def read(self, after: str) -> AsyncIterator[bytes]:
        """Yields the server-sent events after the one with the id `after`."""
        at = 0
        while True:
            pulse = self._pulse
            at = max(at, self._place(after))
            while at < len(self._told):
                pieces = self._told[at : at + MOST_EVENTS]
                at += len(pieces)
                yield b"".join(pieces)
            if self.over:
                return
            if pulse is self._pulse:
                try:
                    await asyncio.wait_for(pulse.wait(), PING_S)
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
        """Read events until the last one, the end of the process, or the revocation of the key."""
        after, ended, quiet = "0", False, True
        now = asyncio.get_running_loop().time
        due = now() + look_pause()
        job = owned_id(self._owner.id, self._job_id)
        topics = (EVENTS_CHANNEL, job), (REVOKED_CHANNEL, self._owner.id)
        with self._subscriber.watch(*topics) as woken:
            while not self._subscriber.closing:
                heard = woken.is_set()
                woken.clear()
                read = partial(self._jobs.events, self._job_id, after, owner=self._owner)
                events = await _asked(partial(read, count=MOST_EVENTS))
                if events:
                    after, quiet = events[-1].id, False
                    self._tell(events)
                    if events[-1].kind in END_STATES:
                        return
                    continue
                if ended and events == []:  # complete: the job had ended before this read
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
                    await asyncio.sleep(min(LONGEST_GATHER_S, self.readers * GATHER_S))

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
    """The answer of the store; None while Redis is away. The stream continues when it is back."""
    with suppress(redis.RedisError):
        return await run_in_threadpool(ask)
    return None
