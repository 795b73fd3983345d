"""Images with rectangles as nuclei, for layouts whose annotations are outlines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.layouts import LAYOUTS, list_originals
from training.layouts.original import AnnotatedImage, Original
from training.pictures import Rules
from training.rasters import SourceError

SHAPE = (60, 80)
BOXES = ((3, 5, 20, 30), (25, 40, 50, 60), (10, 65, 40, 75))
"""First row, first column, and those after the last, of each nucleus."""
Point = tuple[float, float]


def truth(boxes: tuple[tuple[int, int, int, int], ...] = BOXES) -> np.ndarray:
    """Ids, int32 [60, 80]."""
    ids = np.zeros(SHAPE, dtype=np.int32)
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        ids[top:bottom, left:right] = number
    return ids


def corners(box: tuple[int, int, int, int]) -> list[Point]:
    """The outline of a box between pixels, as x and y."""
    top, left, bottom, right = box
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def pixels(box: tuple[int, int, int, int]) -> list[Point]:
    """The outline of a box through the middle of its outer pixels, as x and y."""
    top, left, bottom, right = box
    return corners((top, left, bottom - 1, right - 1))


def save_image(path: Path, seed: int = 0) -> np.ndarray:
    """A picture whose pixels all differ; what was saved."""
    image = np.random.default_rng(seed).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, "TIFF" if path.suffix in (".svs", ".tif") else None)
    return image


def save_json(path: Path, value: Any) -> None:
    """A JSON file; a text is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def pairs(layout: str, source: Path, *nuclei: str) -> dict[str, AnnotatedImage]:
    """Every original's pair, by name."""
    listing = list_originals(layout, source, Rules(nuclei=nuclei))
    return {original.name: original.read() for original in listing.originals}


def listed(layout: str, source: Path, *nuclei: str) -> list[Original]:
    """The originals, not read."""
    return list(list_originals(layout, source, Rules(nuclei=nuclei)).originals)


def refusal(layout: str, source: Path, *nuclei: str) -> str:
    """The one line that refuses a source, or its first broken original."""
    with pytest.raises(SourceError) as refused:
        pairs(layout, source, *nuclei)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def layouts_of(source: Path) -> set[str]:
    """The names of the layouts that say that a folder looks like them."""
    return {name for name, layout in LAYOUTS.items() if layout.look(source)}


def assert_pair(pair: AnnotatedImage, image: np.ndarray, ids: np.ndarray) -> None:
    """Images byte by byte and ids one by one."""
    assert np.array_equal(pair.image, image)
    assert isinstance(pair.nuclei, np.ndarray)
    assert pair.nuclei.dtype == np.int32
    assert np.array_equal(pair.nuclei, ids)
