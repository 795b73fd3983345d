"""Images and masks of data sets: what the values of a file mean, or why they cannot be known.

Every image and every mask of training goes through this module, whether it is imported, listed in
a manifest or found in plain folders. A file is understood completely or refused with one line: the
file, what was found in it, and the option that says what it means. An image becomes uint8
[H, W, 3]. A mask becomes a `Painting`: values with the ground taken out. Which of the values are
nuclei is decided in `meaning.py`, over all masks of a source. Knows nothing of folders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.rasters import Kind, Raster, SourceError, decode

GROUND = -1
"""In a painting: a pixel of the ground."""
WHITE = 255
GREYISH = 24
"""Most levels between the channels of a pixel that still counts as grey under `threshold`."""
SHOWN = 6
"""Values that a message lists, the most frequent first."""
IDS = ("ids",)
"""The user's word that each nucleus has a value of its own."""


@dataclass(frozen=True)
class Rules:
    """What the user says of files that do not speak for themselves; empty, they must.

    `nuclei`: "ids" where every value is a nucleus of its own, or the values or names of nuclei.
    `background`: the value or colour of the ground. `threshold`: the least brightness of a nucleus.
    `white`: the image value that becomes 255. `image_page`: a number from 0, or "max".
    `mask_page`: a number from 0, or "union".
    """

    nuclei: tuple[str, ...] = ()
    background: str = ""
    threshold: float | None = None
    white: float | None = None
    image_page: str = ""
    mask_page: str = ""
    max_megapixels: float = 1000.0


UNRULED = Rules()


@dataclass(frozen=True)
class Painting:
    """A mask as painted: int32 [H, W], GROUND or the value of a pixel (a colour as 0xRRGGBB)."""

    path: Path
    kind: Kind
    values: np.ndarray


# -- images ----------------------------------------------------------------------------------------


def read_image(path: Path, rules: Rules = UNRULED, content: bytes | None = None) -> np.ndarray:
    """A picture as uint8 [H, W, 3]. SourceError where it is transparent, has more than 8 bits a
    channel or several pages, and no rule says what that means. `content` as for `decode`.
    """
    raster = decode(path, rules.max_megapixels, content)
    if raster.alpha is not None and not (raster.alpha == _full(raster.alpha)).all():
        raise SourceError(f"{path}: has transparent pixels, expected an opaque image")
    pixels = _image_page(raster, rules.image_page)
    if raster.palette is not None:
        pixels = _looked_up(raster, pixels)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    elif rules.white is not None:
        pixels = _scaled(path, pixels, rules.white)
    elif pixels.dtype != np.uint8:
        raise SourceError(
            f"{path}: has values of type {pixels.dtype} from {pixels.min():g} to "
            f"{pixels.max():g}, expected 8 bits a channel; --white says which value is white"
        )
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)


def _image_page(raster: Raster, page: str) -> np.ndarray:
    pages: np.ndarray = raster.pages
    if len(pages) == 1:
        return np.asarray(pages[0])
    if page == "max" and raster.palette is None:
        return np.asarray(pages.max(0))
    return _page(raster, page, "--image-page", "max")


def _page(raster: Raster, page: str, option: str, other: str) -> np.ndarray:
    count = len(raster.pages)
    if not page:
        raise SourceError(
            f"{raster.path}: has {count} pages or channels, expected one; {option} says which "
            f"(0 to {count - 1}) or {other}"
        )
    if not page.isdecimal() or int(page) >= count:
        raise SourceError(
            f"{raster.path}: {option} {page}, expected 0 to {count - 1} or {other} for its "
            f"{count} pages"
        )
    return np.asarray(raster.pages[int(page)])


def _looked_up(raster: Raster, indices: np.ndarray) -> np.ndarray:
    assert raster.palette is not None
    if indices.max(initial=0) >= len(raster.palette):
        raise SourceError(f"{raster.path}: has indices beyond its palette, expected none")
    return np.asarray(raster.palette[indices])


def _scaled(path: Path, pixels: np.ndarray, white: float) -> np.ndarray:
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= white):
        raise SourceError(f"{path}: has values from {low:g} to {high:g}, --white {white:g} is less")
    return np.rint(pixels.astype(np.float64) * (255 / white)).astype(np.uint8)


