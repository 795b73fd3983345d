"""Whether a worker's engine still works. It pauses after a failure and is given up after several.

Knows no engine, no Redis and no RQ. Times are seconds on a monotonic clock.
"""

from __future__ import annotations

MOST_FAILURES = 3
"""The engine is given up after this many different images have failed with no success in between.
One image that keeps failing counts once: the image may be the cause."""
REST_S = 1.0
"""After a failure the worker takes no parts for this long: another worker can take the image."""


class EngineFailed(RuntimeError):
    """The engine has failed with several images in a row."""


class EngineHealth:
    """Failures of one engine since its last success."""

    def __init__(self) -> None:
        self._failed: set[str] = set()
        self._reason = ""
        self.rest_until = 0.0

    def succeeded(self) -> None:
        """Record that an image was drawn."""
        self._failed.clear()

    def failed(self, part: str, error: Exception, now: float) -> None:
        """Record that an image could not be drawn although its request is valid."""
        self.rest_until = now + REST_S
        self._failed.add(part)
        self._reason = f"{type(error).__name__}: {error}"

    def failed_with(self, part: str) -> bool:
        """Whether this image has failed here since the last success."""
        return part in self._failed

    def check(self) -> None:
        """Raises EngineFailed after MOST_FAILURES failures."""
        if len(self._failed) >= MOST_FAILURES:
            count = len(self._failed)
            raise EngineFailed(
                f"{count} images in a row could not be drawn; last error: {self._reason}"
            )
