"""An image as a pyramidal OME-TIFF, which viewers of whole slides read. Needs the extra `tiff`.

The pixels are those of the PNG; the file's own bytes depend on the version of tifffile. Knows
nothing of how an image was drawn.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathar.contract import canonical_json, record_of
from pathar.pair_files import write_atomically
from pathar.records import decode_png

TILE = 256
"""Pixels a side of a tile; the pyramid ends with the first level that is one tile."""


def write_ome_tiff(path: Path, png: bytes) -> None:
    """Write the image in the bytes of a PNG of ours, with its record as the description.

    Microns a pixel are written where the record has them. ModuleNotFoundError without tifffile,
    OSError.
    """
    import tifffile

    record = record_of(png)
    levels = pyramid(decode_png(png))
    about: dict[str, Any] = {"axes": "YXS", "Description": canonical_json(record)}
    if mpp := record.get("mpp"):
        about |= {f"PhysicalSize{axis}": mpp for axis in "XY"}
        about |= {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    options: dict[str, Any] = {
        "tile": (TILE, TILE),
        "photometric": "rgb",
        "compression": "adobe_deflate",
    }
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=True, ome=True) as tiff:
        tiff.write(levels[0], subifds=len(levels) - 1, metadata=about, **options)
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, **options)
    write_atomically(path, file.getvalue())


def pyramid(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The image [H, W, 3] and its halves: means of 2 x 2 pixels, an odd last row or column left
    out."""
    levels = [image]
    while max(levels[-1].shape[:2]) > TILE and min(levels[-1].shape[:2]) > 1:
        above = levels[-1]
        height, width = above.shape[0] // 2, above.shape[1] // 2
        cells = above[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
        levels.append((cells.mean((1, 3)) + 0.5).astype(np.uint8))
    return levels
