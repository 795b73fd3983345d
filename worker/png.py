"""Encodes pixels as PNG, with one filter and libdeflate.

Pillow tries five filters per row, takes two to three times as long, and writes larger files
(`python -m benchmarks.png`). The bytes depend on pixels, text and libdeflate's version only:
libdeflate chooses the same matches on every instruction set. ISA-L is faster, but does not.
Knows nothing of what is drawn.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from importlib.metadata import version

import deflate
import numpy as np
from numpy.typing import NDArray

ENCODER = f"deflate {version('deflate')}"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
COMPRESSION = 2
"""libdeflate's level. Files are 11% smaller than with 1 at the same speed. 3 saves 1% more and
takes 50% longer."""
UP = 2
"""The filter of all rows: difference from the row above (PNG specification, section 9.2)."""
GREY, RGB = 0, 2


def encode_png(
    pixels: NDArray[np.uint8 | np.uint16], texts: Mapping[str, str], size: bytes = b""
) -> bytes:
    """The PNG of RGB [H, W, 3] in 8 bits or grey [H, W] in 8 or 16, with texts by keyword (iTXt,
    UTF-8) and, unless empty, the size of a pixel (pHYs)."""
    height, width = pixels.shape[:2]
    colour = RGB if pixels.ndim == 3 else GREY
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour, 0, 0, 0)
    notes = (
        (b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode())
        for keyword, text in texts.items()
    )
    content = bytes(deflate.zlib_compress(_filtered(pixels), COMPRESSION))
    sizes = [(b"pHYs", size)] if size else []
    chunks = ((b"IHDR", header), *sizes, *notes, (b"IDAT", content), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(name, data) for name, data in chunks)


def _filtered(pixels: NDArray[np.uint8 | np.uint16]) -> bytes:
    """The filtered rows: differences of bytes modulo 256, each row preceded by its filter number.
    Of 16 bits the higher byte comes first."""
    rows = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">"))
    rows = rows.reshape(len(pixels), -1).view(np.uint8)
    filtered = np.empty((len(rows), 1 + rows.shape[1]), dtype=np.uint8)
    filtered[:, 0] = UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered.tobytes()


def _chunk(name: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(name))
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)
