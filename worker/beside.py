"""Background threads of the worker, and a watchdog for its loop.

Decoding runs in native code without the interpreter's lock (GIL), so Python threads run at the same
time. A signal cannot interrupt native code that never returns; the process must exit. Knows nothing
of what the threads and the loop do.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

import redis

HANG_S = 120.0
"""A loop without progress for this long counts as hung. Other workers then draw its parts."""

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger("pathar.worker")


class Beside:
    """A thread that calls `act` every `pause_s` seconds. Logs exceptions and continues."""

    def __init__(self, name: str, act: Callable[[], None], pause_s: float) -> None:
        self._act, self._pause_s = act, pause_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called: a long `act` should then return."""
        return self._stopped.is_set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Make no further calls. Waits up to 2 s for the current call."""
        self._stopped.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self.stopped:
            try:
                self._act()
            except redis.RedisError as error:
                log.warning("%s: %s", self._thread.name, error)
            except Exception:
                log.exception(self._thread.name)
            self._stopped.wait(self._pause_s)


class Inline(Executor):
    """Makes each call at once in the thread that submits it, in place of a pool of threads."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The future of a call that has been made. Raises what the call raises."""
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Watchdog:
    """Ends the process when its loop hangs (HANG_S)."""

    def __init__(self) -> None:
        self._progress_at = time.monotonic()

    def progress(self) -> None:
        """Record that the loop has made progress."""
        self._progress_at = time.monotonic()

    def check(self) -> None:
        """End the process if the loop hangs. Call this regularly from another thread."""
        if time.monotonic() - self._progress_at > HANG_S:
            log.critical("the worker has made no progress for %d s; this process ends", HANG_S)
            os._exit(1)
