"""Cutting annotated images into square tiles, and the files that tiles are written to.

A tile is `images/NAME.png`, `masks/NAME.png` (0 and 255) and, where ids of nuclei are known,
`instances/NAME.png` (16 bits, 0 outside). Knows no layouts and no manifests.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

from training.meaning import CONNECTED

KINDS = ("masks", "instances", "images")
"""Folders of a tile's files, in the order in which they are written: the image last."""
LONGEST = 120
"""Letters of an original's name in those of its tiles; file systems allow 255 bytes."""
MOST_IDS = 2**16 - 1

Small = Literal["refuse", "skip", "pad", "scale"]


@dataclass(frozen=True)
class Tile:
    """A square of an original, by its upper left corner, and the name of its files."""

    name: str
    top: int
    left: int


def tile_places(shape: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """Upper left corners (row, column) of the fewest tiles that cover `shape`, evenly spread."""
    rows, columns = (_starts(length, size) for length in shape)
    return [(row, column) for row in rows for column in columns]


def _starts(length: int, size: int) -> list[int]:
    count = math.ceil(length / size)
    return [round(index * (length - size) / max(1, count - 1)) for index in range(count)]


def fitted_shape(shape: tuple[int, int], size: int, small: Small) -> tuple[int, int]:
    """Height and width after `fitted`."""
    height, width = shape
    if min(shape) >= size:
        return shape
    if small == "scale":
        factor = size / min(shape)
        return max(size, round(height * factor)), max(size, round(width * factor))
    return max(size, height), max(size, width)


def file_names(names: Sequence[str]) -> dict[str, str]:
    """What the files of each original are called: its name, with a digest where it had to be
    changed so much that two could meet, also where a file system takes A and a for one letter.
    """
    plain = {name: _plain(name) for name in names}
    held: dict[str, list[str]] = {}
    for name, file in plain.items():
        held.setdefault(file.casefold(), []).append(name)
    return {
        name: file if held[file.casefold()] == [name] else f"{file}-{_short_digest(name)}"
        for name, file in plain.items()
    }


def _plain(name: str) -> str:
    """Letters and digits of any script stay; what file systems and URLs dislike becomes a dash."""
    plain = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", name)).strip(".-") or "original"
    while len(plain.encode()) > LONGEST:
        plain = plain[:-1]
    return plain


def _short_digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def fitted(
    image: np.ndarray, nuclei: np.ndarray, size: int, small: Small
) -> tuple[np.ndarray, np.ndarray]:
    """A pair at least `size` pixels a side: enlarged, or continued by its mirror image."""
    shape = fitted_shape(nuclei.shape, size, small)
    if shape == nuclei.shape:
        return image, nuclei
    if small == "scale":
        height, width = shape
        larger = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        rows, columns = (
            (np.arange(new) + 0.5) * old // new
            for new, old in zip(shape, nuclei.shape, strict=True)
        )
        return np.array(larger), nuclei[rows.astype(int)[:, None], columns.astype(int)]
    margins = [(0, new - old) for new, old in zip(shape, nuclei.shape, strict=True)]
    mirrored = np.pad(nuclei, margins, mode="symmetric")
    if nuclei.dtype != bool:
        mirrored = _numbered_apart(mirrored, nuclei)
    return np.pad(image, [*margins, (0, 0)], mode="symmetric"), mirrored


def _numbered_apart(mirrored: np.ndarray, nuclei: np.ndarray) -> np.ndarray:
    """Ids in which the mirror image of a nucleus that it does not touch has an id of its own."""
    height, width = nuclei.shape
    following = int(nuclei.max(initial=0)) + 1
    for number in np.unique(nuclei[nuclei > 0]).tolist():
        pieces, count = ndimage.label(mirrored == number, CONNECTED)
        original = set(np.unique(pieces[:height, :width]).tolist())
        for piece in sorted(set(range(1, count + 1)) - original):
            mirrored[pieces == piece] = following
            following += 1
    return mirrored


def paths(out: Path, tile: Tile, ids: bool) -> list[Path]:
    """The files of a tile, in the order in which they are written."""
    return [out / kind / f"{tile.name}.png" for kind in KINDS if ids or kind != "instances"]


def write_tile(
    out: Path, tile: Tile, size: int, image: np.ndarray, nuclei: np.ndarray, shrink: int = 1
) -> None:
    """Write a tile's files; one whose image is there is complete. `nuclei` is bool or int32 ids.

    A tile of `size` pixels a side shows `size * shrink` of the original.
    """
    side = size * shrink
    square = np.s_[tile.top : tile.top + side, tile.left : tile.left + side]
    ids, pixels, of_tile = nuclei.dtype != bool, image[square], nuclei[square]
    if shrink > 1:
        pixels = np.array(Image.fromarray(pixels).reduce(shrink))
        of_tile = shrunk(of_tile, shrink)
    content = {"masks": (of_tile > 0).astype(np.uint8) * 255, "images": pixels}
    if ids:
        content["instances"] = _sixteen_bits(of_tile)
    for path in paths(out, tile, ids):
        buffer = io.BytesIO()
        Image.fromarray(content[path.parent.name]).save(buffer, "PNG")
        write_atomically(path, buffer.getvalue())


def shrunk(nuclei: np.ndarray, by: int) -> np.ndarray:
    """A map of nuclei at a `by`-th of its sides: a pixel is of a nucleus where half of those that
    it stands for are, and then of the one that most of them have, of the first of several."""
    rows, columns = (side // by for side in nuclei.shape)
    blocks = nuclei.reshape(rows, by, columns, by).swapaxes(1, 2).reshape(rows, columns, by * by)
    inside = 2 * (blocks > 0).sum(-1) >= by * by
    most, found = np.zeros((rows, columns), int), np.zeros((rows, columns), nuclei.dtype)
    for at in range(by * by):
        here = blocks[..., at]
        votes = np.where(here > 0, (blocks == here[..., None]).sum(-1), 0)
        found, most = np.where(votes > most, here, found), np.maximum(votes, most)
    return np.where(inside, found, np.zeros_like(found))


def _sixteen_bits(ids: np.ndarray) -> np.ndarray:
    """Ids as they are where they fit; else 1 to n in their order."""
    if ids.max(initial=0) <= MOST_IDS:
        return ids.astype(np.uint16)
    places = np.unique(ids[ids > 0], return_inverse=True)[1]
    small = np.zeros(ids.shape, dtype=np.uint16)
    small[ids > 0] = places + 1
    return small


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the file and rename, so that a kill leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)
