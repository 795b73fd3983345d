"""What shows of the windows that a large image was drawn in, and how evenly nuclei lie in it.

Figures of one image are ratios; over several images they have a standard error. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.engine import Patch
from model.windows import Overlap, plan

RINGS = (0, 2, 6, 12)
"""Locations from the border at which a ring begins."""
THIRDS = ("top", "bottom", "left", "right")
GREY = np.array([0.299, 0.587, 0.114])
Map = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Ratio:
    """A mean over images and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        """Of one figure an image."""
        return cls(float(np.mean(ratios)), float(np.std(ratios, ddof=1) / len(ratios) ** 0.5))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"


def borders(rows: int, columns: int, overlap: Overlap) -> tuple[Bools, Bools]:
    """Which borders between locations lie between two windows: of a location and the one on its
    right [rows, columns - 1], and of a location and the one below [rows - 1, columns]."""
    owners = np.zeros((rows, columns), int)
    for window in plan(rows, columns, overlap):
        owners[slice(*window.rows), slice(*window.columns)] = window.number
    return owners[:, 1:] != owners[:, :-1], owners[1:] != owners[:-1]


def differences(patch: Patch, rows: int, columns: int) -> tuple[Map, Map]:
    """The mean step in brightness across each border between locations, as in `borders`."""
    grey = patch.image @ GREY
    cell = grey.shape[0] // rows
    across = np.abs(np.diff(grey, axis=1))[:, cell - 1 :: cell][:, : columns - 1]
    down = np.abs(np.diff(grey, axis=0))[cell - 1 :: cell][: rows - 1]
    return (
        across.reshape(rows, cell, -1).mean(1),
        down.reshape(rows - 1, columns, cell).mean(2),
    )


def density(patch: Patch, rows: int, columns: int) -> list[float]:
    """The share of nuclei's pixels in each ring and in each of THIRDS, by that in the whole image.
    (A count of nuclei is higher at the border, which cuts some.)"""
    cell = patch.mask.shape[0] // rows
    nuclei = (patch.mask > 0).reshape(rows, cell, columns, cell).mean((1, 3))
    y, x = np.mgrid[:rows, :columns]
    to_border = np.minimum(np.minimum(y, rows - 1 - y), np.minimum(x, columns - 1 - x))
    ends = (*RINGS[1:], max(rows, columns))
    places = [(to_border >= a) & (to_border < b) for a, b in zip(RINGS, ends, strict=True)]
    places += [3 * y < rows, 3 * y >= 2 * rows, 3 * x < columns, 3 * x >= 2 * columns]
    return [float(nuclei[place].mean() / nuclei.mean()) for place in places]


@dataclass(frozen=True)
class Crops:
    """Squares of one image, uint8 [M, S, S, 3]: `inside` what one window decides, `across` with the
    place in the middle where four windows meet, `cut` those with quarters from several."""

    inside: Tensor
    across: Tensor
    cut: Tensor

    @classmethod
    def of(cls, patch: Patch, rows: int, columns: int, overlap: Overlap) -> Crops:
        """All that lie within the image."""
        cell, side = patch.image.shape[0] // rows, overlap.rows
        image = torch.from_numpy(patch.image)
        inside: list[Tensor] = []
        across: list[Tensor] = []
        for window in plan(rows, columns, overlap):
            (top, bottom), (left, right) = window.rows, window.columns
            whole = (bottom - top, right - left) == (side, side)
            for found, y, x in (
                (inside if whole else [], top, left),
                (across, top - side // 2, left - side // 2),
            ):
                if 0 <= y <= rows - side and 0 <= x <= columns - side:
                    there = (slice(at * cell, (at + side) * cell) for at in (y, x))
                    found.append(image[tuple(there)])
        cut = torch.stack(across)
        half = side * cell // 2
        for at, (y, x) in enumerate(((0, half), (half, 0), (half, half)), 1):
            quarter = slice(None), slice(y, y + half), slice(x, x + half)
            cut[quarter] = cut[quarter].roll(at, 0)
        return cls(torch.stack(inside), torch.stack(across), cut)


def kernel_distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> Ratio:
    """KID (cubic kernel, in thousandths) between two kinds of crops of the same images: features
    [M, D] of each by image. Only crops of different images are compared, so it is zero in the mean
    where the kinds do not differ. The error is that of a jackknife over the images."""
    images = range(len(one))
    apart = {(i, j): _apart(one[i], other[i], one[j], other[j]) for i, j in permutations(images, 2)}

    def without(left_out: int | None) -> float:
        return float(np.mean([of for pair, of in apart.items() if left_out not in pair]))

    rest = [without(image) for image in images]
    spread = sum((each - np.mean(rest)) ** 2 for each in rest)
    error = float((spread * (len(one) - 1) / len(one)) ** 0.5)
    return Ratio(1000 * without(None), 1000 * error)


def _apart(one: Tensor, other: Tensor, one_too: Tensor, other_too: Tensor) -> float:
    """What crops of two images, of both kinds each, tell of how far the kinds are apart."""

    def alike(these: Tensor, those: Tensor) -> float:
        return float(((these @ those.T / these.shape[1] + 1) ** 3).mean())

    return (
        alike(one, one_too)
        + alike(other, other_too)
        - alike(one, other_too)
        - alike(other, one_too)
    )
