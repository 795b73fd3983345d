"""A thread that gives signs of life, and ends the process when its main loop hangs.

Knows neither what a sign of life is nor what the loop does. Decoding runs in native code without
the interpreter's lock, so the thread runs beside it; code that never returns from there cannot be
interrupted by a signal, only ended.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

import redis

BEAT_S = 2.0
"""Pause between two signs of life; leases last several of these."""
HANG_S = 120.0
"""A loop that has not come round for this long hangs; its parts are for others to draw."""

log = logging.getLogger("pathar.worker")


class Heartbeat:
    """Calls `beat` every BEAT_S seconds from `start` to `stop`; errors are logged, not fatal."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._progress_at = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Beat from now on."""
        self._progress_at = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Beat no more; a beat under way has a moment to end."""
        self._stopped.set()
        self._thread.join(timeout=BEAT_S)

    def progress(self) -> None:
        """The main loop has come round."""
        self._progress_at = time.monotonic()

    def _run(self) -> None:
        while not self._stopped.wait(BEAT_S):
            if time.monotonic() - self._progress_at > HANG_S:
                log.critical("the loop has not come round for %d s: ending this process", HANG_S)
                os._exit(1)
            try:
                self._beat()
            except redis.RedisError as error:
                log.warning("heartbeat: %s", error)
            except Exception:
                log.exception("heartbeat")
