"""Reads masks and images that somebody gives as PNG: what the model was trained on, or an error.

Every byte is untrusted. The header and all chunks are checked before a pixel is decompressed, and
then no more is decompressed than the header promises. The decoder sees the header and the pixels
alone. Nothing is resized, turned or guessed, and colour profiles are not applied, as in training.
Knows no HTTP and no model.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.given import Size
from model.request import RequestError
from pathar.contract import most_image_bytes, most_mask_bytes

SIGNATURE = b"\x89PNG\r\n\x1a\n"
OTHERS = {
    b"II*\0": "a TIFF file", b"MM\0*": "a TIFF file", b"II+\0": "a TIFF file",
    b"\xff\xd8\xff": "a JPEG file", b"GIF8": "a GIF file", b"BM": "a BMP file",
    b"RIFF": "a WebP file", b"\0\0\0\x0cjP": "a JPEG 2000 file", b"%PDF": "a PDF file",
    b"\x8aMNG": "an MNG file", b"<svg": "an SVG file", b"<?xml": "an XML file",
    b"PK\x03\x04": "a ZIP file", b"\x93NUMPY": "a NumPy file", b"\x1f\x8b": "a gzip file",
}  # fmt: skip
GREY, RGB, RGBA = 0, 2, 6
COLOURS = {GREY: "grey", RGB: "RGB colours", 3: "a palette", 4: "grey with alpha",
           RGBA: "RGB colours with alpha"}  # fmt: skip
CHANNELS = {GREY: 1, RGB: 3, RGBA: 4}
OPAQUE = 255
TURNED = 0x0112
"""EXIF's tag of the orientation."""
SHOWN = 6
"""The most values that an error lists."""


def read_mask_png(data: bytes, size: Size, field: str = "structure.mask_png") -> bytes:
    """The mask in a PNG of this size, as the bits of `model.given.Stream`.

    The PNG is grey with 1 or 8 bits a pixel, neither interlaced, animated, transparent nor turned
    by EXIF. 0 is ground, and one other value is nuclei; a mask of 0 alone has none. RequestError
    for anything else, which names `field` and says what was found.
    """
    try:
        values = _read(data, _Wanted(size, most_mask_bytes(*size), {GREY: (1, 8)}))
        found = np.unique(values)
        if len(found) > 2:
            listed = ", ".join(map(str, found[:SHOWN])) + ", ..." * (len(found) > SHOWN)
            raise _Found(f"a mask of {len(found)} values ({listed})")
        if found[0] != 0:
            raise _Found(f"a mask without ground, of {' and '.join(map(str, found))} alone")
    except _Found as error:
        expected = (
            f"a PNG of {size[0]} x {size[1]} pixels, grey with 1 or 8 bits, of 0 (ground) and one "
            f"other value (nuclei); found {error}"
        )
        raise RequestError(field, str(error), expected) from None
    return np.packbits(values != 0).tobytes()


def read_image_png(data: bytes, size: Size, field: str = "appearance.image_png") -> bytes:
    """The image in a PNG of this size: RGB, 8 bits, row by row.

    The PNG has RGB colours with 8 bits each, with or without alpha, which is 255 everywhere; else
    as a mask's. RequestError as of `read_mask_png`.
    """
    try:
        values = _read(data, _Wanted(size, most_image_bytes(*size), {RGB: (8,), RGBA: (8,)}))
        if values.shape[-1] == CHANNELS[RGBA] and (values[..., 3] != OPAQUE).any():
            raise _Found("a PNG with pixels that are transparent")
    except _Found as error:
        expected = (
            f"a PNG of {size[0]} x {size[1]} pixels, RGB with 8 bits, without transparent pixels; "
            f"found {error}"
        )
        raise RequestError(field, str(error), expected) from None
    return values[..., :3].tobytes()


