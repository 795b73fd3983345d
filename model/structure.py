"""Given structure: token ids or a mask, and its compact form. Standard library only.

A job keeps what was given once; requests and parts have a `StructureRef` to it. Knows no PNG, no
Redis and no tensors.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

from pathar.contract import pixels_sha256

Structure = tuple[int, ...] | bytes
"""Structure token ids, row-major; or a square mask, one bit a pixel, row by row without gaps, the
highest bit of a byte first: 1 in nuclei."""
StructureKind = Literal["mask", "tokens"]
MOST_BYTES = 1 << 17
"""The largest structure, uncompressed: the mask of the largest image, 1024 pixels a side."""
_PIXELS = [bytes(255 * (byte >> bit & 1) for bit in range(7, -1, -1)) for byte in range(256)]
"""The eight pixels of a byte of a mask."""


@dataclass(frozen=True)
class StructureRef:
    """What kind of structure was given, and its SHA-256, 64 hex digits.

    Of a mask it is `pixels_sha256` of the pixels 0 and 255; of tokens, of their ids as 16 bits
    each, little endian.
    """

    kind: StructureKind
    sha256: str


def reference(structure: Structure) -> StructureRef:
    """The reference to a structure."""
    if isinstance(structure, bytes):
        side = math.isqrt(8 * len(structure))
        pixels = b"".join(_PIXELS[byte] for byte in structure)
        return StructureRef("mask", pixels_sha256((side, side), pixels))
    return StructureRef("tokens", hashlib.sha256(_raw(structure)).hexdigest())


def packed(structure: Structure) -> str:
    """The structure as a short text: base64 of the compressed ids (16 bits each) or bits."""
    return base64.b64encode(zlib.compress(_raw(structure), 9)).decode()


def unpacked(text: str | bytes, ref: StructureRef) -> Structure:
    """Inverse of `packed`. ValueError for what is not the structure that `ref` names."""
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(base64.b64decode(text, validate=True), MOST_BYTES)
        found = raw if ref.kind == "mask" else struct.unpack(f"<{len(raw) // 2}H", raw)
    except (binascii.Error, zlib.error, struct.error) as error:
        raise ValueError(f"the given structure cannot be read: {error}") from None
    if reference(found) != ref:
        raise ValueError("the given structure is not the one that was asked for")
    return found


def _raw(structure: Structure) -> bytes:
    if isinstance(structure, bytes):
        return structure
    return struct.pack(f"<{len(structure)}H", *structure)
