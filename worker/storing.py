"""From files in memory to where they are durable, in threads beside the decode.

Files that stay in Redis need no thread: `PartStore.finish` writes them. Those that become objects
are sent by threads, also on a CPU, where such threads wait for the network and take no core from
the decode. While the storage is away they wait here, each sent again until it is stored or nobody
wants it any more. Knows no RQ and no engine.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import redis

from runtime.objects import ObjectsAway
from store.parts import HeldPart
from store.results import ResultStore, Stored

Key = TypeVar("Key")

THREADS = 8
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0
AWAY = (ObjectsAway, redis.RedisError)

log = logging.getLogger("pathar.worker")


@dataclass(frozen=True)
class Put(Generic[Key]):
    """Files that are where they are durable, and the seconds that it took; `key` says whose."""

    key: Key
    files: Stored
    store_s: float


class Storer(Generic[Key]):
    """Stores files of parts for as long as each is `wanted`. `give` and `collect` are for one
    thread; the rest may be called from any.
    """

    def __init__(self, results: ResultStore, wanted: Callable[[HeldPart], bool]) -> None:
        self._results, self._wanted = results, wanted
        self._done: list[Put[Key]] = []
        self._pending: set[Future[Put[Key] | None]] = set()
        self._redis_away = False
        self._tidying = threading.Lock()
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(THREADS, "storer") if results.remote else None

    @property
    def backlog(self) -> int:
        """Files of so many parts were given and not collected."""
        return len(self._done) + len(self._pending)

    def give(self, key: Key, held: HeldPart, files: Mapping[str, bytes]) -> None:
        """Store a part's files."""
        if self._pool is None:
            self._done.append(
                Put(key, self._results.put(held.job, held.index, held.execution, files), 0.0)
            )
        else:
            self._pending.add(self._pool.submit(self._put, key, held, files, time.monotonic()))

    def collect(self, timeout: float = 0.0) -> list[Put[Key]]:
        """What is stored now; waits up to `timeout` seconds for one. What nobody wanted any more
        is left out."""
        if timeout and self._pending and not self._done:
            wait(self._pending, timeout, FIRST_COMPLETED)
        ended = {future for future in self._pending if future.done()}
        self._pending -= ended
        stored = (future.result() for future in ended)
        done = [*self._done, *(put for put in stored if put is not None)]
        self._done.clear()
        return done

    def discard(self, held: HeldPart) -> None:
        """Delete what was stored of a part, as it was not accepted."""
        self._beside(lambda: self._discard(held))

    def tidy(self) -> None:
        """Delete what no job has any more, unless that is under way."""
        self._beside(self._tidy)

    def close(self) -> None:
        """Forget what is not stored; requests under way end first."""
        self._closed.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _beside(self, call: Callable[[], None]) -> None:
        if self._pool is not None:
            with suppress(RuntimeError):  # closed meanwhile
                self._pool.submit(call)

    def _put(
        self, key: Key, held: HeldPart, files: Mapping[str, bytes], since: float
    ) -> Put[Key] | None:
        backoff = FIRST_BACKOFF_S
        while self._wanted(held) and not self._closed.is_set():
            try:
                stored = self._results.put(held.job, held.index, held.execution, files)
            except AWAY as error:
                self._say(error)
                self._closed.wait(backoff)
                backoff = min(2 * backoff, MAX_BACKOFF_S)
                continue
            self._redis_away = False
            if self._wanted(held):
                return Put(key, stored, time.monotonic() - since)
            self._discard(held)
        return None

    def _say(self, error: Exception) -> None:
        """Tell of Redis once; `runtime.objects` tells of the storage."""
        if isinstance(error, redis.RedisError):
            if not self._redis_away:
                log.warning("Redis: %s; trying again", error)
            self._redis_away = True

    def _discard(self, held: HeldPart) -> None:
        with suppress(*AWAY):  # then it goes with its job
            self._results.discard(held.job, held.index, held.execution)

    def _tidy(self) -> None:
        if not self._tidying.acquire(blocking=False):
            return
        try:
            count = self._results.tidy()
            if count:
                log.info("deleted what %d jobs had stored", count)
        except AWAY as error:
            log.debug("not tidied: %s", error)
        finally:
            self._tidying.release()