def read_region_png(data: bytes, size: Size, grid: tuple[int, int], field: str) -> list[bool]:
    """Which locations of a grid (rows, columns) a region keeps: those whose pixels are all white.

    The PNG is as that of a mask, but 0 is what is drawn anew, and one other value is what is kept.
    RequestError as of `read_mask_png`.
    """
    try:
        values = _read(data, _Wanted(size, most_mask_bytes(*size), {GREY: (1, 8)}))
        found = np.unique(values)
        if len(found) > 2 or (len(found) == 2 and found[0] != 0):
            raise _Found(f"a region of the values {', '.join(map(str, found[:SHOWN]))}")
    except _Found as error:
        expected = (
            f"a PNG of {size[0]} x {size[1]} pixels, grey with 1 or 8 bits, of 0 (drawn anew) and "
            f"one other value (kept); found {error}"
        )
        raise RequestError(field, str(error), expected) from None
    rows, columns = grid
    inside = (values != 0).reshape(rows, size[1] // rows, columns, size[0] // columns)
    inside = inside.all(axis=(1, 3))
    return [bool(kept) for kept in inside.flatten()]


@dataclass(frozen=True)
class _Wanted:
    """What a PNG must be: its size in pixels, its most bytes, and the bits that a value may have by
    the type of its colours."""

    size: Size
    most: int
    depths: Mapping[int, tuple[int, ...]]


def _read(data: bytes, wanted: _Wanted) -> NDArray[np.uint8]:
    """The values [height, width] or [height, width, channels] of a PNG."""
    depth, colour, pixels = _pixels_of(data, wanted)
    return _decoded(pixels, wanted.size, depth, colour)


class _Found(ValueError):
    """Something else than what is wanted; says what."""


def _pixels_of(data: bytes, wanted: _Wanted) -> tuple[int, int, bytes]:
    """The bits a value, the type of colours and the compressed pixels of a PNG whose chunks are all
    in order."""
    if not data.startswith(SIGNATURE):
        other = next((name for magic, name in OTHERS.items() if data.startswith(magic)), "")
        raise _Found(other or (f"{len(data)} bytes that are no PNG" if data else "an empty file"))
    if len(data) > wanted.most:
        raise _Found(f"a file of {len(data)} bytes, more than {wanted.most}")
    depth, colour, pixels, kinds = 0, GREY, bytearray(), set[bytes]()
    for kind, content in _chunks(data):
        if not kinds:
            depth, colour = _header(kind, content, wanted)
        elif kind == b"IHDR":
            raise _Found("a PNG with two headers")
        kinds.add(kind)
        if kind == b"IDAT":
            pixels += content
        else:
            _check_chunk(kind, content)
    if not pixels:
        raise _Found("a PNG without pixels")
    return depth, colour, bytes(pixels)


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


def _header(kind: bytes, content: bytes, wanted: _Wanted) -> tuple[int, int]:
    """The bits a value and the type of colours of a PNG with this first chunk."""
    if kind != b"IHDR" or len(content) != 13:
        raise _Found("a PNG without a valid header")
    width, height, depth, colour, *methods, interlaced = struct.unpack(">IIBBBBB", content)
    if colour in COLOURS and colour not in wanted.depths:
        raise _Found(f"a PNG with {COLOURS[colour]}" if colour else "a PNG in grey")
    if colour not in COLOURS or methods != [0, 0] or interlaced > 1:
        raise _Found("a PNG without a valid header")
    if depth not in wanted.depths[colour]:
        raise _Found(f"a PNG with {depth} bits a {'colour' if colour else 'pixel'}")
    if (width, height) != wanted.size:
        raise _Found(f"a PNG of {width} x {height} pixels")
    if interlaced:
        raise _Found("an interlaced PNG")
    return int(depth), int(colour)


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


def _decoded(compressed: bytes, size: Size, depth: int, colour: int) -> NDArray[np.uint8]:
    """The values [height, width], or [height, width, channels], of compressed pixels."""
    width, height = size
    row = 1 + (width * depth * CHANNELS[colour] + 7) // 8
    unpacker = zlib.decompressobj()
    try:
        rows = unpacker.decompress(compressed, row * height + 1)
    except zlib.error:
        raise _Found("a PNG whose pixels cannot be decompressed") from None
    if len(rows) > row * height:
        raise _Found("a PNG with more pixels than its header says")
    if len(rows) < row * height or not unpacker.eof:
        raise _Found("a PNG whose pixels end early")
    if max(rows[::row]) > 4:
        raise _Found("a PNG with an unknown filter")
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", compressed), (b"IEND", b""))
    png = SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image, np.uint8)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
