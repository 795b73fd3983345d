"""Stores the files of images, in threads beside the decode.

Files that stay in Redis need no thread: `PartStore.finish` writes them. Threads upload the files
that become objects. This does not slow down the decode on a CPU, as the threads wait for the
network. While the storage is away, each upload is retried until it succeeds or the part is lost.
Knows no RQ and no engine.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress

import redis

from runtime.objects import ObjectsAway
from store.results import ResultStore
from worker.beside import Inline
from worker.ledger import Task

THREADS = 8
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0
AWAY = (ObjectsAway, redis.RedisError)

log = logging.getLogger("pathar.worker")


class Storer:
    """Stores the files of tasks; retries until each is stored or lost. One thread calls `give` and
    `collect`; any thread may call the other methods."""

    def __init__(self, results: ResultStore) -> None:
        self._results = results
        self._pending: list[Future[Task]] = []
        self._tidying = threading.Lock()
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(THREADS, "storer") if results.remote else Inline()

    def give(self, task: Task, files: Mapping[str, bytes]) -> None:
        """Start to store a task's files."""
        self._pending.append(self._pool.submit(self._put, task, files, time.monotonic()))

    def collect(self, timeout: float = 0.0) -> list[Task]:
        """The tasks that are now stored or lost. Waits up to `timeout` seconds for one."""
        if timeout and self._pending:
            wait(self._pending, timeout, FIRST_COMPLETED)
        ended = [future for future in self._pending if future.done()]
        for future in ended:
            self._pending.remove(future)
        return [future.result() for future in ended]

    def discard(self, task: Task) -> None:
        """Delete the stored files of a task that was not accepted. After an error they are deleted
        with their job."""
        if task.files:
            held = task.held
            self._beside(lambda: self._results.discard(held.job, held.index, held.execution))

    def tidy(self) -> None:
        """Delete the objects of expired and dropped jobs, unless a deletion is already running."""
        self._beside(self._tidy)

    def close(self) -> None:
        """Stop uploads and their retries. Waits for running requests."""
        self._closed.set()
        self._pool.shutdown(cancel_futures=True)

    def _beside(self, call: Callable[[], None]) -> None:
        def quietly() -> None:
            with suppress(*AWAY):
                call()

        with suppress(RuntimeError):  # the pool has been shut down
            self._pool.submit(quietly)

    def _put(self, task: Task, files: Mapping[str, bytes], since: float) -> Task:
        held, backoff = task.held, FIRST_BACKOFF_S
        while task.lost is None and not self._closed.is_set():
            try:
                task.files = self._results.put(held.job, held.index, held.execution, files)
                task.store_s = time.monotonic() - since
                break
            except AWAY:  # `PartQueue` logs it for Redis, and `runtime.objects` for the storage
                self._closed.wait(backoff)
                backoff = min(2 * backoff, MAX_BACKOFF_S)
        return task

    def _tidy(self) -> None:
        if not self._tidying.acquire(blocking=False):
            return
        try:
            if count := self._results.tidy():
                log.info("deleted the stored objects of %d jobs", count)
        finally:
            self._tidying.release()
