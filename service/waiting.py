"""Waits for jobs without a thread per request.

One subscriber task per process receives from Redis channels which jobs have ended, which have new
events, and which keys were revoked. It wakes the clients that wait for this. They also poll from
time to time: a lost message (Redis restarted, the subscriber disconnected) costs seconds, never an
answer. Knows no HTTP.
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

from pathar.contract import END_STATES
from store.job import Job
from store.keys import ENDED_CHANNEL, EVENTS_CHANNEL, REVOKED_CHANNEL, owned_id

LOOK_S = 10.0
"""A waiting client polls at least this often, in case a message is lost."""
RECONNECT_S = 1.0
LISTEN_S = 30.0

log = logging.getLogger(__name__)


def look_pause() -> float:
    """Seconds until the next poll. Random, so that clients that came together do not keep polling
    at the same time."""
    return random.uniform(0.5, 1.0) * LOOK_S


Topic = tuple[str, str]
"""A channel and a message on it: the id of a job in Redis (ENDED_CHANNEL, EVENTS_CHANNEL) or of an
owner (REVOKED_CHANNEL)."""


class Subscriber:
    """Wakes waiting requests on a message about their job, or when the process stops."""

    def __init__(self, redis_url: str) -> None:
        self.closing = False
        self._redis_url = redis_url
        self._waiting: dict[Topic, set[asyncio.Event]] = {}

    @contextmanager
    def watch(self, *topics: Topic) -> Iterator[asyncio.Event]:
        """An event that is set by each message on one of the topics, until the context ends."""
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
        """Wake all waiting requests, now and from now on: each is answered with the last known
        state."""
        self.closing = True
        self._wake_all()

    async def listen(self) -> None:
        """Receive messages until canceled; always reconnects."""
        while True:
            try:
                await self._listen_once()
            except (redis.RedisError, OSError) as error:
                log.warning("lost the subscription to Redis channels (%s); reconnecting", error)
            await asyncio.sleep(RECONNECT_S)

    async def _listen_once(self) -> None:
        client = redis.asyncio.Redis.from_url(
            self._redis_url, socket_connect_timeout=5, socket_timeout=LISTEN_S + 5
        )
        async with client, client.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(ENDED_CHANNEL, EVENTS_CHANNEL, REVOKED_CHANNEL)
            self._wake_all()
            while True:
                message = await channel.get_message(timeout=LISTEN_S)
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
    job: Job, look: Callable[[], Job | None], subscriber: Subscriber, seconds: float
) -> Job:
    """The job once it has ended, after `seconds`, or when the process stops; whichever is first.

    Ignores RedisError while waiting: the job is accepted, and `look` is called again. If the record
    is gone, returns the job as it was last seen. Raises any other error of `look`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    topics = (ENDED_CHANNEL, owned_id(job.owner, job.id)), (REVOKED_CHANNEL, job.owner)
    with subscriber.watch(*topics) as woken:
        while True:
            woken.clear()
            with suppress(redis.RedisError):
                seen: Job | None = await run_in_threadpool(look)
                job = seen or job
            left = deadline - loop.time()
            if job.status in END_STATES or left <= 0 or subscriber.closing:
                return job
            with suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), min(left, look_pause()))
