"""Threads beside the worker's loop, and a watch over that loop.

Decoding runs in native code without the interpreter's lock, so threads run beside it; code that
never returns from there cannot be interrupted by a signal, only ended. Knows nothing of what the
threads and the loop do.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

import redis

HANG_S = 120.0
"""A loop without progress for this long hangs. Other workers then draw its parts."""

log = logging.getLogger("pathar.worker")


class Beside:
    """Calls `act` every `pause_s` seconds from `start` to `stop`; errors are logged, not fatal."""

    def __init__(self, name: str, act: Callable[[], None], pause_s: float) -> None:
        self._act, self._pause_s = act, pause_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stopped(self) -> bool:
        """Whether `act` is to return."""
        return self._stopped.is_set()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Call it no more; one that is under way has a moment to end."""
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


class Watchdog:
    """Ends the process when its loop hangs."""

    def __init__(self) -> None:
        self._progress_at = time.monotonic()

    def progress(self) -> None:
        """The loop has made progress."""
        self._progress_at = time.monotonic()

    def check(self) -> None:
        """To be called now and then, in a thread beside the loop."""
        if time.monotonic() - self._progress_at > HANG_S:
            log.critical("the worker has made no progress for %d s; this process ends", HANG_S)
            os._exit(1)
