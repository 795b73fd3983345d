"""What the values of painted masks mean: decided over all masks of a source, or by the user.

One file alone rarely tells. A mask with one class looks like a mask of nuclei, and three nuclei
with ids look like three classes. Knows nothing of files and folders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage  # type: ignore[import-untyped]

from training import scratch
from training.pictures import (
    GROUND,
    IDS,
    SHOWN,
    Painting,
    Rules,
    describe_counts,
    describe_value,
    parse_value,
    value_counts,
)
from training.rasters import Kind, SourceError

FEWEST_IDS = 10
"""Ids in one mask that take the place of a user's word: classes are fewer, or in more pieces."""
SMALLEST_NUCLEUS = 8
"""Pixels. Smaller pieces of one value are the edges of a scaled mask rather than nuclei."""
LARGEST_BOX = 1 << 22
"""Pixels of a box around one nucleus, at any magnification; a value that needs more is a class."""
IRREGULAR = 0.05
"""Share of ids that may be in two pieces or have holes, as happens in annotations by hand."""
CONNECTED = np.ones((3, 3), dtype=int)


@dataclass(frozen=True)
class Evidence:
    """What one painting tells about its values. `pixels` by value, GROUND among them; `judged` and
    `regular` count the values that lie wholly inside, and those that look like one nucleus each.
    """

    path: Path
    kind: Kind
    pixels: dict[int, int]
    judged: int
    regular: int


@dataclass(frozen=True)
class Meaning:
    """Which values are nuclei: "one" (there is only one besides the background), "ids", or those
    `listed`.
    """

    means: Literal["one", "ids", "listed"]
    listed: frozenset[tuple[Kind, int]] = frozenset()

    def nuclei(self, painting: Painting) -> np.ndarray:
        """Bool [H, W], or int32 ids [H, W] with 0 for the ground where every value is a nucleus."""
        values = painting.values
        if self.means == "ids":
            return _ids(values)
        chosen = [value for kind, value in self.listed if kind == painting.kind]

        def nucleus(rows: slice) -> np.ndarray:
            painted: np.ndarray = values[rows] != GROUND
            if self.means == "listed":
                painted &= np.isin(values[rows], chosen)
            return painted

        return scratch.by_bands(nucleus, values.shape, bool)


def _ids(values: np.ndarray) -> np.ndarray:
    """Ids as they are where they are above 0 and fit 16 bits, as they must when written; else 1
    to n in ascending order."""
    found = np.array([value for value in value_counts(values) if value != GROUND], dtype=np.int32)
    fit = not len(found) or (found[0] > 0 and found[-1] < 2**16)

    def ids(rows: slice) -> np.ndarray:
        band = values[rows]
        return np.where(band == GROUND, 0, band if fit else np.searchsorted(found, band) + 1)

    return scratch.by_bands(ids, values.shape, np.int32)


def evidence(painting: Painting) -> Evidence:
    """What a painting tells about its values."""
    pixels = value_counts(painting.values)
    values = [value for value in pixels if value != GROUND]
    judged = regular = 0
    if len(values) > 1:
        judged, regular = _looks(painting.values, values)
    return Evidence(painting.path, painting.kind, pixels, judged, regular)


def meaning(found: Sequence[Evidence], rules: Rules) -> Meaning:
    """What the values of a source's masks mean. SourceError where they could mean two things.

    One value besides the background is nuclei. Several are ids of nuclei where the user says so, or
    where at least one mask has FEWEST_IDS of them and nearly all, in all masks, are one piece
    without holes: no classes look like that. Without painted masks nothing is to be decided.
    """
    values = sorted({(each.kind, value) for each in found for value in each.pixels})
    values = [(kind, value) for kind, value in values if value != GROUND]
    if not found or rules.threshold is not None:
        return Meaning("one")
    if rules.nuclei == IDS:
        return Meaning("ids")
    if rules.nuclei:
        return Meaning("listed", _chosen(rules.nuclei, values))
    if all(sum(kind == other for other, _ in values) <= 1 for kind, _ in values):
        return Meaning("one")
    if _are_ids(found):
        return Meaning("ids")
    raise SourceError(_doubt(found))


def _are_ids(found: Sequence[Evidence]) -> bool:
    judged, regular = (sum(getattr(each, name) for each in found) for name in ("judged", "regular"))
    enough = any(each.regular >= FEWEST_IDS for each in found)
    return enough and judged - regular <= IRREGULAR * judged


def _chosen(
    words: Sequence[str], values: Collection[tuple[Kind, int]]
) -> frozenset[tuple[Kind, int]]:
    chosen = set()
    for word in words:
        wanted = parse_value(word, "--nuclei")
        there = {(kind, value) for kind, value in values if value == wanted}
        if not there:
            listed = ", ".join(describe_value(kind, value) for kind, value in list(values)[:SHOWN])
            raise SourceError(f"--nuclei: got {word}, but the masks hold {listed or 'no values'}")
        chosen |= there
    return frozenset(chosen)


def _doubt(found: Sequence[Evidence]) -> str:
    """What the masks hold, and which options say what it means."""
    most = max(found, key=lambda each: len(each.pixels))
    kind, total = most.kind, Counter[int]()
    for each in found:
        if each.kind == kind:
            total.update(each.pixels)
    others = f" and {len(found) - 1} more masks" if len(found) > 1 else ""
    example = max((n, value) for value, n in total.items() if value != GROUND)[1]
    return (
        f"{most.path}{others}: hold {describe_counts(total, kind)}, which can be classes, or an id "
        "for each nucleus; --nuclei says which are nuclei, such as --nuclei "
        f"{describe_value(kind, example)}, or --nuclei ids"
    )


def _looks(values: np.ndarray, named: Sequence[int]) -> tuple[int, int]:
    """How many values lie wholly inside the picture, and how many of them look like a nucleus."""
    known = np.array(named)

    def places(rows: slice) -> np.ndarray:
        return np.where(values[rows] == GROUND, 0, np.searchsorted(known, values[rows]) + 1)

    compact = scratch.by_bands(places, values.shape, np.int32)
    judged = regular = 0
    for number, box in enumerate(ndimage.find_objects(compact), start=1):
        at_edge = any(
            side.start == 0 or side.stop == length
            for side, length in zip(box, values.shape, strict=True)
        )
        if not at_edge:
            judged += 1
            within = compact[box]
            regular += within.size <= LARGEST_BOX and _one_nucleus(within == number)
    return judged, regular


def _one_nucleus(piece: np.ndarray) -> bool:
    pieces = ndimage.label(piece, CONNECTED)[1]
    filled = ndimage.binary_fill_holes(piece)
    return bool(pieces == 1 and piece.sum() >= SMALLEST_NUCLEUS and np.array_equal(filled, piece))
