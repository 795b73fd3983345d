"""What is given of a large image, as tokens: window by window, as it is needed.

A mask or an image is encoded in patches of the trained size that lie side by side from the top
left; the last ones of a row or a column end at its end. So its tokens are those of patches of it,
each alone, and a worker encodes few of them at once. Knows no slots and nothing of what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model.decoder import FREE
from model.windows import Window

Tokens = NDArray[np.int64]
Pixels = NDArray[np.bool_] | NDArray[np.uint8]


class Plane:
    """One stream of a grid of [rows, columns] locations: `tokens`, FREE where none is given."""

    def __init__(self, tokens: Tokens, side: int) -> None:
        self._tokens, self._side = tokens, side

    def of(self, window: Window) -> Tokens:
        """The ids [side, side] of a window, FREE where none is given."""
        bottom, right = window.top + self._side, window.left + self._side
        return self._tokens[window.top : bottom, window.left : right]


class EncodedPlane(Plane):
    """One stream from `pixels` [H, W] or [H, W, 3] of the whole, given where `kept` [rows, columns]
    is.

    `encode` gives the ids [side, side] of a patch, whose locations have `cell` pixels.
    """

    def __init__(
        self,
        pixels: Pixels,
        kept: NDArray[np.bool_],
        side: int,
        cell: int,
        encode: Callable[[Pixels], Tokens],
    ) -> None:
        super().__init__(np.full(kept.shape, FREE), side)
        self._pixels, self._kept, self._cell, self._encode = pixels, kept, cell, encode
        rows, columns = kept.shape
        self._open = [(top, left) for top in range(0, rows, side)
                      for left in range(0, columns, side)]  # fmt: skip
        """The patches that are not encoded, by row and column."""

    def of(self, window: Window) -> Tokens:
        """See `Plane.of`."""
        bottom, right = window.top + self._side, window.left + self._side
        for place in list(self._open):
            top, left = place
            if (window.top - self._side < top < bottom) and (
                window.left - self._side < left < right
            ):
                self._encode_patch(top, left)
                self._open.remove(place)
        return super().of(window)

    def _encode_patch(self, top: int, left: int) -> None:
        rows, columns = self._tokens.shape
        first, begin = min(top, rows - self._side), min(left, columns - self._side)
        here = slice(top, first + self._side), slice(left, begin + self._side)
        if not self._kept[here].any():
            return
        cell, side = self._cell, self._side * self._cell
        y, x = first * cell, begin * cell
        ids = self._encode(self._pixels[y : y + side, x : x + side])
        self._tokens[here] = np.where(self._kept[here], ids[top - first :, left - begin :], FREE)


class Layout:
    """Both streams, None of one that is drawn."""

    def __init__(self, structure: Plane | None, appearance: Plane | None, side: int) -> None:
        self._planes, self._free = (structure, appearance), np.full((side, side), FREE)

    def of(self, window: Window) -> Tokens:
        """The given tokens [side * side, 2] of a window, FREE where none is given."""
        given = [self._free if plane is None else plane.of(window) for plane in self._planes]
        return np.stack([ids.flatten() for ids in given], 1)
