"""The plan of a large image: windows of the trained grid over it, in the order of their needs.

A large image is decided in strips of a few rows of locations, and a strip by windows from left to
right. The prior sees one window alone, in raster order: what is decided already is given to it, it
draws the rest, and some of that is kept. Standard library only: the service counts windows, too.
Knows no tokens and no pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import ceil

from pathar.contract import MAX_SEED

LEAST_WITH_MARGIN = 8
"""Grids of a smaller side have no columns to spare."""


@dataclass(frozen=True)
class Overlap:
    """How windows of `side` x `side` locations lie over a larger grid (docs/method.md, section 3).

    A strip has `rows` rows, and its windows lie `columns` apart. In the first row of a strip a
    window keeps all but its last `margin` columns, in each further row `slant` columns fewer. So
    what is kept was drawn with what lies above it on both sides in view.
    """

    side: int
    rows: int
    columns: int
    margin: int
    slant: int

    @classmethod
    def of(cls, side: int) -> Overlap:
        """The overlap for a trained grid of this side."""
        spare = int(side >= LEAST_WITH_MARGIN)
        return cls(side, max(1, side // 4), max(1, side // 2), spare, spare)


@dataclass(frozen=True)
class Window:
    """One window: its place among all, and its first row and column in the image's grid.

    `kept` has the columns [from, to) of the image's grid that it decides in each row of its strip,
    which begins at `first_row`. The windows `needs` are drawn before it. It is done after `steps`
    decode steps.
    """

    number: int
    top: int
    left: int
    first_row: int
    kept: tuple[tuple[int, int], ...]
    needs: tuple[int, ...]
    steps: int

    def seed(self, seed: int) -> int:
        """The row seed of this window in an image with `seed`: a fixed 53-bit hash of both."""
        place = f"pathar-window-seed:{seed}:{self.first_row}:{self.left}"
        return int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big") & MAX_SEED


def plan(rows: int, columns: int, overlap: Overlap) -> tuple[Window, ...]:
    """The windows of a grid of [rows, columns] locations, neither below the side of a window."""
    side = overlap.side
    lefts = [min(left, columns - side) for left in range(0, columns, overlap.columns)]
    lefts = lefts[: 1 + ceil((columns - side) / overlap.columns)]
    edges = [_edges(row, lefts, columns, overlap) for row in range(overlap.rows)]
    above = [next(at for at, to in enumerate(edges[-1]) if to >= left + side) for left in lefts]
    windows: list[Window] = []
    for first in range(0, rows, overlap.rows):
        end = min(first + overlap.rows, rows)
        top = max(0, end - side)
        before = len(windows)
        for at, left in enumerate(lefts):
            spans = tuple((to[at - 1] if at else 0, to[at]) for to in edges[: end - first])
            needs = (before + at - 1,) * (at > 0)
            needs += (before - len(lefts) + above[at],) * (first > 0)
            # Step p draws the structure of location p and the appearance of the one before it.
            steps = (end - 1 - top) * side + spans[-1][1] - left + 1
            windows.append(Window(len(windows), top, left, first, spans, needs, steps))
    return tuple(windows)


def cost(rows: int, columns: int, side: int) -> int:
    """The images of one window that a grid of [rows, columns] locations costs, by decode steps."""
    steps = sum(window.steps for window in plan(rows, columns, Overlap.of(side)))
    return ceil(steps / (side * side + 1))


def _edges(row: int, lefts: list[int], columns: int, overlap: Overlap) -> list[int]:
    """The columns at which what each window keeps ends, in a row of a strip."""
    short = overlap.margin + row * overlap.slant
    return [*(left + overlap.side - short for left in lefts[:-1]), columns]
