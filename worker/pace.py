"""This worker's recent speed, from which the estimates for clients are computed.

Exponentially decaying averages. Knows no clock and no Redis.
"""

from __future__ import annotations

import math

from store.registry import Speed

MEMORY_S = 20.0
"""Busy seconds after which the weight of a measurement has fallen to 1/e, about a third."""


class Pace:
    """Images per busy second, and seconds per image. One thread writes, any thread may read."""

    def __init__(self) -> None:
        self._images = self._busy_s = 0.0
        self._image_s = 0.0

    def busy(self, seconds: float) -> None:
        """Record seconds with at least one image in a slot."""
        kept = math.exp(-seconds / MEMORY_S)
        self._images *= kept
        self._busy_s = self._busy_s * kept + seconds

    def image(self, seconds: float, cost: int = 1) -> None:
        """Record an image that was done `seconds` after it got its slot. A large one counts as the
        patches that it costs, and says nothing of how long a patch takes."""
        if cost == 1:
            self._image_s += (seconds - self._image_s) / (min(self._images, 8.0) + 1)
        self._images += cost

    def speed(self) -> Speed | None:
        """The measured speed; None before the first image."""
        if not self._images or not self._busy_s:
            return None
        return Speed(self._images / self._busy_s, self._image_s)
