"""Decoding image files: pixels exactly as they are stored, rotated as viewers show them.

Pillow reads PNG, JPEG, BMP, GIF and WebP, imagecodecs reads what Pillow would round to 8 bits,
tifffile reads TIFF, and numpy reads arrays, without pickle. A file's content tells its format, not
its name. A file that cannot be decoded completely is a SourceError of one line that names it. Large
TIFFs are decoded segment by segment and arrays are mapped, so these are never in memory as a whole;
the decoders of other formats hold the whole image while they run. Knows nothing of what is an image
and what is a mask.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from training import scratch
from training.run import StageError

ENDINGS = (
    *(".bmp", ".gif", ".j2k", ".jp2", ".jpeg", ".jpg", ".npy", ".png", ".svs", ".tif", ".tiff"),
    ".webp",
)
"""Names of files that are taken for pictures, in lower case."""
FORMATS = "BMP, GIF, JPEG, JPEG 2000, PNG, TIFF, WebP or .npy"
PILLOW = ("BMP", "GIF", "JPEG", "MPO", "PNG", "WEBP")
LOSSLESS_TIFF = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000, 50013}
"""TIFF's codes of compressions that keep every value: none, CCITT, LZW, Deflate, PackBits, LZMA and
Zstandard."""
ORIENTATION = 0x0112
"""The tag of EXIF and TIFF that says how a picture is turned for viewers."""
REDUCED = 1
"""The bit of a TIFF page's subfile type that marks a smaller copy of another page."""

Kind = Literal["grey", "colour", "palette"]


class SourceError(StageError):
    """A file of a data set that cannot be used; the sentence names it."""


@dataclass(frozen=True)
class Raster:
    """The decoded pages of one file.

    `pages` is [P, H, W] for grey values and palette indices, [P, H, W, 3] for colours, in the
    file's own type. `alpha` [P, H, W] is None where the file has no transparency. `palette` [K, 3]
    holds the colours of the indices. Arrays of large pictures are mapped from a disk, and may be
    read-only. `lossy` names a compression that changes values, or is empty.
    `zero_is_white` says that `pages` are turned round, for the file shows its value 0 white.
    """

    path: Path
    kind: Kind
    pages: np.ndarray
    alpha: np.ndarray | None = None
    palette: np.ndarray | None = None
    lossy: str = ""
    zero_is_white: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pages.shape[1], self.pages.shape[2]


def decode(path: Path, max_megapixels: float, content: bytes | None = None) -> Raster:
    """The pixels of a picture file. SourceError where it is no complete picture of FORMATS, or
    holds more than `max_megapixels` on all its pages together.

    `content` is a picture that stands in another file, which `path` names; it is none of TIFF, JPEG
    2000 and .npy.
    """
    if content is not None:
        with reading(path):
            return _pillow(path, round(max_megapixels * 1e6), content)
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    reader = _reader(path, head)
    with reading(path):
        return reader(path, round(max_megapixels * 1e6))


