"""Waiting for jobs without a thread per request.

One listener task per process hears on Redis channels which jobs have ended, to which something has
happened, and whose keys were revoked, and wakes whoever waits for that. Waiters also look by
themselves now and then, so a message that is lost (Redis restarted, the listener away) costs
seconds and never an answer. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import redis
import redis.asyncio
from starlette.concurrency import run_in_threadpool

from model.contract import END_STATES
from store.job import Job
from store.keys import ENDED_CHANNEL, EVENTS_CHANNEL, REVOKED_CHANNEL, owned_id

LOOK_SECONDS = 10.0
"""Whoever waits looks by itself within this time, should a message be lost."""
RECONNECT_SECONDS = 1.0
LISTEN_SECONDS = 30.0

log = logging.getLogger(__name__)


def look_pause() -> float:
    """Seconds to the next look by oneself. Not the same for all: those that came together would
    look together ever after."""
    return random.uniform(0.5, 1.0) * LOOK_SECONDS


Topic = tuple[str, str]
"""A channel, and what is published there: a job's id in Redis (ENDED_CHANNEL, EVENTS_CHANNEL) or an
owner's (REVOKED_CHANNEL)."""


class JobNews:
    """Wakes waiting requests on news of their job, or when the process is asked to stop."""

    def __init__(self, redis_url: str) -> None:
        self.closing = False
        self._redis_url = redis_url
        self._waiting: dict[Topic, set[asyncio.Event]] = {}

    @contextmanager
    def watch(self, *topics: Topic) -> Iterator[asyncio.Event]:
        """An event that is set on each message about one of the topics, for as long as the context
        lasts."""
        event = asyncio.Event()
        for topic in topics:
            self._waiting.setdefault(topic, set()).add(event)
        try:
            yield event
        finally:
            for topic in topics:
                events = self._waiting[topic]
                events.discard(event)
                if not events:
                    del self._waiting[topic]

    def close(self) -> None:
        """Wake every waiter for good, so that each request is answered with what is known."""
        self.closing = True
        self._wake_all()

    async def listen(self) -> None:
        """Hear of jobs until canceled; reconnects for ever."""
        while True:
            try:
                await self._listen_once()
            except (redis.RedisError, OSError) as error:
                log.warning("lost the channels of jobs (%s); reconnecting", error)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen_once(self) -> None:
        client = redis.asyncio.Redis.from_url(
            self._redis_url, socket_connect_timeout=5, socket_timeout=LISTEN_SECONDS + 5
        )
        async with client, client.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(ENDED_CHANNEL, EVENTS_CHANNEL, REVOKED_CHANNEL)
            self._wake_all()
            while True:
                message = await channel.get_message(timeout=LISTEN_SECONDS)
                if message is None:
                    await channel.ping()
                elif message["type"] == "message":
                    self._wake((message["channel"].decode(), message["data"].decode()))

    def _wake(self, topic: Topic) -> None:
        for event in self._waiting.get(topic, ()):
            event.set()

    def _wake_all(self) -> None:
        for topic in self._waiting:
            self._wake(topic)


async def wait_for_end(
    job: Job, look: Callable[[], Job | None], news: JobNews, seconds: float
) -> Job:
    """The job as it is when it has ended, `seconds` are over or the process stops.

    Redis being away while waiting is no error: the job is accepted and its state is looked up
    again. A job whose record is gone is returned as it was last seen. What else `look` raises ends
    the wait.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    topics = (ENDED_CHANNEL, owned_id(job.owner, job.id)), (REVOKED_CHANNEL, job.owner)
    with news.watch(*topics) as woken:
        while True:
            woken.clear()
            with suppress(redis.RedisError):
                seen: Job | None = await run_in_threadpool(look)
                job = seen or job
            left = deadline - loop.time()
            if job.status in END_STATES or left <= 0 or news.closing:
                return job
            with suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), min(left, look_pause()))
