"""Whatever a mask is written as, it is read as what was drawn, to the pixel, or it is refused.

Masks are drawn at random and written in the ways that tools write them: modes, bit depths, palettes
in any order, alpha, ids, classes, soft edges, endings, compressions, orientations, pages. Left
out is what no reader can know: black nuclei on a light ground without a palette, and masks whose
only class is not the nuclei. PATHAR_TEST_EXAMPLES sets how many there are; `make fuzz` gives 2,000.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

from training import scratch
from training.meaning import evidence, meaning
from training.pictures import UNRULED, read_painting
from training.rasters import SourceError
from training.samples import Sample, read_patch

SIDE = 48
EXAMPLES = int(os.environ.get("PATHAR_TEST_EXAMPLES", "400"))
Draw = st.DrawFn

# -- what is drawn ---------------------------------------------------------------------------------


@st.composite
def drawings(draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Ids of nuclei [H, W], 0 outside, and cytoplasm around some of them, bool [H, W]."""
    height, width = draw(st.integers(30, SIDE)), draw(st.integers(30, SIDE))
    y, x = np.mgrid[:height, :width]
    ids, cytoplasm = np.zeros((height, width), np.int64), np.zeros((height, width), bool)
    for number in range(draw(st.integers(0, 16))):
        row, column = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        radius = draw(st.integers(1, 9))
        distance = (y - row) ** 2 + (x - column) ** 2
        ids[(distance < radius**2) & (ids == 0)] = number + 1
        if draw(st.booleans()):
            cytoplasm |= distance < (radius + 3) ** 2
    return ids, cytoplasm & (ids == 0)


# -- as what it is painted -------------------------------------------------------------------------


def grey(draw: Draw, ids: np.ndarray, _: np.ndarray) -> np.ndarray:
    value, kind = draw(
        st.sampled_from([(1, "u1"), (255, "u1"), (7, "u1"), (255, "u2"), (65535, "u2"), (1, "f4")])
    )
    return ((ids > 0) * value).astype(kind)


def one_bit(draw: Draw, ids: np.ndarray, _: np.ndarray) -> np.ndarray:
    return ids > 0


def numbered(draw: Draw, ids: np.ndarray, _: np.ndarray) -> np.ndarray:
    kind, step = draw(st.sampled_from([("u1", 1), ("u1", 9), ("u2", 700), ("i4", 100_000)]))
    return (ids * step).astype(kind)


def classes(draw: Draw, ids: np.ndarray, cytoplasm: np.ndarray) -> np.ndarray:
    """Ground, cytoplasm and nuclei by three levels, of which the ground's need not be 0."""
    levels = draw(st.permutations([0, 1, 2, 85, 128, 170, 254, 255]))[:3]
    painted = np.full(ids.shape, levels[0], np.uint8)
    painted[cytoplasm], painted[ids > 0] = levels[1], levels[2]
    return painted


def coloured(draw: Draw, ids: np.ndarray, _: np.ndarray) -> np.ndarray:
    """A colour for all nuclei or one for each, on black or, where none of them is, on white."""
    each = draw(st.booleans())
    ground = draw(st.sampled_from([(0, 0, 0), (255, 255, 255)]))
    numbers = ids if each else ids > 0
    red, blue = numbers * 13 % 256, numbers * 7 % 256
    painted = np.dstack([red, numbers * 0 + 90, blue]).astype(np.uint8)
    painted[ids == 0] = ground
    return painted