def _full(alpha: np.ndarray) -> float:
    """The value of an opaque pixel."""
    return float(np.iinfo(alpha.dtype).max) if alpha.dtype.kind in "iu" else 1.0


# -- masks -----------------------------------------------------------------------------------------


def read_painting(path: Path, rules: Rules = UNRULED, content: bytes | None = None) -> Painting:
    """A painted mask with its ground taken out. SourceError where it does not show its ground
    beyond doubt, where a lossy format has changed its values, or where it has several pages, and
    no rule says what that means.

    The ground is 0, black, or index 0 of a palette that shows it black, or white without any
    black. Colours and indices that disagree are refused. `content` as for `decode`.
    """
    raster = decode(path, rules.max_megapixels, content)
    if rules.threshold is not None:
        return _bright(raster, rules)
    if raster.lossy:
        raise SourceError(
            f"{path}: is a {raster.lossy} picture, which changes values, expected a lossless "
            "format; --threshold says from which brightness (such as 128) on a pixel is a nucleus"
        )
    if raster.zero_is_white and not rules.background:
        raise SourceError(
            f"{path}: is a TIFF that shows its value 0 white; some programs store nuclei as 0 then "
            "and others do not; --background says which is ground as it is shown, 0 or 255"
        )
    if len(raster.pages) > 1 and rules.mask_page == "union":
        layers = [_painting(raster, page, rules) for page in range(len(raster.pages))]
        return _union(layers)
    page = 0 if len(raster.pages) == 1 else None
    if page is None:
        _page(raster, rules.mask_page, "--mask-page", "union")
        page = int(rules.mask_page)
    return _painting(raster, page, rules)


def _union(layers: Sequence[Painting]) -> Painting:
    """The pixels that are painted on any page, as value 1. SourceError where a page has several
    values: which of them are nuclei would be lost.
    """
    for page, layer in enumerate(layers):
        if len(set(np.unique(layer.values).tolist()) - {GROUND}) > 1:
            raise SourceError(
                f"{layer.path}: page {page} has several values, --mask-page union expects one "
                "besides the ground on each"
            )
    painted = np.any([layer.values != GROUND for layer in layers], axis=0)
    return Painting(layers[0].path, "grey", np.where(painted, 1, GROUND).astype(np.int32))


def _painting(raster: Raster, page: int, rules: Rules) -> Painting:
    pixels = np.asarray(raster.pages[page])
    kind, values = raster.kind, pixels
    if kind == "colour":
        kind, values = _colours(raster.path, pixels)
    values = _whole(raster.path, values)
    hidden = None if raster.alpha is None else raster.alpha[page] != _full(raster.alpha)
    if rules.background:
        ground = values == parse_value(rules.background, "--background")
    elif kind == "palette":
        ground = _palette_ground(raster, values)
    else:
        ground = values == 0
    if hidden is not None and hidden.any() and not _agrees(raster, page, hidden, ground):
        raise SourceError(
            f"{raster.path}: has transparent pixels that are not those of its ground, expected an "
            "opaque mask"
        )
    chosen = rules.nuclei and rules.nuclei != IDS
    if not ground.any() and not rules.background and not chosen:
        found = describe_counts(Counter(value_counts(values)), kind)
        raise SourceError(
            f"{raster.path}: has no ground (0 or black): {found}; --nuclei says which values are "
            "nuclei, or --background which is ground"
        )
    if kind == "palette" and (_looked_up(raster, values)[~ground] == WHITE).all():
        kind, values = "grey", np.full_like(values, WHITE)  # black and white, stored as indices
    values[ground] = GROUND
    return Painting(raster.path, kind, values)


def _agrees(raster: Raster, page: int, hidden: np.ndarray, ground: np.ndarray) -> bool:
    assert raster.alpha is not None
    wholly = raster.alpha[page][hidden] == 0
    return bool(np.array_equal(hidden, ground) and (wholly.all() or raster.kind == "palette"))


