"""The plan of a large image: windows of the trained grid over it, in the order of their needs.

A large image is decided in strips of rows of locations, and a strip by windows from left to right.
The prior sees one window alone, in raster order: what is decided already is given to it, it draws
the rest, and some of that is kept. Standard library only: the service counts windows, too. Knows no
tokens and no pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from pathar.contract import MAX_SEED


@dataclass(frozen=True)
class Overlap:
    """How windows of `side` x `side` locations lie over a larger grid (docs/method.md, section 3).

    A strip has `rows` rows, and its windows lie `columns` apart. The last `margin` rows and columns
    of a window are no part of it: what is kept was drawn as inside a patch, and with what lies
    above it on both sides in view.
    """

    side: int
    rows: int
    columns: int
    margin: int

    @classmethod
    def of(cls, side: int) -> Overlap:
        """The overlap for a trained grid of this side: halves, and an eighth as margin."""
        return cls(side, max(1, side // 2), max(1, side // 2), side // 8)


@dataclass(frozen=True)
class Window:
    """One window: its place among all, and its first row and column in the image's grid.

    It decides the locations of `rows` and `columns` of the image's grid, each [from, to). The
    windows `needs` are drawn before it. It is done after `steps` decode steps, none where all that
    it could see before these locations, and they themselves, are given.
    """

    number: int
    top: int
    left: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    needs: tuple[int, ...]
    steps: int

    def seed(self, seed: int) -> int:
        """The row seed of this window in an image with `seed`: a fixed 53-bit hash of both."""
        place = f"pathar-window-seed:{seed}:{self.rows[0]}:{self.left}"
        return int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big") & MAX_SEED


def plan(
    rows: int, columns: int, overlap: Overlap, given: Sequence[bool] | None = None
) -> tuple[Window, ...]:
    """The windows of a grid of [rows, columns] locations, neither below the side of a window.
    `given` says of each location, row-major, whether both of its tokens are given.
    """
    side = overlap.side
    count = 1 + ceil((columns - side) / overlap.columns)
    lefts = [min(at * overlap.columns, columns - side) for at in range(count)]
    ends = [*(left + side - overlap.margin for left in lefts[:-1]), columns]
    above = [next(at for at, end in enumerate(ends) if end >= left + side) for left in lefts]
    windows: list[Window] = []
    for first in range(0, rows, overlap.rows):
        last = min(first + overlap.rows, rows)
        top = min(max(0, last + overlap.margin - side), rows - side)
        before = len(windows)
        for at, left in enumerate(lefts):
            needs = (before + at - 1,) * (at > 0)
            needs += (before - count + above[at],) * (first > 0)
            # Step p draws the structure of location p and the appearance of the one before it.
            steps = (last - 1 - top) * side + ends[at] - left + 1
            decides = (first, last), (ends[at - 1] if at else 0, ends[at])
            window = Window(before + at, top, left, *decides, needs, steps)
            if given is not None and _is_given(window, side, columns, given):
                window = replace(window, steps=0)
            windows.append(window)
    return tuple(windows)


def _is_given(window: Window, side: int, columns: int, given: Sequence[bool]) -> bool:
    """Whether nothing that a window decides, or sees before it, is drawn."""
    first, last = window.rows
    for row in range(window.top, last):
        end = window.left + side if row < first else window.columns[1]
        if not all(given[row * columns + window.left : row * columns + end]):
            return False
    return True


def cost(rows: int, columns: int, side: int, given: Sequence[bool] | None = None) -> int:
    """The images of one window that a grid of [rows, columns] locations costs, by decode steps;
    at least as many as have its area. `given` is as in `plan`."""
    steps = sum(window.steps for window in plan(rows, columns, Overlap.of(side), given))
    return max(ceil(steps / (side * side + 1)), ceil(rows * columns / (side * side)))
