"""Pixels of a large image from overlapping tiles of the trained size.

The tokenizer's decoders normalise over all that they see, and one has attention over the grid. So
only a tile of the size that they were trained on gives pixels as they learned them, and the same on
every machine that gives those of a patch. Two tiles of one place differ a little: where they
overlap, one fades into the other. Knows no tokens and no network.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]


def blended(
    grid: tuple[int, int], side: int, cell: int, tile: Callable[[slice, slice], Values]
) -> Values:
    """Values [C, H, W] of an image of a grid of (rows, columns) locations of `cell` pixels.

    `tile` gives those of rows and columns of the grid, `side` locations each: [C, side * cell, side
    * cell].
    """
    down, across = (_fades(count, side, cell) for count in grid)
    whole: Values | None = None
    for top, rise in down:
        for left, fade in across:
            part = tile(slice(top, top + side), slice(left, left + side))
            if whole is None:
                whole = np.zeros((len(part), grid[0] * cell, grid[1] * cell), np.float32)
            y, x = top * cell, left * cell
            weights = rise[:, None] * fade
            whole[:, y : y + side * cell, x : x + side * cell] += part * weights
    assert whole is not None, "a grid has a tile"
    return whole


def _fades(count: int, side: int, cell: int) -> list[tuple[int, Values]]:
    """The first location of each tile along an axis of `count`, and the weight of its pixels. At
    each pixel of the axis the weights of all tiles make 1."""
    overlap = side // 4
    step = max(1, side - overlap)
    firsts = [min(at * step, count - side) for at in range(1 + ceil((count - side) / step))]
    length, ramp = side * cell, max(1, overlap * cell)
    rising = np.minimum((np.arange(length) + 0.5) / ramp, 1)
    weights = np.zeros((len(firsts), count * cell))
    for at, first in enumerate(firsts):
        begin = rising if at else np.ones(length)
        end = rising[::-1] if at + 1 < len(firsts) else np.ones(length)
        weights[at, first * cell : first * cell + length] = np.minimum(begin, end)
    weights = (weights / weights.sum(0)).astype(np.float32)
    return [
        (first, each[first * cell : first * cell + length])
        for first, each in zip(firsts, weights, strict=True)
    ]
