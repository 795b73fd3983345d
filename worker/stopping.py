"""When a worker must end after a stop signal. Knows nothing of what it does."""

from __future__ import annotations

import signal
import time
from types import FrameType

GRACE_S = 12.0
"""How long a worker continues with its parts after a stop signal. Then it hands them back: each is
delayed by less than 15 s plus a decode."""
ECHO_S = 1.0
"""A second signal within this time is ignored: a parent may have forwarded the first."""


class Stop:
    """Handles SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._end_at = float("inf")

    def listen(self) -> None:
        """Install the signal handlers. Call this in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    @property
    def asked(self) -> bool:
        """Whether a signal has arrived. The worker then takes no new parts."""
        return self._asked_at is not None

    @property
    def due(self) -> bool:
        """Whether it is time to hand back the parts that are still held."""
        return time.monotonic() > self._end_at

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal; sets two numbers and nothing else. A second signal after ECHO_S means to
        hand back at once."""
        at = time.monotonic()
        if self._asked_at is None:
            self._asked_at, self._end_at = at, at + GRACE_S
        elif at - self._asked_at > ECHO_S:
            self._end_at = at