def in_grey_rgb(draw: Draw, ids: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.dstack([(ids > 0) * 255] * 3).astype(np.uint8)


def with_alpha(draw: Draw, ids: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Opaque, or transparent where there are no nuclei, with colours or none below."""
    white, full = (ids > 0) * 255, np.full(ids.shape, 255)
    pairs = [(white, full), (white, white), (full, white), (full * 0, white)]
    below, alpha = draw(st.sampled_from([*pairs, (white, np.where(white, 255, 128))]))
    return np.dstack([below, below, below, alpha]).astype(np.uint8)


def soft(draw: Draw, ids: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Blurred edges, as a resized mask or a probability has them."""
    blurred = ndimage.gaussian_filter((ids > 0) * 255.0, draw(st.floats(0.6, 3)))
    return np.asarray(blurred.astype(draw(st.sampled_from(["u1", "f4"]))))


def palette(draw: Draw, ids: np.ndarray, cytoplasm: np.ndarray) -> Image.Image:
    """Indices in any order under colours that an export or an optimiser may have given them."""
    seen = np.where(ids > 0, 1, 0) if draw(st.booleans()) else np.where(cytoplasm, 2, ids > 0)
    black, white, *others = (0, 0, 0), (255, 255, 255), (200, 0, 0), (0, 90, 0), (0, 0, 9)
    ground, other = draw(st.permutations([black, white]))
    colours = [ground, *draw(st.permutations([other, *others]))[:2]]
    order = draw(st.permutations(range(3)))
    picture = Image.fromarray(np.array(order, np.uint8)[seen.astype(int)])
    shown = [colours[order.index(index)] for index in range(3)]
    picture.putpalette([channel for colour in shown for channel in colour])
    return picture


PAINTINGS: dict[str, Callable[[Draw, np.ndarray, np.ndarray], np.ndarray | Image.Image]] = {
    each.__name__: each
    for each in (
        *(grey, one_bit, numbered, classes, coloured, in_grey_rgb, with_alpha, soft, palette),
    )
}

# -- as what it is written -------------------------------------------------------------------------


def as_pillow(
    ending: str, **options: Any
) -> Callable[[Path, np.ndarray | Image.Image, int], Path | None]:
    def write(path: Path, painted: np.ndarray | Image.Image, orientation: int) -> Path | None:
        given = dict(options)
        if ending == "bmp" and isinstance(painted, np.ndarray) and painted.shape[2:] == (4,):
            return None  # its alpha is not shown by viewers
        if ending in ("png", "tif", "webp", "jpg"):
            exif = Image.Exif()
            exif[0x0112] = orientation
            painted, given["exif"] = stored(painted, orientation), exif
        picture = painted if isinstance(painted, Image.Image) else Image.fromarray(painted)
        picture.save(path.with_suffix(f".{ending}"), **given)
        return path.with_suffix(f".{ending}")

    return write


def as_tiff(
    **options: Any,
) -> Callable[[Path, np.ndarray | Image.Image, int], Path | None]:
    def write(path: Path, painted: np.ndarray | Image.Image, orientation: int) -> Path | None:
        pixels = np.array(painted) if not isinstance(painted, Image.Image) else None
        if pixels is None:
            return None
        tifffile.imwrite(path.with_suffix(".tif"), pixels, metadata=None, **options)
        return path.with_suffix(".tif")

    return write


def as_white_is_zero(path: Path, painted: np.ndarray | Image.Image, _: int) -> Path | None:
    if isinstance(painted, Image.Image) or painted.ndim != 2 or painted.dtype != np.uint8:
        return None
    tifffile.imwrite(path.with_suffix(".tif"), 255 - painted, photometric="miniswhite")
    return path.with_suffix(".tif")


def as_two_pages(path: Path, painted: np.ndarray | Image.Image, _: int) -> Path | None:
    if isinstance(painted, Image.Image) or painted.ndim != 2:
        return None
    pages = np.stack([painted, painted * 0])
    tifffile.imwrite(path.with_suffix(".tif"), pages, photometric="minisblack")
    return path.with_suffix(".tif")


def as_array(path: Path, painted: np.ndarray | Image.Image, _: int) -> Path | None:
    if isinstance(painted, Image.Image):
        return None
    np.save(path.with_suffix(".npy"), painted)
    return path.with_suffix(".npy")


def as_deep_png(path: Path, painted: np.ndarray | Image.Image, _: int) -> Path | None:
    if isinstance(painted, Image.Image) or painted.dtype not in (np.uint8, np.uint16):
        return None
    path.with_suffix(".png").write_bytes(imagecodecs.png_encode(painted.astype(np.uint16)))
    return path.with_suffix(".png")


FILES: dict[str, Callable[[Path, np.ndarray | Image.Image, int], Path | None]] = {
    "png": as_pillow("png"),
    "tif": as_pillow("tif"),
    "tif by Pillow, LZW": as_pillow("tif", compression="tiff_lzw"),
    "bmp": as_pillow("bmp"),
    "gif": as_pillow("gif"),
    "webp": as_pillow("webp", lossless=True),
    "lossy webp": as_pillow("webp", quality=70),
    "jpg": as_pillow("jpg", quality=90),
    "jp2": as_pillow("jp2"),
    "tiff": as_tiff(),
    "tiff, zstd": as_tiff(compression="zstd"),
    "tiff, deflate": as_tiff(compression="deflate", predictor=True),
    "tiff, jpeg": as_tiff(compression="jpeg"),
    "tiff, tiled": as_tiff(tile=(16, 16)),
    "tiff, white is zero": as_white_is_zero,
    "tiff, two pages": as_two_pages,
    "npy": as_array,
    "png of 16 bits": as_deep_png,
}


def stored(painted: np.ndarray | Image.Image, orientation: int) -> np.ndarray | Image.Image:
    """What viewers turn into `painted` for this orientation."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    if orientation not in turns:
        return painted
    picture = painted if isinstance(painted, Image.Image) else Image.fromarray(painted)
    return picture.transpose(turns[orientation])


# -- the property ----------------------------------------------------------------------------------


def by_import(path: Path) -> np.ndarray:
    painting = read_painting(path)
    return meaning([evidence(painting)], UNRULED).nuclei(painting) > 0


def by_manifest(path: Path) -> np.ndarray:
    height, width = read_painting(path).values.shape
    image = path.with_name("image.png")
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(image)
    return read_patch(Sample(image, path, (), "", "")).mask


def read_or_refused(read: Callable[[Path], np.ndarray], path: Path) -> np.ndarray | str:
    try:
        return read(path)
    except SourceError as error:
        return str(error)


def unknowable(name: str, ids: np.ndarray, cytoplasm: np.ndarray, painted: object) -> bool:
    """One class besides the background that is not the nuclei, or the two told apart by nothing."""
    if name == "classes":
        levels = np.unique(np.asarray(painted))
        return len(levels) < 3
    if name == "palette":
        return not (ids > 0).any() and bool(cytoplasm.any())
    return False


def lost_palette(painted: object, path: Path, ids: np.ndarray, cytoplasm: np.ndarray) -> bool:
    """Whether black is shown somewhere, but not as the ground, and no index 0 says otherwise."""
    if not isinstance(painted, Image.Image):
        return False
    with Image.open(path) as picture:
        shown = picture.getpalette()
        if picture.mode == "P" and shown and any(shown[:3]):
            return False
    black = (np.array(painted.convert("RGB")) == 0).all(-1)
    return bool(black.any()) and not black[(ids == 0) & ~cytoplasm].all()


OUTCOMES = {"read": 0, "refused": 0}


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data(), drawing=drawings())
def check(folder: Path, data: st.DataObject, drawing: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        if data.draw(st.booleans(), "as a large picture"):
            patched.setattr(scratch, "LARGE", SIDE)
            patched.setattr(scratch, "BAND", 7 * SIDE)
        check_one(folder, data, *drawing)


def check_one(folder: Path, data: st.DataObject, ids: np.ndarray, cytoplasm: np.ndarray) -> None:
    name = data.draw(st.sampled_from(sorted(PAINTINGS)), "painted as")
    file = data.draw(st.sampled_from(sorted(FILES)), "written as")
    orientation = data.draw(st.sampled_from([1, 1, 1, 2, 3, 4, 5, 6, 7, 8]), "orientation")
    painted = data.draw(
        st.composite(lambda draw: PAINTINGS[name](draw, ids, cytoplasm))(), "pixels"
    )
    if unknowable(name, ids, cytoplasm, painted):
        reject()
    try:
        path = FILES[file](folder / "mask", painted, orientation)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):
        reject()  # this format cannot hold these pixels
    if path is None or lost_palette(painted, path, ids, cytoplasm):
        reject()
    for read in (by_import, by_manifest):
        found = read_or_refused(read, path)
        if isinstance(found, str):
            OUTCOMES["refused"] += 1
            assert len(found.splitlines()) == 1
            assert str(path) in found
        else:
            OUTCOMES["read"] += 1
            wrong = int((found != (ids > 0)).sum()) if found.shape == ids.shape else found.shape
            assert wrong == 0, f"{name} as {file}, {read.__name__}"


@pytest.mark.slow
def test_a_mask_is_what_was_drawn_or_it_is_refused(tmp_path: Path) -> None:
    """Those that cannot be judged are not counted as examples."""
    check(tmp_path)
    assert sum(OUTCOMES.values()) >= 2 * EXAMPLES
    assert OUTCOMES["read"] > EXAMPLES / 5, OUTCOMES
    assert OUTCOMES["refused"] > EXAMPLES / 5, OUTCOMES
