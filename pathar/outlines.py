"""The pixels of each instance in a map of ids: as run lengths, and as polygons along their borders.

Both give the same pixels back, exactly. Knows no file format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]
"""x and y of a pixel's corner; (0, 0) is the upper left corner of the picture."""
Ring = list[Point]
"""The corners of a closed line, the first one not repeated."""
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Right, down, left, up: each is a turn to the right from the one before."""


@dataclass(frozen=True)
class Instance:
    """One instance: its id, and the rows and columns [N] of its pixels."""

    number: int
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]

    @property
    def area(self) -> int:
        """In pixels."""
        return len(self.rows)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height."""
        left, top = int(self.columns.min()), int(self.rows.min())
        return left, top, int(self.columns.max()) + 1 - left, int(self.rows.max()) + 1 - top


def instances_in(ids: NDArray[Any]) -> Iterator[Instance]:
    """The instances of a map of ids [H, W], by id; 0 is ground."""
    rows, columns = np.nonzero(ids)
    numbers = ids[rows, columns]
    order = np.argsort(numbers, kind="stable")
    found, starts = np.unique(numbers[order], return_index=True)
    parts = np.split(order, starts[1:]) if len(found) else []
    for number, part in zip(found, parts, strict=True):
        yield Instance(int(number), rows[part], columns[part])


def run_lengths(instance: Instance, height: int, width: int) -> list[int]:
    """How many pixels are outside and inside in turn, down the columns, outside first."""
    at = np.sort(instance.columns * height + instance.rows)
    apart = np.flatnonzero(np.diff(at) > 1)
    starts, ends = at[np.append(0, apart + 1)], at[np.append(apart, len(at) - 1)] + 1
    turns = np.stack([starts, ends], axis=1).ravel()
    last = [] if ends[-1] == height * width else [height * width - int(ends[-1])]
    return [*np.diff(turns, prepend=0).tolist(), *last]


def polygons(instance: Instance) -> list[list[Ring]]:
    """The polygons that hold an instance's pixels and no others, each with its holes after it.

    Pixels that touch at a corner only lie in polygons of their own, so that every polygon is valid
    (OGC Simple Features). Seen with y upward, outer rings go counterclockwise and holes clockwise
    (RFC 7946).
    """
    rings = [(_twice_area(ring), ring) for ring in _rings(_borders(instance))]
    found = [(area, [ring]) for area, ring in rings if area > 0]
    for area, ring in rings:
        if area < 0:
            x, y = min(ring, key=lambda point: point[::-1])
            around = [each for each in found if _holds(each[1][0], x, y - 1)]
            min(around, key=lambda each: each[0])[1].append(ring)
    return [polygon for _, polygon in found]


def _borders(instance: Instance) -> dict[Point, list[int]]:
    """Where the sides of pixels lie that have ground beyond them: the corners that they leave, and
    in which of STEPS. The instance is on their right as they are seen, with y downward.
    """
    left, top, width, height = instance.box
    mask = np.zeros((height + 2, width + 2), bool)
    mask[instance.rows - top + 1, instance.columns - left + 1] = True
    inner = mask[1:-1, 1:-1]
    beyond = (mask[:-2, 1:-1], mask[1:-1, 2:], mask[2:, 1:-1], mask[1:-1, :-2])
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))
    leaving: dict[Point, list[int]] = {}
    for step, (other, (x, y)) in enumerate(zip(beyond, corners, strict=True)):
        rows, columns = np.nonzero(inner & ~other)
        places = zip((columns + left + x).tolist(), (rows + top + y).tolist(), strict=True)
        for place in places:
            leaving.setdefault(place, []).append(step)
    return leaving


def _rings(leaving: dict[Point, list[int]]) -> Iterator[Ring]:
    """The closed lines of these sides, none of which meets itself."""
    while leaving:
        at = next(iter(leaving))
        step, path, places = leaving[at][0], [at], {at: 0}
        while path:
            steps = leaving[at]
            # Where two pixels touch at a corner, a turn to the right stays with the same pixel.
            step = next(turn for turn in ((step + 1) % 4, step, (step - 1) % 4) if turn in steps)
            steps.remove(step)
            if not steps:
                del leaving[at]
            at = (at[0] + STEPS[step][0], at[1] + STEPS[step][1])
            first = places.get(at)
            if first is None:
                places[at] = len(path)
                path.append(at)
                continue
            ring, path = path[first:], path[: first + 1] if first else []
            for place in ring[1:]:
                del places[place]
            yield _corners(ring)


def _corners(ring: Ring) -> Ring:
    """A line without the points that lie straight between their neighbors."""
    around = zip(ring[-1:] + ring[:-1], ring, ring[1:] + ring[:1], strict=True)
    return [at for before, at, after in around if before[0] != after[0] and before[1] != after[1]]


def _twice_area(ring: Ring) -> int:
    """Positive where a ring goes counterclockwise, seen with y upward."""
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, ring[1:] + ring[:1], strict=True))


def _holds(ring: Ring, x: int, y: int) -> bool:
    """Whether the pixel whose upper left corner is (x, y) lies inside a ring."""
    sides = zip(ring, ring[1:] + ring[:1], strict=True)
    right = [a for a, b in sides if a[0] == b[0] > x and min(a[1], b[1]) <= y < max(a[1], b[1])]
    return len(right) % 2 == 1
