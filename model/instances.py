"""Separating nuclei: from a map of instance ids to borders, and from a mask to ids.

A mask with borders is split there, and a mask alone at its narrow necks. The same planes give the
same ids on every machine. Knows no network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

REACH = 2
"""Pixels, along a row or a column, within which two nuclei make a border."""
NECK = 1.0
"""Pixels by which a neck's half width must be below that of both nuclei that it separates."""
FARTHEST = 181
"""Pixels that a distance to ground counts at most, so that its square fits SQUARE_BITS."""
SQUARE_BITS = 15
STRIDES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Every whole number up to FARTHEST is a sum of some of these."""
MOST = np.iinfo(np.uint16).max
NONE = np.iinfo(np.int32).max

Mask = NDArray[np.bool_]
Ids = NDArray[np.int32]
Heights = NDArray[np.uint16]
"""Squared heights of pixels. Those of a framed map [(H + 2) * (W + 2)] have a ring of ground."""
Places = NDArray[np.intp]


def instances(mask: Mask, between: Mask | None) -> Ids:
    """Ids of the nuclei of a mask [H, W], from 1; 0 is ground. `(ids > 0)` equals the mask.

    With borders, `between` [H, W], seeds are the components of the mask without them, numbered in
    raster order. They grow back over the mask by one pixel at a time, up, down, left and right, all
    at once; a pixel that several reach goes to the lowest id. What no seed reaches are nuclei of
    their own, numbered on. Without borders, the nuclei are `separated`.
    """
    if between is None:
        return separated(mask)
    seeds = np.pad(components(mask & ~between), 1)
    ids, step = seeds.ravel(), seeds.shape[1]
    open_pixels = np.flatnonzero(np.pad(mask, 1).ravel() & (ids == 0))
    ids[ids == 0] = NONE
    while True:
        beside = [ids[open_pixels + to] for to in (-step, step, -1, 1)]
        lowest = np.minimum.reduce(beside)
        reached = lowest < NONE
        if not reached.any():
            break
        ids[open_pixels[reached]] = lowest[reached]
        open_pixels = open_pixels[~reached]
    ids[ids == NONE] = 0
    if len(open_pixels):
        count = ids.max()
        left = np.zeros(seeds.shape, bool)
        left.ravel()[open_pixels] = True
        ids[open_pixels] = components(left).ravel()[open_pixels] + count
    return seeds[1:-1, 1:-1]


def components(mask: Mask) -> Ids:
    """The connected components (8 neighbours) of a mask [H, W], numbered from 1 in raster order."""
    return _regions(mask.astype(np.uint16), np.inf)


def separated(mask: Mask) -> Ids:
    """The nuclei of a mask [H, W] without borders, numbered from 1 in raster order of their first
    pixels.

    A watershed of the distance to ground: from each pixel the steepest way leads to a summit, and
    two summits stay apart where the highest pass between them lies NECK or more below both.
    """
    return _regions(_squared_distances(mask), NECK)


def shortened(ids: Ids) -> NDArray[np.uint16]:
    """Ids as 16 bits hold them. A map with more than 65,535 nuclei is nearly all specks; those
    beyond share the last id."""
    return np.minimum(ids, MOST).astype(np.uint16)


def borders(ids: NDArray[np.integer[Any]]) -> Mask:
    """Where two nuclei of an instance map [H, W] (0 = ground) lie within REACH: bool [H, W].

    Where they touch, the line is 2 REACH pixels wide, half of it in either; it bridges gaps of
    less than 2 REACH pixels.
    """
    highest = ids.astype(np.int32)
    lowest = np.where(highest == 0, NONE, highest)
    for _ in range(REACH):
        highest = _extreme(np.maximum, _extreme(np.maximum, highest).T).T
        lowest = _extreme(np.minimum, _extreme(np.minimum, lowest).T).T
    return (highest > 0) & (highest != lowest)  # type: ignore[no-any-return]


def _extreme(choose: np.ufunc, values: Ids) -> Ids:
    """The highest or lowest of each value and those above and below it."""
    chosen = values.copy()
    choose(chosen[1:], values[:-1], out=chosen[1:])
    choose(chosen[:-1], values[1:], out=chosen[:-1])
    return chosen


def _squared_distances(mask: Mask) -> Heights:
    """The squared Euclidean distance of each pixel [H, W] to the nearest ground pixel, in pixels.
    0 on the ground, FARTHEST squared at most. Outside of the patch there is no ground."""
    in_row = np.ascontiguousarray(mask.T) * np.uint16(FARTHEST)  # turned: rows are faster to shift
    farther = np.empty_like(in_row)
    for step in STRIDES:
        _lower(in_row, np.add(in_row, np.uint16(step), out=farther), step)
    in_row = np.ascontiguousarray(np.square(in_row).T)
    squares, farther = in_row.copy(), farther.reshape(in_row.shape)
    for step in range(1, FARTHEST):
        if step * step >= squares.max():
            break
        _lower(squares, np.add(in_row, np.uint16(step * step), out=farther), step)
    return squares


def _lower(values: Heights, others: Heights, step: int) -> None:
    """Lower each value to those of `others` that lie `step` rows above and below."""
    np.minimum(values[step:], others[:-step], out=values[step:])
    np.minimum(values[:-step], others[step:], out=values[:-step])


def _regions(squares: Heights, depth: float) -> Ids:
    """The regions of squared heights [H, W] (0 = ground), numbered from 1 in raster order: basins
    of steepest ascent, of which neighbours are joined unless the pass between them lies `depth` or
    more below both summits."""
    framed = np.pad(squares, 1)
    flat, step = framed.ravel(), framed.shape[1]
    ids = np.zeros(framed.shape, np.int32)
    inside = np.flatnonzero(flat > 0)
    if len(inside):
        basins, summits = _basins(flat, inside, step)
        heights = np.sqrt(flat[summits], dtype=np.float64)
        passes = _passes(flat, inside, basins, step)
        low = np.minimum(heights[passes[1]], heights[passes[2]]) - np.sqrt(passes[0]) < depth
        regions = _joined(heights.tolist(), passes[:, low], depth)
        ids.ravel()[inside] = _in_raster_order(regions[basins])
    return ids[1:-1, 1:-1]


def _basins(flat: Heights, inside: Places, step: int) -> tuple[Places, Places]:
    """The basin of each pixel of `inside`, and where the summit of each basin lies. Of two equal
    heights the later pixel is higher."""
    bits = len(flat).bit_length()
    kind = np.uint32 if bits + SQUARE_BITS <= 32 else np.uint64
    ranks = np.zeros(flat.shape, kind)
    ranks[inside] = np.left_shift(flat[inside], bits, dtype=kind) | inside.astype(kind)
    highest = ranks.take(inside)
    for to in (-step - 1, -step, 1 - step, -1, 1, step - 1, step, step + 1):
        np.maximum(highest, ranks.take(inside + to), out=highest)
    numbers = np.empty(flat.shape, np.intp)
    numbers[inside] = np.arange(len(inside))
    above = numbers.take(highest & ((1 << bits) - 1))
    while not np.array_equal(above, farther := above.take(above)):
        above = farther
    summits = above == np.arange(len(inside))
    return (np.cumsum(summits) - 1)[above], inside[summits]


def _passes(flat: Heights, inside: Places, basins: Places, step: int) -> NDArray[np.int64]:
    """Where basins meet, int64 [3, P]: the lower of both squared heights, and both basins."""
    owners = np.full(flat.shape, -1, np.int64)
    owners[inside] = basins
    found = []
    for to in (1, step - 1, step, step + 1):
        theirs = owners.take(inside + to)
        meeting = np.flatnonzero((theirs != basins) & (theirs >= 0))
        one, other = basins[meeting], theirs[meeting]
        height = np.minimum(flat[inside[meeting]], flat[inside[meeting] + to])
        found.append((height, np.minimum(one, other), np.maximum(one, other)))
    return np.concatenate(found, 1, dtype=np.int64)


def _joined(summits: Sequence[float], passes: NDArray[np.int64], depth: float) -> Places:
    """The region of each basin, a number of one of its basins. Goes from the highest pass down, so
    that what a pass joins is known to its ends on both sides."""
    passes = passes[:, np.lexsort((passes[2], passes[1], -passes[0]))]
    new = np.append(True, (passes[:, 1:] != passes[:, :-1]).any(0))[: passes.shape[1]]
    parents = list(range(len(summits)))
    for square, one, other in zip(*passes[:, new].tolist(), strict=True):
        lower, higher = _root(parents, one), _root(parents, other)
        if (summits[lower], lower) > (summits[higher], higher):
            lower, higher = higher, lower
        if lower != higher and summits[lower] - math.sqrt(square) < depth:
            parents[lower] = higher
    return np.array([_root(parents, basin) for basin in parents], np.intp)


def _root(parents: list[int], basin: int) -> int:
    while parents[basin] != basin:
        parents[basin] = basin = parents[parents[basin]]
    return basin


def _in_raster_order(regions: Places) -> Ids:
    """Regions numbered from 1 by where they first occur."""
    first = np.full(regions.max() + 1, len(regions))
    first[regions[::-1]] = np.arange(len(regions))[::-1]  # of several the last one stays
    ranks = np.empty(len(first), np.int32)
    ranks[np.argsort(first, kind="stable")] = np.arange(1, len(first) + 1)
    return ranks[regions]
