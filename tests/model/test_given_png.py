"""Masks as PNG: the right ones are read, and each of many others is refused by what it is."""

from __future__ import annotations

import functools
import io
import os
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from model.given_png import SIGNATURE, read_image_png, read_mask_png, read_region_png
from model.request import RequestError
from pathar.contract import LEAST_IMAGE_BYTES, LEAST_MASK_BYTES

SIDE = 64
MASK = np.zeros((SIDE, SIDE), np.uint8)
MASK[8:20, 30:50] = 255
MASK[40:, :9] = 255


def saved(pixels: np.ndarray | Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(
    *between: bytes,
    size: tuple[int, int] = (SIDE, SIDE),
    kind: tuple[int, int] = (8, 0),
    rest: tuple[int, int, int] = (0, 0, 0),
    rows: bytes | None = None,
    content: bytes | None = None,
) -> bytes:
    """A PNG of MASK by hand, with chunks after its header; `kind` is depth and colour type."""
    head = struct.pack(">IIBBBBB", *size, *kind, *rest)
    rows = b"".join(b"\0" + row.tobytes() for row in MASK) if rows is None else rows
    content = zlib.compress(rows) if content is None else content
    return SIGNATURE + b"".join(
        [chunk(b"IHDR", head), *between, chunk(b"IDAT", content), chunk(b"IEND")]
    )


def bits(mask: np.ndarray) -> bytes:
    return np.packbits(mask != 0).tobytes()


def exif(orientation: int) -> bytes:
    turned = Image.Exif()
    turned[0x0112] = orientation
    return saved(MASK, exif=turned)


def grey(value: int, other: int) -> np.ndarray:
    return np.where(MASK, np.uint8(value), np.uint8(other))


def filtered(kind: int) -> bytes:
    """Rows that say they are filtered so: what this makes of them is a mask of many values."""
    return b"".join(bytes([kind]) + row.tobytes() for row in MASK)


@pytest.mark.parametrize(
    "data",
    [
        saved(MASK),
        saved(MASK, optimize=True),
        saved(MASK, compress_level=0),
        saved(Image.fromarray(MASK).convert("1")),
        saved(MASK // 255),
        saved(grey(17, 0)),
        saved(MASK, dpi=(300, 300)),
        exif(1),
        png(chunk(b"tEXt", b"who\0me"), chunk(b"gAMA", b"\0\0\xb1\x8f")),
    ],
    ids=["plain", "optimized", "stored", "one-bit", "ones", "other", "dpi", "upright", "texts"],
)
def test_a_mask_is_read_whatever_its_compression_and_value(data: bytes) -> None:
    assert read_mask_png(data, (SIDE, SIDE)) == bits(MASK)


def test_masks_without_nuclei_and_of_sides_that_are_no_whole_bytes_are_read() -> None:
    assert read_mask_png(saved(MASK * 0), (SIDE, SIDE)) == bytes(SIDE * SIDE // 8)
    small = MASK[2:14, 28:40]
    for image in (Image.fromarray(small), Image.fromarray(small).convert("1")):
        assert read_mask_png(saved(image), (12, 12)) == bits(small)


@functools.cache
def bomb() -> bytes:
    return zlib.compress(bytes(20_000_000), 9)


HOSTILE: list[tuple[str, Callable[[], bytes], str]] = [
    ("nothing", lambda: b"", "an empty file"),
    ("text", lambda: b"hello", "5 bytes that are no PNG"),
    ("svg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG file"),
    ("tiff named png", lambda: saved(MASK, "TIFF"), "a TIFF file"),
    ("big tiff", lambda: b"II+\0" + bytes(60), "a TIFF file"),
    ("jpeg", lambda: saved(MASK, "JPEG"), "a JPEG file"),
    ("gif", lambda: saved(MASK, "GIF"), "a GIF file"),
    ("bmp", lambda: saved(MASK, "BMP"), "a BMP file"),
    ("webp", lambda: saved(MASK, "WEBP"), "a WebP file"),
    ("numpy", lambda: b"\x93NUMPY\x01\x00" + bytes(60), "a NumPy file"),
    ("zip", lambda: b"PK\x03\x04" + bytes(60), "a ZIP file"),
    ("signature alone", lambda: SIGNATURE, "cut off"),
    ("truncated in pixels", lambda: saved(MASK)[:-30], "cut off"),
    ("truncated before its end", lambda: saved(MASK)[:-12], "cut off"),
    ("truncated in its end", lambda: saved(MASK)[:-3], "cut off"),
    ("pixels end early", lambda: png(rows=filtered(0)[:-100]), "end early"),
    ("stream ends early", lambda: png(content=zlib.compress(filtered(0))[:-5]), "end early"),
    ("no pixels", lambda: png(content=b""), "without pixels"),
    ("noise for pixels", lambda: png(content=b"\x5a" * 500), "cannot be decompressed"),
    ("bomb of pixels", lambda: png(content=bomb()), "more pixels than its header says"),
    ("bomb of text", lambda: png(chunk(b"zTXt", b"a\0\0" + bomb()), rows=b"\0"), "end early"),
    ("bomb of a profile", lambda: png(chunk(b"iCCP", b"a\0\0" + bomb()), rows=b""), "end early"),
    ("giant header", lambda: png(size=(2**31 - 1, 2**31 - 1)), "2147483647 x 2147483647 pixels"),
    ("wide header", lambda: png(size=(1 << 30, 1)), "1073741824 x 1 pixels"),
    ("no size", lambda: png(size=(0, 0)), "0 x 0 pixels"),
    ("too small", lambda: saved(MASK[:32, :32]), "32 x 32 pixels"),
    ("too large", lambda: saved(np.tile(MASK, (2, 2))), "128 x 128 pixels"),
    ("not square", lambda: saved(MASK[:, :32]), "32 x 64 pixels"),
    ("huge chunk", lambda: SIGNATURE + b"\xff\xff\xff\xffIHDR" + bytes(40), "4294967295 bytes"),
    ("large file", lambda: png(chunk(b"tEXt", bytes(LEAST_MASK_BYTES))), f"{LEAST_MASK_BYTES}"),
    ("16 bits", lambda: saved(MASK.astype(np.uint16) * 257), "16 bits a pixel"),
    ("4 bits", lambda: png(kind=(4, 0)), "4 bits a pixel"),
    ("palette", lambda: saved(Image.fromarray(MASK).convert("P")), "a palette"),
    ("grey with a palette", lambda: png(chunk(b"PLTE", bytes(6))), "a palette"),
    ("rgb", lambda: saved(Image.fromarray(MASK).convert("RGB")), "RGB colours"),
    ("alpha", lambda: saved(Image.fromarray(MASK).convert("RGBA")), "RGB colours with alpha"),
    ("grey with alpha", lambda: saved(Image.fromarray(MASK).convert("LA")), "grey with alpha"),
    ("transparent", lambda: png(chunk(b"tRNS", b"\0\xff")), "transparent"),
    ("unknown colours", lambda: png(kind=(8, 7)), "valid header"),
    ("unknown compression", lambda: png(rest=(1, 0, 0)), "valid header"),
    ("interlaced", lambda: png(rest=(0, 0, 1)), "interlaced"),
    ("animated", lambda: saved(MASK, save_all=True, append_images=[Image.new("L", (SIDE, SIDE))]),
     "animated"),
    ("turned by exif", lambda: exif(6), "orientation 6"),
    ("turned and said in the other order", lambda: png(chunk(b"eXIf", b"II*\0\x08\0\0\0\x01\0"
     b"\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0")), "orientation 3"),
    ("exif in a text", lambda: png(chunk(b"zTXt", b"Raw profile type exif\0\0x")),
     "EXIF in its text"),
    ("exif of nothing", lambda: png(chunk(b"eXIf", b"?")), "damaged EXIF"),
    ("damaged exif", lambda: png(chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")), "EXIF"),
    ("no header", lambda: SIGNATURE + chunk(b"IDAT", b"x") + chunk(b"IEND"), "valid header"),
    ("two headers", lambda: png(chunk(b"IHDR", bytes(13))), "two headers"),
    ("short header", lambda: SIGNATURE + chunk(b"IHDR", b"x") + chunk(b"IEND"), "valid header"),
    ("damaged chunk", lambda: saved(MASK).replace(b"IDATx", b"IDATy"), "damaged chunk IDAT"),
    ("unknown chunk", lambda: png(chunk(b"ABCD", b"x")), "unknown chunk ABCD"),
    ("no letters", lambda: png(chunk(b"\x1b[2J", b"x")), "unknown chunk 1b5b324a"),
    ("added", lambda: saved(MASK) + b"more", "4 bytes after its end"),
    ("unknown filter", lambda: png(rows=filtered(9)), "unknown filter"),
    ("many values", lambda: png(rows=filtered(2)), "values"),
    ("nuclei by id", lambda: saved(np.repeat(np.arange(SIDE, dtype=np.uint8), SIDE)
     .reshape(SIDE, SIDE)), "64 values (0, 1, 2, 3, 4, 5, ...)"),
    ("three values", lambda: saved(np.where(np.eye(SIDE, dtype=bool), np.uint8(7), MASK)),
     "3 values (0, 7, 255)"),
    ("no ground", lambda: saved(grey(200, 100)), "without ground, of 100 and 200"),
    ("all nuclei", lambda: saved(grey(255, 255)), "without ground, of 255"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "found"), [each[1:] for each in HOSTILE],
                         ids=[each[0] for each in HOSTILE])  # fmt: skip
def test_anything_else_is_refused_by_what_it_is(make: Callable[[], bytes], found: str) -> None:
    data = make()
    tracemalloc.start()
    try:
        with pytest.raises(RequestError) as refused:
            read_mask_png(data, (SIDE, SIDE))
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.field == "structure.mask_png"
    assert found in str(refused.value.value)
    assert found in refused.value.expected
    assert taken < 4 * LEAST_MASK_BYTES, (
        "as much memory as a few such files, whatever it unpacks to"
    )


def test_whatever_is_changed_in_a_mask_it_is_read_or_refused() -> None:
    """Bytes of chunks are changed, cut, added and moved about, and their checksums are right."""
    chance, read = random.Random(1), 0
    whole = [png(), saved(MASK, optimize=True), exif(1), saved(Image.fromarray(MASK).convert("1"))]
    for _ in range(int(os.environ.get("PATHAR_TEST_EXAMPLES", "300"))):
        chunks = _chunks(chance.choice(whole))
        at = chance.randrange(len(chunks))
        kind, content = chunks[at]
        where = chance.randrange(len(content) + 1)
        changed = [
            content[:where] + chance.randbytes(1) + content[where + 1 :],
            content[:where],
            content + chance.randbytes(9),
        ]
        chunks[at] = kind, chance.choice(changed)
        if chance.random() < 0.2:
            chunks.insert(at, (chance.choice([kind, b"IDAT", chance.randbytes(4)]), content))
        try:
            read_mask_png(SIGNATURE + b"".join(chunk(*each) for each in chunks), (SIDE, SIDE))
            read += 1
        except RequestError:
            pass
    assert read, "some changes do no harm"


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(SIGNATURE)
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        found.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def test_there_are_forty_of_them() -> None:
    assert len(HOSTILE) >= 40


IMAGE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
CLEAR = np.dstack([IMAGE, np.full((SIDE, SIDE), 255, np.uint8)])


@pytest.mark.parametrize(
    "data",
    [
        *(saved(IMAGE), saved(IMAGE, compress_level=0), saved(CLEAR)),
        saved(Image.fromarray(IMAGE), icc_profile=b"a profile"),
    ],
    ids=["rgb", "stored", "opaque", "profile"],
)
def test_an_image_is_read_as_it_is(data: bytes) -> None:
    assert read_image_png(data, (SIDE, SIDE)) == IMAGE.tobytes()


@pytest.mark.parametrize(
    ("make", "found"),
    [
        *((make, "") for name, make, _ in HOSTILE if name not in ("rgb", "alpha", "large file")),
        (lambda: saved(MASK), "a PNG in grey"),
        (lambda: saved(Image.fromarray(IMAGE).convert("P")), "a palette"),
        (
            lambda: saved(np.where(np.eye(SIDE, dtype=bool)[..., None], CLEAR - 1, CLEAR)),
            "transparent",
        ),
        (lambda: saved(Image.fromarray(IMAGE), transparency=(0, 0, 0)), "transparent value"),
        (lambda: saved(IMAGE[:32]), "64 x 32 pixels"),
        (lambda: png(kind=(16, 2), rows=bytes(SIDE * (1 + 6 * SIDE))), "16 bits a colour"),
        (lambda: png(kind=(8, 2), content=bomb()), "more pixels than its header says"),
        (
            lambda: png(chunk(b"tEXt", bytes(LEAST_IMAGE_BYTES)), kind=(8, 2)),
            f"{LEAST_IMAGE_BYTES}",
        ),
    ],
)
def test_what_is_no_image_is_refused_by_what_it_is(make: Callable[[], bytes], found: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_image_png(make(), (SIDE, SIDE), "image_png")
    assert refused.value.field == "image_png"
    assert found in refused.value.expected


def test_a_location_is_kept_where_all_of_its_pixels_are() -> None:
    region = np.full((SIDE, SIDE), 255, np.uint8)
    region[15, 32] = 0
    wanted = [at != 8 + 4 for at in range(64)]
    for value in (1, 255):
        assert read_region_png(saved(region & value), (SIDE, SIDE), (8, 8), "keep_png") == wanted
    assert all(read_region_png(saved(region | 255), (SIDE, SIDE), (8, 8), "keep_png"))
    assert not any(read_region_png(saved(region * 0), (SIDE, SIDE), (8, 8), "keep_png"))
    region[0, 0] = 7
    for wrong, found in ((region, "the values 0, 7, 255"), (IMAGE, "RGB colours")):
        with pytest.raises(RequestError) as refused:
            read_region_png(saved(wrong), (SIDE, SIDE), (8, 8), "keep_png")
        assert found in refused.value.expected
