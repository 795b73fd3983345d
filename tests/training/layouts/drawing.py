"""Annotated images that tests of layouts draw for themselves, and how they compare what is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.layouts import list_originals, look
from training.layouts.original import AnnotatedImage, Listing, Original
from training.pictures import Rules
from training.rasters import SourceError

HEIGHT, WIDTH = 48, 64
"""Not square, so that a map that comes turned over is found."""


def draw(seed: int, nuclei: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 [HEIGHT, WIDTH, 3], whose pixels all differ, and ids 1 to `nuclei` of discs
    that do not overlap, int32 [HEIGHT, WIDTH].
    """
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    for number in range(1, nuclei + 1):
        row, column = 8 + (number - 1) // 3 * 16, 10 + (number - 1) % 3 * 20
        radius = random.integers(3, 7)
        ids[(y - row) ** 2 + (x - column) ** 2 < radius**2] = number
    return random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8), ids


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def read_all(layout: str, source: Path, nuclei: tuple[str, ...] = ()) -> dict[str, AnnotatedImage]:
    """The pair of every original by its name."""
    listing = listed(layout, source, nuclei)
    return {original.name: original.read() for original in listing.originals}


def listed(layout: str, source: Path, nuclei: tuple[str, ...] = ()) -> Listing:
    return list_originals(layout, source, Rules(nuclei=nuclei))


def assert_pair(pair: AnnotatedImage, image: np.ndarray, ids: np.ndarray) -> None:
    assert pair.image.dtype == np.uint8
    assert np.array_equal(pair.image, image)
    assert isinstance(pair.nuclei, np.ndarray)
    assert pair.nuclei.dtype == np.int32
    assert np.array_equal(pair.nuclei, ids)


def assert_only(layout: str, source: Path) -> None:
    """`--look` names this layout, and no other."""
    assert list(look(source)) == [layout]


def assert_refused(original: Original, message: str) -> None:
    """Reading it is refused with one line."""
    with pytest.raises(SourceError, match=message) as refused:
        original.read()
    assert "\n" not in str(refused.value)


def refusal(layout: str, source: Path, message: str) -> None:
    """Of all originals one is refused, with this message, and the others are read."""
    broken = []
    for original in listed(layout, source).originals:
        try:
            original.read()
        except SourceError:
            broken.append(original)
    assert len(broken) == 1, [original.name for original in broken]
    assert_refused(broken[0], message)
