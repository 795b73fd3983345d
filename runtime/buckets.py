"""Bounds of histograms of seconds, the same for service and workers. Knows no metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator

STEPS = (1.0, 1.5, 2.2, 3.3, 4.7, 6.8)
"""Six bounds a decade, each about 1.5 times the one before: a value within a bucket is taken for
one that differs by a quarter at most when it lies in the middle."""


def bounds(low: float, high: float) -> Iterator[float]:
    """The bounds from `low` to `high` seconds, both inclusive."""
    for decade in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for step in STEPS:
            bound = float(f"{step}e{decade}")  # as it is written, without a product's rounding
            if low <= bound <= high:
                yield bound