def _reader(path: Path, head: bytes) -> Callable[[Path, int], Raster]:
    if not head:
        raise SourceError(f"{path}: is empty (0 bytes), expected an image")
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff
    if head.startswith(b"\x93NUMPY"):
        return _array
    if head[4:8] == b"jP  " or head[:4] == b"\xff\x4f\xff\x51":
        return _jpeg2000
    return _pillow


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Decoders of damaged files raise whatever they stumble on; a user is told the file."""
    try:
        yield
    except StageError:
        raise
    except MemoryError as error:
        raise SourceError(f"{path}: does not fit into memory") from error
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{path}: cannot be read ({message[:200]})") from error


def _refuse_large(path: Path, pixels: int, most: int) -> None:
    if pixels > most:
        raise SourceError(
            f"{path}: has {pixels / 1e6:.0f} megapixels, more than the limit of {most / 1e6:g}; "
            "--max-megapixels raises the limit"
        )


# -- Pillow ----------------------------------------------------------------------------------------


def _pillow(path: Path, most: int, content: bytes | None = None) -> Raster:
    content = path.read_bytes() if content is None else content
    with _opened(path, content) as picture:
        pages = int(getattr(picture, "n_frames", 1))
        _refuse_large(path, picture.width * picture.height * pages, most)
        if picture.format == "PNG" and _png_depth(content) == 16:
            deep = imagecodecs.png_decode(content)
            return _turned(_of_array(path, deep[None], deep.ndim == 3), _orientation(picture))
        rasters = []
        for page in range(pages):
            picture.seek(page)
            rasters.append(_pillow_page(path, content, picture))
        return _turned(_stacked(path, rasters), _orientation(picture))


@contextmanager
def _opened(path: Path, content: bytes) -> Iterator[Image.Image]:
    """Pillow's own limit of pixels would come first, and cannot be lifted by an option."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.format not in PILLOW:
                raise SourceError(f"{path}: is a {picture.format} file, expected {FORMATS}")
            yield picture
    except UnidentifiedImageError:
        raise SourceError(f"{path}: is not an image, expected {FORMATS}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _pillow_page(path: Path, content: bytes, picture: Image.Image) -> Raster:
    picture.load()
    mode, lossy = picture.mode, _lossy(content, picture.format or "")
    if mode in ("P", "PA"):
        return _pillow_palette(path, picture)
    if mode not in ("1", "L", "LA", "RGB", "RGBA"):
        raise SourceError(f"{path}: has mode {mode}, expected grey, RGB or a palette")
    pixels = _pillow_pixels(picture)
    alpha = None
    if mode in ("LA", "RGBA"):
        pixels, alpha = pixels[..., :-1], pixels[..., -1]
        pixels = pixels[..., 0] if mode == "LA" else pixels
    elif "transparency" in picture.info:
        alpha = _seen(pixels, np.array(picture.info["transparency"], dtype=pixels.dtype))
    spread = 255 // (2 ** _png_depth(content) - 1) if picture.format == "PNG" else 1
    if mode == "L" and spread > 1:  # Pillow spreads 2 and 4 bits over 0 to 255
        pixels = scratch.by_bands(lambda rows: pixels[rows] // spread, pixels.shape, np.uint8)
    kind: Kind = "colour" if mode in ("RGB", "RGBA") else "grey"
    return Raster(path, kind, pixels[None], _one_page(alpha), None, lossy)


def _pillow_pixels(picture: Image.Image) -> np.ndarray:
    """[H, W] or [H, W, C] of a loaded picture."""
    one = np.asarray(picture.crop((0, 0, 1, 1)))
    shape = (picture.height, picture.width, *one.shape[2:])
    return scratch.by_bands(
        lambda rows: np.asarray(picture.crop((0, rows.start, picture.width, rows.stop))),
        shape,
        one.dtype,
    )


def _seen(pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Alpha of pixels [H, W] or [H, W, C], of which those of one value are transparent."""

    def opaque(rows: slice) -> np.ndarray:
        other = pixels[rows] != hidden
        return np.where(other.any(-1) if other.ndim == 3 else other, 255, 0)

    return scratch.by_bands(opaque, pixels.shape[:2], np.uint8)


def _pillow_palette(path: Path, picture: Image.Image) -> Raster:
    indices = _pillow_pixels(picture)
    indices = indices[..., 0] if indices.ndim == 3 else indices
    colours = np.array(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    alpha = None
    if picture.mode == "PA" or "transparency" in picture.info:
        alpha = _pillow_pixels(picture.convert("RGBA"))[..., 3]
    return Raster(path, "palette", indices[None], _one_page(alpha), colours)


def _one_page(pixels: np.ndarray | None) -> np.ndarray | None:
    return None if pixels is None else pixels[None]


def _stacked(path: Path, rasters: list[Raster]) -> Raster:
    """Frames as the pages of one raster; an animation's frames can differ in kind or palette."""
    first = rasters[0]
    if len(rasters) == 1:
        return first
    for other in rasters[1:]:
        palettes = (first.palette, other.palette)
        same = palettes[0] is palettes[1] or np.array_equal(*palettes)  # type: ignore[arg-type]
        if other.kind != first.kind or other.shape != first.shape or not same:
            raise SourceError(f"{path}: has {len(rasters)} frames of different kinds, expected one")
    return Raster(
        path,
        first.kind,
        np.concatenate([raster.pages for raster in rasters]),
        None,
        first.palette,
        first.lossy,
    )


def _png_depth(content: bytes) -> int:
    """Bits a channel of a PNG."""
    return content[24]


def _lossy(content: bytes, form: str) -> str:
    if form in ("JPEG", "MPO"):
        return "JPEG"
    return "lossy WebP" if form == "WEBP" and not _lossless_webp(content) else ""


def _lossless_webp(content: bytes) -> bool:
    """Whether the picture is a VP8L chunk of the RIFF file, and not a VP8 one."""
    at = 12
    while at + 8 <= len(content):
        name, length = content[at : at + 4], struct.unpack("<I", content[at + 4 : at + 8])[0]
        if name in (b"VP8L", b"VP8 "):
            return name == b"VP8L"
        at += 8 + length + length % 2
    return False  # an animation: its frames can be either


def _orientation(picture: Image.Image) -> int:
    return int(picture.getexif().get(ORIENTATION, 1) or 1)


# -- other decoders --------------------------------------------------------------------------------


def _jpeg2000(path: Path, most: int) -> Raster:
    with Image.open(path) as picture:
        _refuse_large(path, picture.width * picture.height, most)
    pixels = imagecodecs.jpeg2k_decode(path.read_bytes())
    # Its reversible transform can be cut short, which no header tells: never taken for lossless.
    return _of_array(path, pixels[None], pixels.ndim == 3, lossy="JPEG 2000")


def _array(path: Path, most: int) -> Raster:
    """[H, W], or [H, W, 3] and [H, W, 4] as colours; any other shape is pages [P, H, W]."""
    pixels = read_array(path, mapped=True)
    channels = pixels.ndim == 3 and pixels.shape[-1] in (3, 4)
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise SourceError(f"{path}: has shape {list(pixels.shape)}, expected [H, W] or [H, W, 3]")
    _refuse_large(path, pixels.size // (pixels.shape[-1] if channels else 1), most)
    pages = pixels if pixels.ndim == 3 and not channels else pixels[None]
    return _of_array(path, pages if pages.nbytes >= scratch.LARGE else np.array(pages), channels)


def read_array(path: Path, *, mapped: bool) -> np.ndarray:
    """A .npy file, mapped or in memory. Python objects in it are pickle: they are never loaded."""
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError) as error:
        if "pickle" in str(error) or "Python objects" in str(error):
            raise SourceError(f"{path}: {_PICKLE.format(name=path.name)}") from None
        raise SourceError(f"{path}: is not a .npy array ({error})") from error
    if not isinstance(array, np.ndarray):
        raise SourceError(f"{path}: is an archive, expected one .npy array")
    return array


_PICKLE = (
    "is not an array of plain values: it needs pickle, which runs whatever code a file holds. If "
    'you trust the file, rewrite it once: python -c "import numpy as n; '
    "n.save('{name}', n.load('{name}', allow_pickle=True).astype(str))\""
)


def _of_array(path: Path, pages: np.ndarray, channels: bool, lossy: str = "") -> Raster:
    """Pages [P, H, W], or [P, H, W, C] with `channels`, C in 1 to 4, the last of 2 or 4 alpha."""
    if pages.dtype.kind not in "biuf":
        raise SourceError(f"{path}: has values of type {pages.dtype}, expected numbers")
    if not channels:
        return Raster(path, "grey", pages, None, None, lossy)
    count, alpha = pages.shape[-1], None
    if count not in (1, 2, 3, 4):
        raise SourceError(f"{path}: has {count} channels, expected 1 or 3")
    if count in (2, 4):
        pages, alpha = pages[..., :-1], pages[..., -1]
    if pages.shape[-1] == 1:
        return Raster(path, "grey", pages[..., 0], alpha, None, lossy)
    return Raster(path, "colour", pages, alpha, None, lossy)


# -- TIFF ------------------------------------------------------------------------------------------


def _tiff(path: Path, most: int) -> Raster:
    with tifffile.TiffFile(path) as file:
        every: list[Any] = list(file.pages)
        pages = [page for page in every if not _subfile_type(page) & REDUCED]
        if file.is_svs:  # its first page is the slide; thumbnail, label and macro follow
            pages = every[:1]
        series, first = file.series[0], pages[0]
        kinds = {_kind_of_page(page) for page in pages}
        if len(kinds) > 1:
            raise SourceError(
                f"{path}: has pages of several kinds ({'; '.join(sorted(kinds))}), expected one"
            )
        stacked = len(pages) == 1 and series.ndim > first.ndim  # ImageJ's: one page, many planes
        _refuse_large(path, first.imagelength * first.imagewidth * len(pages), most)
        axes = series.axes if stacked else "Q" + first.axes
        if stacked:
            pixels = scratch.zeros(series.shape, series.dtype)
            series.asarray(out=pixels)
        else:
            pixels = scratch.zeros((len(pages), *first.shape), first.dtype)
            for page, place in zip(pages, pixels, strict=True):
                page.asarray(out=place)
    return _turned(_tiff_raster(path, first, pixels, axes), _tag(first, ORIENTATION, 1))


def _tiff_raster(path: Path, page: Any, pixels: np.ndarray, axes: str) -> Raster:
    """Pixels with tifffile's axes: Y, X, S for samples, and any others, all of them pages."""
    order = [axes.index(axis) for axis in axes if axis not in "YXS"]
    channels = "S" in axes
    order += [axes.index(axis) for axis in ("YXS" if channels else "YX")]
    pixels = pixels.transpose(order)
    pixels = pixels.reshape(-1, *pixels.shape[-3 if channels else -2 :])
    lossy = _lossy_tiff(page)
    look = page.photometric.name
    if look == "PALETTE":
        colours = (np.asarray(page.colormap).T >> 8).astype(np.uint8)
        return Raster(path, "palette", pixels, None, colours, lossy)
    if look not in ("MINISBLACK", "MINISWHITE", "RGB", "YCBCR"):
        raise SourceError(f"{path}: has colours as {look}, expected grey, RGB or a palette")
    if look == "MINISWHITE":  # 0 is shown white
        full = 1 if pixels.dtype == bool else 2 ** int(page.bitspersample) - 1
        for plane in pixels:
            for rows in scratch.bands(plane.shape):
                plane[rows] = full ^ plane[rows] if pixels.dtype == bool else full - plane[rows]
    grey = look in ("MINISBLACK", "MINISWHITE")
    expected = (1, 2) if grey else (3, 4)
    if channels and pixels.shape[-1] not in expected:
        raise SourceError(
            f"{path}: has {pixels.shape[-1]} channels, expected {' or '.join(map(str, expected))}"
        )
    if channels and pixels.shape[-1] in (2, 4) and not any(page.extrasamples):
        raise SourceError(f"{path}: has an extra channel that it does not explain, expected none")
    found = _of_array(path, pixels, channels, lossy)
    return replace(found, zero_is_white=look == "MINISWHITE")


def _kind_of_page(page: Any) -> str:
    """What all pages have to share, for people: they are read by the rules of the first."""
    look, lossy, turned = page.photometric.name, _lossy_tiff(page), _tag(page, ORIENTATION, 1)
    if page.colormap is not None:
        look += f" {hashlib.sha256(page.colormap.tobytes()).hexdigest()[:6]}"
    told = f"{page.imagewidth} x {page.imagelength}, {page.samplesperpixel} {look}"
    told += f" of {page.bitspersample} bits ({page.dtype})"
    told += f", {lossy}" if lossy else ""
    return f"{told}, orientation {turned}" if turned > 1 else told


def _lossy_tiff(page: Any) -> str:
    """The name of a compression that changes values, or nothing."""
    return "" if int(page.compression) in LOSSLESS_TIFF else f"{page.compression.name} TIFF"


def _subfile_type(page: Any) -> int:
    return int(_tag(page, "NewSubfileType", 0))


def _tag(page: Any, name: int | str, otherwise: int) -> int:
    found = page.tags.get(name)
    return otherwise if found is None else int(found.value)


# -- orientation -----------------------------------------------------------------------------------


def _turned(raster: Raster, orientation: int) -> Raster:
    """The raster as viewers show it; orientations are 1 to 8 (EXIF 2.3, table 6)."""
    if not 2 <= orientation <= 8:
        return raster
    alpha = None if raster.alpha is None else _turn(raster.alpha, orientation)
    return replace(raster, pages=_turn(raster.pages, orientation), alpha=alpha)


def _turn(pages: np.ndarray, orientation: int) -> np.ndarray:
    """[P, H, W, ...]: 5 to 8 swap rows and columns first; then one flip of each axis or none."""
    if orientation >= 5:
        pages = pages.swapaxes(1, 2)
    if orientation in (3, 4, 7, 8):
        pages = pages[:, ::-1]
    if orientation in (2, 3, 6, 7):
        pages = pages[:, :, ::-1]
    planes = [scratch.by_bands(plane.__getitem__, plane.shape, plane.dtype) for plane in pages]
    return planes[0][None] if len(planes) == 1 else np.stack(planes)
