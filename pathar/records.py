"""Reads one PNG: its record, which says where it came from, its pixels, and what contradicts them.

docs/provenance.md says what each field of a record means. Knows no other file and no model.
"""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathar.contract import (
    IMAGE_NAME,
    RECORD_KEY,
    XMP,
    XMP_KEY,
    canonical_json,
    numerics_of,
    pixel_size,
    pixels_sha256,
    sha256,
)

STREAMS = ("structure_tokens", "appearance_tokens")
FIELDS: Mapping[str, type] = {
    **{name: str for name in ("generator", "software_version", "note", "model", "model_version")},
    **{name: str for name in ("label", "numerics", "tokens_sha256", "file", "pixels_sha256")},
    **{"synthetic": bool, "settings": dict, "seed": int, "given_structure": bool},
    **{"made_with": dict, "record_sha256": str, "nuclei": int},
}
"""The fields of every record, by type."""
OF_OTHERS: Mapping[str, type] = {"image_sha256": str}
"""The field of mask and instances beside them. An image has STREAMS instead."""
OF_FILE = frozenset(("file", "image_sha256", "pixels_sha256", "record_sha256", *STREAMS))
"""Fields in which the files of one pair differ."""
OF_GIVEN = frozenset(("given_mask_sha256", "mask_dice", "given_image_sha256", "segmented"))
"""Fields on a mask and an image that were given. Who draws again has their tokens alone."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
CREDENTIALS = b"caBX"
"""The chunk of C2PA content credentials."""
CHUNKS = (b"IHDR", b"pHYs", b"iTXt", b"IDAT", b"IEND", CREDENTIALS)
PIXELS_ALTERED = "has pixels that were altered"


@dataclass
class Png:
    """A PNG as far as it can be read; `wrong` says what is not as it was written."""

    name: str
    """Which file of a pair it should be."""
    ours: bool = False
    """Whether it has a record, whole or not."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """The record; empty unless its digests agree."""
    tokens: NDArray[np.int64] | None = None
    """Ids of both streams [2, rows, columns]; None in files other than the image."""
    pixels: NDArray[Any] | None = None
    """[H, W] or [H, W, 3]; None where they cannot be read."""
    signed: bool = False
    """Whether it has content credentials."""
    wrong: list[str] = field(default_factory=list)


def read_png(name: str, data: bytes) -> Png:
    """A PNG that should be the file `name` of a pair, with what is wrong with it."""
    png = Png(name)
    chunks, damage = _chunks(data)
    texts = [content for kind, content in chunks if kind == b"iTXt"]
    records = [text for text in texts if text.startswith(f"{RECORD_KEY}\0".encode())]
    added = sorted({kind.decode("latin-1") for kind, _ in chunks if kind not in CHUNKS})
    png.ours, png.signed = bool(records), any(kind == CREDENTIALS for kind, _ in chunks)
    if damage:
        png.wrong.append(damage)
    elif added:
        png.wrong.append(f"has chunks of other software: {', '.join(added)}")
    elif records and texts != [records[0], _text(XMP_KEY, XMP)]:
        png.wrong.append("has other texts than the record and the XMP that PathAR writes")
    if records:
        png.wrong += _read_record(png, records[0])
        size = pixel_size(png.record)
        if png.record and any(kind == b"pHYs" and content != size for kind, content in chunks):
            png.wrong.append("has another pixel size (pHYs) than its record")
        png.wrong += _read_pixels(png, data)
    return png


def _chunks(data: bytes) -> tuple[list[tuple[bytes, bytes]], str]:
    """The chunks of a PNG as far as they go, the last one perhaps cut; and what is damaged."""
    if not data.startswith(SIGNATURE):
        return [], "is not a PNG"
    found: list[tuple[bytes, bytes]] = []
    damage, at = "", len(SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        content, checksum = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        found.append((kind, content))
        at += 12 + length
        if len(checksum) < 4:
            break
        if zlib.crc32(content, zlib.crc32(kind)).to_bytes(4, "big") != checksum:
            damage = damage or f"has a damaged chunk {kind.decode('latin-1')}"
        if kind == b"IEND":
            left = len(data) - at
            return found, damage or (f"has {left} bytes after its end" if left else "")
    return found, damage or "is cut off"


def _text(keyword: str, text: str) -> bytes:
    """The content of a chunk iTXt, uncompressed, in no language."""
    return keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode()


def _read_record(png: Png, content: bytes) -> Iterator[str]:
    """Read the record of a PNG; yields what is wrong with it."""
    text = content.removeprefix(_text(RECORD_KEY, "")).decode(errors="replace")
    try:
        record = json.loads(text)
        said = {name: value for name, value in record.items() if name != "record_sha256"}
        unedited = canonical_json(record) == text
        unedited = unedited and sha256(canonical_json(said)) == record.get("record_sha256")
    except (ValueError, AttributeError, RecursionError):
        unedited = False
    if not unedited:
        yield "has a record that was edited"
        return
    fields = {**FIELDS, **(dict.fromkeys(STREAMS, str) if png.name == IMAGE_NAME else OF_OTHERS)}
    wrong = [name for name, kind in fields.items() if type(record.get(name)) is not kind]
    if wrong:
        yield f"has a record without a valid {wrong[0]}"
    elif record["file"] != png.name:
        yield f"is the {record['file']} of a pair"
    elif numerics_of(record["made_with"]) != record["numerics"]:
        yield "has a record that contradicts itself: numerics are not those of made_with"
    else:
        png.record = record
        if png.name == IMAGE_NAME:
            yield from _read_tokens(png, record)


def _read_tokens(png: Png, record: Mapping[str, Any]) -> Iterator[str]:
    try:
        ids = [
            np.frombuffer(base64.b64decode(record[name], validate=True), "<u2") for name in STREAMS
        ]
        width, height = record.get("width", 1), record.get("height", 1)
        rows = math.isqrt(len(ids[0]) * height // width)
        grids = np.stack(ids).astype(np.int64).reshape(2, rows, -1)
    except (ValueError, TypeError, ArithmeticError):
        grids = np.zeros((2, 0, 0), np.int64)
    if sha256(_listed(grids)) != record["tokens_sha256"]:
        yield "has a record that contradicts itself: tokens are not those of tokens_sha256"
    else:
        png.tokens = grids


def _listed(grids: NDArray[np.int64]) -> str:
    """The text of tokens.json for both grids [2, rows, columns]."""
    return canonical_json({name: grid.tolist() for name, grid in zip(STREAMS, grids, strict=True)})


def _read_pixels(png: Png, data: bytes) -> Iterator[str]:
    """Read the pixels of a PNG; yields what is wrong with them."""
    try:
        pixels = decode_png(data)
    except ValueError as error:
        if not png.wrong:
            yield f"has pixels that cannot be read ({error})"
        return
    png.pixels = pixels
    values = pixels if pixels.itemsize == 1 else pixels.astype(">u2")
    if png.record and pixels_sha256(pixels.shape, values.tobytes()) != png.record["pixels_sha256"]:
        yield PIXELS_ALTERED


def decode_png(data: bytes) -> NDArray[Any]:
    """The pixels of a PNG, [H, W] or [H, W, channels]. ValueError where they cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                return np.asarray(image)
    except (OSError, SyntaxError, ValueError, Warning, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None
