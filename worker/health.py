"""Whether a worker's engine still draws: it rests after a failure, and is given up after some.

Knows no engine, no Redis and no RQ; times are seconds on a clock that only goes forward.
"""

from __future__ import annotations

MOST_FAILURES = 3
"""After failures with so many different images, and none that succeeded in between, the engine is
given up. One image that fails again and again says nothing of the engine."""
REST_S = 1.0
"""How long nothing is taken after a failure, so that another worker takes the image."""


class EngineSick(RuntimeError):
    """The engine has failed with several images in a row."""


class Health:
    """What became of the last images of one engine."""

    def __init__(self) -> None:
        self._failed: set[str] = set()
        self._reason = ""
        self.rest_until = 0.0

    def succeeded(self) -> None:
        """An image was drawn."""
        self._failed.clear()

    def failed(self, part: str, error: Exception, now: float) -> None:
        """An image could not be drawn, through no fault of its request."""
        self.rest_until = now + REST_S
        self._failed.add(part)
        self._reason = f"{type(error).__name__}: {error}"

    def failed_with(self, part: str) -> bool:
        """Whether this image failed here since the last that succeeded."""
        return part in self._failed

    def check(self) -> None:
        """EngineSick when the engine is to be given up."""
        if len(self._failed) >= MOST_FAILURES:
            count = len(self._failed)
            raise EngineSick(
                f"{count} images in a row could not be drawn; the last: {self._reason}"
            )
