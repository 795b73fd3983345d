"""Bucket bounds of latency histograms, the same in service and workers. Knows no metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator

STEPS = (1.0, 1.5, 2.2, 3.3, 4.7, 6.8)
"""Six bounds a decade, each about 1.5 times the one before. The middle of a bucket is then at most
a quarter off."""


def bounds(low: float, high: float) -> Iterator[float]:
    """The bounds from `low` to `high` seconds, both inclusive."""
    for decade in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for step in STEPS:
            bound = float(f"{step}e{decade}")  # a product would round
            if low <= bound <= high:
                yield bound