def _colours(path: Path, pixels: np.ndarray) -> tuple[Kind, np.ndarray]:
    """Colours [H, W, 3] as 0xRRGGBB, or as grey values where all of them are grey."""
    if (pixels == pixels[..., :1]).all():
        return "grey", pixels[..., 0]
    if pixels.dtype != np.uint8:
        raise SourceError(f"{path}: has colours of type {pixels.dtype}, expected 8 bits a channel")
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return "colour", (red << 16) + (green << 8) + blue


def _whole(path: Path, values: np.ndarray) -> np.ndarray:
    """Values as int32, those of one bit as 0 and WHITE. SourceError where some are no whole numbers
    from 0 to 2^31 - 1.
    """
    if values.dtype == bool:
        return values.astype(np.int32) * WHITE
    whole = values
    if values.dtype.kind == "f":
        whole = np.rint(np.nan_to_num(values, nan=-1.0, posinf=-1.0, neginf=-1.0))
    low, high = whole.min(), whole.max()
    if not (np.array_equal(whole, values) and low >= 0 and high < 2**31):
        raise SourceError(
            f"{path}: has values from {values.min():g} to {values.max():g}, expected whole numbers "
            "from 0; --threshold says from which value on a pixel is a nucleus"
        )
    return whole.astype(np.int32)


def _palette_ground(raster: Raster, indices: np.ndarray) -> np.ndarray:
    """Index 0 as ground, unless the colours say otherwise. SourceError in doubt."""
    assert raster.palette is not None
    used = np.unique(indices)
    colours = [tuple(colour.tolist()) for colour in _looked_up(raster, used)]
    first = tuple(raster.palette[0].tolist())
    black, white = (0, 0, 0), (255, 255, 255)
    others = [colour for index, colour in zip(used, colours, strict=True) if index]
    if first not in (black, white) or black in others or len(set(colours)) < len(colours):
        told = ", ".join(
            f"{index} shown as {_hex(colour)}"
            for index, colour in list(zip(used, colours, strict=True))[:SHOWN]
        )
        raise SourceError(
            f"{raster.path}: its palette does not show which index is ground: {told}; "
            "--background says which, such as --background 0"
        )
    return np.asarray(indices == 0)


def _bright(raster: Raster, rules: Rules) -> Painting:
    """Pixels of at least `threshold` as value 1."""
    pixels = np.asarray(raster.pages[0])
    if len(raster.pages) > 1:
        union = rules.mask_page == "union" and raster.palette is None
        pixels = (
            np.asarray(raster.pages.max(0))
            if union
            else _page(raster, rules.mask_page, "--mask-page", "union")
        )
    if raster.palette is not None:
        pixels = _looked_up(raster, pixels)
    if pixels.ndim == 3:
        spread = int((pixels.max(-1).astype(np.int64) - pixels.min(-1)).max())
        if spread > GREYISH:
            raise SourceError(f"{raster.path}: has colours, --threshold expects a grey mask")
        pixels = pixels.mean(-1)
    bright = pixels >= rules.threshold
    return Painting(raster.path, "grey", np.where(bright, 1, GROUND).astype(np.int32))


# -- values, as users type and read them -----------------------------------------------------------


def value_counts(values: np.ndarray) -> dict[int, int]:
    """How many pixels have each value."""
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def parse_value(word: str, option: str) -> int:
    """A number as typed, or a colour such as #ff0000."""
    try:
        return int(word[1:], 16) if word.startswith("#") else int(word)
    except ValueError:
        message = f"{option}: got {word!r}, expected a number such as 255 or a colour like #ff0000"
        raise SourceError(message) from None


def describe_counts(counts: Counter[int], kind: Kind) -> str:
    """The most frequent values with their shares, for people."""
    total = sum(counts.values())
    most = [
        f"{'ground' if value == GROUND else describe_value(kind, value)} ({count / total:.1%})"
        for value, count in counts.most_common(SHOWN)
    ]
    more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    return f"{'colours' if kind == 'colour' else 'values'} {', '.join(most)}{more}"


def describe_value(kind: Kind, value: int) -> str:
    """A value as a user would type it."""
    return f"'#{value:06x}'" if kind == "colour" else str(value)


def _hex(colour: tuple[int, ...]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in colour)
