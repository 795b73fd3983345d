"""The structure that is given of a large image, as tokens: window by window, as it is needed.

A mask is encoded in patches of the trained size that lie side by side from the top left; the last
ones of a row or a column end at its end. So its tokens are those of patches of the mask, each
alone, and a worker encodes few of them at once. Knows no slots and no pixels of images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model.given import Stream
from model.windows import Window

Tokens = NDArray[np.int64]


class Layout:
    """The structure of a grid of [rows, columns] locations, from a `Stream` of all of it.

    `encode` gives the ids [side, side] of the mask of a patch, whose locations have `cell` pixels.
    """

    def __init__(
        self,
        stream: Stream,
        grid: tuple[int, int],
        side: int,
        cell: int,
        encode: Callable[[NDArray[np.bool_]], Tokens],
    ) -> None:
        self._side, self._cell, self._encode = side, cell, encode
        self._mask: NDArray[np.bool_] | None = None
        self._open: list[tuple[int, int]] = []
        """The patches that are not encoded, by row and column."""
        if isinstance(stream.content, tuple):
            self._tokens = np.array(stream.content, np.int64).reshape(grid)
            return
        bits = np.unpackbits(np.frombuffer(stream.content, np.uint8)).astype(bool)
        self._mask = bits.reshape(grid[0] * cell, grid[1] * cell)
        self._tokens = np.zeros(grid, np.int64)
        self._open = [(top, left) for top in range(0, grid[0], side)
                      for left in range(0, grid[1], side)]  # fmt: skip

    def of(self, window: Window) -> Tokens:
        """The ids [side, side] of a window."""
        bottom, right = window.top + self._side, window.left + self._side
        for place in list(self._open):
            top, left = place
            if (window.top - self._side < top < bottom) and (
                window.left - self._side < left < right
            ):
                self._encode_patch(top, left)
                self._open.remove(place)
        return self._tokens[window.top : bottom, window.left : right].copy()

    def _encode_patch(self, top: int, left: int) -> None:
        assert self._mask is not None
        rows, columns = self._tokens.shape
        first, begin = min(top, rows - self._side), min(left, columns - self._side)
        cell, side = self._cell, self._side * self._cell
        y, x = first * cell, begin * cell
        ids = self._encode(self._mask[y : y + side, x : x + side])
        self._tokens[top : first + self._side, left : begin + self._side] = ids[
            top - first :, left - begin :
        ]
