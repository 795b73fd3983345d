"""How fast this worker is, from what it did lately: estimates for clients stand on this.

Plain arithmetic on a decaying memory; knows no clock and no Redis.
"""

from __future__ import annotations

import math

from store.registry import Speed

MEMORY_S = 20.0
"""Busy seconds after which a measurement counts for a third."""


class Pace:
    """Images a busy second and seconds an image. One thread tells, any thread asks."""

    def __init__(self) -> None:
        self._images = self._busy_s = 0.0
        self._image_s = 0.0

    def busy(self, seconds: float) -> None:
        """So many seconds were spent with at least one image in a slot."""
        kept = math.exp(-seconds / MEMORY_S)
        self._images *= kept
        self._busy_s = self._busy_s * kept + seconds

    def image(self, seconds: float) -> None:
        """An image is done that many seconds after it got its slot."""
        self._image_s += (seconds - self._image_s) / (min(self._images, 8.0) + 1)
        self._images += 1

    def speed(self) -> Speed | None:
        """What was measured; None before the first image."""
        if not self._images or not self._busy_s:
            return None
        return Speed(self._images / self._busy_s, self._image_s)
