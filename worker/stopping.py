"""When a worker that was told to stop is to end. Knows nothing of what it does."""

from __future__ import annotations

import signal
import time
from types import FrameType

GRACE_S = 12.0
"""How long a worker that was told to stop may go on with what it holds: what it hands back then is
held up by less than 15 s and a decode."""
ECHO_S = 1.0
"""A second signal that comes sooner may be a parent's echo of the first."""


class Stop:
    """Listens to SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._end_at = float("inf")

    def listen(self) -> None:
        """From now on; to be called in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    @property
    def asked(self) -> bool:
        """Whether a signal has come: nothing new is begun then."""
        return self._asked_at is not None

    @property
    def due(self) -> bool:
        """Whether to hand back what is still held."""
        return time.monotonic() > self._end_at

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        """Sets numbers and nothing else. A second signal asks to hand back at once."""
        at = time.monotonic()
        if self._asked_at is None:
            self._asked_at, self._end_at = at, at + GRACE_S
        elif at - self._asked_at > ECHO_S:
            self._end_at = at
