"""Separating nuclei: from a map of instance ids to borders, and from a mask with borders to ids.

There is one exact rule for each direction. Both use integers, so the same planes give the same ids
on every machine. Knows no network.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

REACH = 2
"""Pixels, along a row or a column, within which two nuclei make a border."""
NEIGHBOURS = np.ones((3, 3), bool)
"""Eight: pixels that meet at a corner belong together."""
STEPS = ((0, 1), (2, 1), (1, 0), (1, 2))
"""Where a padded map is cut to give each pixel's upper, lower, left and right neighbour."""
NONE = np.iinfo(np.int32).max

Mask = NDArray[np.bool_]
Ids = NDArray[np.int32]


def components(mask: Mask) -> Ids:
    """The connected components of a mask [H, W], numbered from 1 in raster order; 0 is ground."""
    found, _ = ndimage.label(mask, NEIGHBOURS)
    return found.astype(np.int32)  # type: ignore[no-any-return]


def borders(ids: NDArray[np.integer[Any]]) -> Mask:
    """Where two nuclei of an instance map [H, W] (0 = ground) lie within REACH: bool [H, W].

    Where they touch, the line is 2 REACH pixels wide, half of it in either; it bridges gaps of
    less than 2 REACH pixels.
    """
    ids, size = ids.astype(np.int32), 2 * REACH + 1
    highest = ndimage.maximum_filter(ids, size, mode="nearest")
    lowest = ndimage.minimum_filter(np.where(ids == 0, NONE, ids), size, mode="nearest")
    return (highest > 0) & (highest != lowest)  # type: ignore[no-any-return]


def instances(mask: Mask, between: Mask) -> Ids:
    """Ids of the nuclei of a mask [H, W], split where `between` [H, W] has borders.

    Seeds are the components of the mask without borders, numbered in raster order. They grow back
    over the mask by one pixel at a time, up, down, left and right, all at once; a pixel that
    several reach goes to the lowest id. What no seed reaches are nuclei of their own, numbered on.
    `(instances(mask, between) > 0)` equals the mask.
    """
    ids = components(mask & ~between)
    while True:
        open_pixels = mask & (ids == 0)
        lowest = _lowest_neighbour(ids)
        grown = open_pixels & (lowest < NONE)
        if not grown.any():
            break
        ids[grown] = lowest[grown]
    left = components(open_pixels)
    return np.where(left > 0, left + ids.max(initial=0), ids)


def _lowest_neighbour(ids: Ids) -> Ids:
    """The lowest id beside each pixel; NONE where all are ground."""
    height, width = ids.shape
    padded = np.pad(np.where(ids == 0, NONE, ids), 1, constant_values=NONE)
    beside = [padded[y : y + height, x : x + width] for y, x in STEPS]
    return np.minimum.reduce(beside)  # type: ignore[no-any-return]
