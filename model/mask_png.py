"""Reads a mask that somebody gives as PNG: exactly what the model was trained on, or an error.

Every byte is untrusted. The header and all chunks are checked before a pixel is decompressed, and
then no more is decompressed than the header promises. The decoder sees the header and the pixels
alone. Nothing is resized, turned or guessed. Knows no HTTP and no model.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.request import RequestError
from pathar.contract import MOST_MASK_BYTES

FIELD = "structure.mask_png"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
OTHERS = {
    b"II*\0": "a TIFF file", b"MM\0*": "a TIFF file", b"II+\0": "a TIFF file",
    b"\xff\xd8\xff": "a JPEG file", b"GIF8": "a GIF file", b"BM": "a BMP file",
    b"RIFF": "a WebP file", b"\0\0\0\x0cjP": "a JPEG 2000 file", b"%PDF": "a PDF file",
    b"\x8aMNG": "an MNG file", b"<svg": "an SVG file", b"<?xml": "an XML file",
    b"PK\x03\x04": "a ZIP file", b"\x93NUMPY": "a NumPy file", b"\x1f\x8b": "a gzip file",
}  # fmt: skip
COLOURS = {2: "RGB colours", 3: "a palette", 4: "grey with alpha", 6: "RGB colours with alpha"}
TURNED = 0x0112
"""EXIF's tag of the orientation."""
SHOWN = 6
"""The most values that an error lists."""


def read_mask_png(data: bytes, side: int) -> bytes:
    """The mask in a PNG of `side` x `side` pixels, as the bits of `model.structure.Structure`.

    The PNG is grey with 1 or 8 bits a pixel, neither interlaced, animated, transparent nor turned
    by EXIF. 0 is ground, and one other value is nuclei; a mask of 0 alone has none. RequestError
    for anything else, which says what was found.
    """
    try:
        depth, pixels = _pixels_of(data, side)
        values = _decoded(pixels, side, depth)
        found = np.unique(values)
        if len(found) > 2:
            listed = ", ".join(map(str, found[:SHOWN])) + ", ..." * (len(found) > SHOWN)
            raise _Found(f"a mask of {len(found)} values ({listed})")
        if found[0] != 0:
            raise _Found(f"a mask without ground, of {' and '.join(map(str, found))} alone")
    except _Found as error:
        expected = (
            f"a PNG of {side} x {side} pixels, grey with 1 or 8 bits, of 0 (ground) and one other "
            f"value (nuclei); found {error}"
        )
        raise RequestError(FIELD, str(error), expected) from None
    return np.packbits(values != 0).tobytes()


class _Found(ValueError):
    """Something else than a mask; says what."""


def _pixels_of(data: bytes, side: int) -> tuple[int, bytes]:
    """The bits a pixel and the compressed pixels of a PNG whose chunks are all in order."""
    if not data.startswith(SIGNATURE):
        other = next((name for magic, name in OTHERS.items() if data.startswith(magic)), "")
        raise _Found(other or (f"{len(data)} bytes that are no PNG" if data else "an empty file"))
    if len(data) > MOST_MASK_BYTES:
        raise _Found(f"a file of {len(data)} bytes, more than {MOST_MASK_BYTES}")
    depth, pixels, kinds = 0, bytearray(), set[bytes]()
    for kind, content in _chunks(data):
        if not kinds:
            depth = _depth(kind, content, side)
        elif kind == b"IHDR":
            raise _Found("a PNG with two headers")
        kinds.add(kind)
        if kind == b"IDAT":
            pixels += content
        else:
            _check_chunk(kind, content)
    if not pixels:
        raise _Found("a PNG without pixels")
    return depth, bytes(pixels)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG up to its end, which must be the end of the file."""
    at = len(SIGNATURE)
    while at < len(data):
        if at + 12 > len(data):
            raise _Found("a PNG that is cut off")
        length, kind = struct.unpack_from(">I4s", data, at)
        name = _name(kind)
        if length > len(data) - at - 12:
            raise _Found(f"a PNG that is cut off, in a chunk {name} of {length} bytes")
        content = data[at + 8 : at + 8 + length]
        at += 12 + length
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(data[at - 4 : at], "big"):
            raise _Found(f"a PNG with a damaged chunk {name}")
        yield kind, content
        if kind == b"IEND":
            if at < len(data):
                raise _Found(f"a PNG with {len(data) - at} bytes after its end")
            return
    raise _Found("a PNG that is cut off")


def _depth(kind: bytes, content: bytes, side: int) -> int:
    """The bits a pixel of a PNG with this first chunk."""
    if kind != b"IHDR" or len(content) != 13:
        raise _Found("a PNG without a valid header")
    width, height, depth, colour, *methods, interlaced = struct.unpack(">IIBBBBB", content)
    if colour in COLOURS:
        raise _Found(f"a PNG with {COLOURS[colour]}")
    if colour != 0 or methods != [0, 0] or interlaced > 1:
        raise _Found("a PNG without a valid header")
    if depth not in (1, 8):
        raise _Found(f"a PNG with {depth} bits a pixel")
    if (width, height) != (side, side):
        raise _Found(f"a PNG of {width} x {height} pixels")
    if interlaced:
        raise _Found("an interlaced PNG")
    return int(depth)


def _check_chunk(kind: bytes, content: bytes) -> None:
    """Refuses chunks that change what the pixels show."""
    if kind in (b"acTL", b"fcTL", b"fdAT"):
        raise _Found("an animated PNG")
    if kind == b"tRNS":
        raise _Found("a PNG with a transparent value")
    if kind == b"PLTE":
        raise _Found("a PNG with a palette")
    if content.startswith((b"Raw profile type exif", b"Raw profile type APP1")):
        raise _Found("a PNG with EXIF in its text, which some software turns it by")
    if kind == b"eXIf":
        if (turned := _orientation(content)) != 1:
            raise _Found(f"a PNG that EXIF turns (orientation {turned})")
    elif kind not in (b"IHDR", b"IEND") and not kind[:1].islower():
        raise _Found(f"a PNG with an unknown chunk {_name(kind)}")


def _orientation(exif: bytes) -> int:
    """How EXIF turns a picture (EXIF 2.3, section 4.6): 1 is upright, and what is not said."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    try:
        if order is None:
            raise struct.error("no byte order")
        [first] = struct.unpack_from(f"{order}I", exif, 4)
        [count] = struct.unpack_from(f"{order}H", exif, first)
        for at in range(first + 2, first + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, at)
            if tag == TURNED:
                return int(value)
    except struct.error:
        raise _Found("a PNG with damaged EXIF") from None
    return 1


def _name(kind: bytes) -> str:
    """The kind of a chunk for people: four letters, or in hex whatever else it is."""
    return kind.decode() if kind.isalpha() else kind.hex()


def _decoded(compressed: bytes, side: int, depth: int) -> NDArray[np.uint8]:
    """The values [side, side] of compressed pixels."""
    row = 1 + (side * depth + 7) // 8
    unpacker = zlib.decompressobj()
    try:
        rows = unpacker.decompress(compressed, row * side + 1)
    except zlib.error:
        raise _Found("a PNG whose pixels cannot be decompressed") from None
    if len(rows) > row * side:
        raise _Found("a PNG with more pixels than its header says")
    if len(rows) < row * side or not unpacker.eof:
        raise _Found("a PNG whose pixels end early")
    if max(rows[::row]) > 4:
        raise _Found("a PNG with an unknown filter")
    header = struct.pack(">IIBBBBB", side, side, depth, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", compressed), (b"IEND", b""))
    png = SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image, np.uint8)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
