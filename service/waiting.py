"""Waiting for jobs to end without a thread per request.

One listener task per process hears the ids of ended jobs on a Redis channel and wakes whoever
waits for them. Waiters also look by themselves now and then, so a message that is lost (Redis
restarted, the listener away) costs seconds and never an answer. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import redis
import redis.asyncio
from starlette.concurrency import run_in_threadpool

from store.jobs import END_STATES, Job
from store.keys import ENDED_CHANNEL

POLL_SECONDS = 5.0
RECONNECT_SECONDS = 1.0
LISTEN_SECONDS = 30.0

log = logging.getLogger(__name__)


class EndedJobs:
    """Wakes waiting requests when their job ends, or when the process is asked to stop."""

    def __init__(self, redis_url: str) -> None:
        self.closing = False
        self._redis_url = redis_url
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when the job ends, for as long as the context lasts."""
        event = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            events = self._waiting[job_id]
            events.discard(event)
            if not events:
                del self._waiting[job_id]

    def close(self) -> None:
        """Wake every waiter for good, so that each request is answered with what is known."""
        self.closing = True
        self._wake_all()

    async def listen(self) -> None:
        """Hear ended jobs until canceled; reconnects for ever."""
        while True:
            try:
                await self._listen_once()
            except (redis.RedisError, OSError) as error:
                log.warning("lost the channel of ended jobs (%s); reconnecting", error)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen_once(self) -> None:
        client = redis.asyncio.Redis.from_url(
            self._redis_url, socket_connect_timeout=5, socket_timeout=LISTEN_SECONDS + 5
        )
        async with client, client.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(ENDED_CHANNEL)
            self._wake_all()
            while True:
                message = await channel.get_message(timeout=LISTEN_SECONDS)
                if message is None:
                    await channel.ping()
                elif message["type"] == "message":
                    self._wake(message["data"].decode())

    def _wake(self, job_id: str) -> None:
        for event in self._waiting.get(job_id, ()):
            event.set()

    def _wake_all(self) -> None:
        for job_id in self._waiting:
            self._wake(job_id)


async def wait_for_end(
    job: Job, get: Callable[[str], Job | None], ended: EndedJobs, seconds: float
) -> Job:
    """The job as it is when it has ended, `seconds` are over or the process stops.

    Redis being away while waiting is no error: the job is accepted and its state is looked up
    again. A job whose record is gone is returned as it was last seen.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    with ended.watch(job.id) as woken:
        while True:
            woken.clear()
            with suppress(redis.RedisError):
                seen: Job | None = await run_in_threadpool(get, job.id)
                job = seen or job
            left = deadline - loop.time()
            if job.status in END_STATES or left <= 0 or ended.closing:
                return job
            with suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), min(left, POLL_SECONDS))
