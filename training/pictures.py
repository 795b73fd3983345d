"""Images and masks of data sets: what the values of a file mean, or why they cannot be known.

Every image and every mask of training is read by this module, whether it was imported, is listed in
a manifest, or was found in plain folders. A file is understood completely, or rejected with one
line: the file, the values found, and the option that says what they mean. An image becomes uint8
[H, W, 3]. A mask becomes a `Painting`: values without the background. `meaning.py` decides which
values are nuclei, over all masks of a source. Knows nothing of folders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training import scratch
from training.rasters import Kind, Raster, SourceError, decode

GROUND = -1
"""In a painting: a pixel of the ground."""
WHITE = 255
GREYISH = 24
"""Most levels between the channels of a pixel that still counts as grey under `threshold`."""
SHOWN = 6
"""Values that a message lists, the most frequent first."""
MOST_BINS = 1 << 20
"""Values up to which each is counted in a bin of its own: faster than sorting pixels."""
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
    if raster.alpha is not None and raster.alpha.min() != _full(raster.alpha):
        raise SourceError(f"{path}: has transparent pixels, expected an opaque image")
    pages = _image_pages(raster, rules.image_page)
    if raster.palette is not None:
        _refuse_beyond_palette(raster, pages)
    elif rules.white is not None and pages.dtype != bool:
        _refuse_beyond_white(path, pages, rules.white)
    elif pages.dtype not in (np.uint8, bool):
        raise SourceError(
            f"{path}: has values of type {pages.dtype} from {pages.min():g} to "
            f"{pages.max():g}, expected 8 bits per channel; --white says which value is white"
        )
    as_it_is = len(pages) == 1 and pages.ndim == 4 and pages.dtype == np.uint8
    if as_it_is and rules.white is None:
        return np.asarray(pages[0])
    shape = (*raster.shape, 3)
    return scratch.by_bands(lambda rows: _rgb(raster, pages[:, rows], rules), shape, np.uint8)


def _rgb(raster: Raster, pages: np.ndarray, rules: Rules) -> np.ndarray:
    """Some rows of an image's pages, the brightest of them, as uint8 [H, W, 3]."""
    pixels = np.asarray(pages[0] if len(pages) == 1 else pages.max(0))
    if raster.palette is not None:
        pixels = raster.palette[pixels]
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    elif rules.white is not None:
        pixels = np.rint(pixels.astype(np.float64) * (255 / rules.white)).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)


def _image_pages(raster: Raster, page: str) -> np.ndarray:
    """The page that the image is, or all whose brightest pixels it is."""
    if len(raster.pages) == 1 or (page == "max" and raster.palette is None):
        return raster.pages
    chosen = _page(raster, page, "--image-page", "max")
    return raster.pages[chosen : chosen + 1]


def _page(raster: Raster, page: str, option: str, other: str) -> int:
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
    return int(page)


def _refuse_beyond_palette(raster: Raster, indices: np.ndarray) -> None:
    if raster.palette is not None and indices.max(initial=0) >= len(raster.palette):
        raise SourceError(f"{raster.path}: has indices beyond its palette, expected none")


def _refuse_beyond_white(path: Path, pixels: np.ndarray, white: float) -> None:
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= white):
        raise SourceError(f"{path}: has values from {low:g} to {high:g}, --white {white:g} is less")


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
            f"{path}: is a {raster.lossy} image, which changes values, expected a lossless "
            "format; --threshold gives the least brightness of a nucleus, such as 128"
        )
    if raster.zero_is_white and not rules.background:
        raise SourceError(
            f"{path}: is a TIFF that shows its value 0 white; some programs then store nuclei as "
            "0, others do not; --background gives the background as it is shown, 0 or 255"
        )
    if len(raster.pages) > 1 and rules.mask_page == "union":
        return _union(raster, rules)
    if len(raster.pages) > 1:
        return _painting(raster, _page(raster, rules.mask_page, "--mask-page", "union"), rules)
    return _painting(raster, 0, rules)


def _union(raster: Raster, rules: Rules) -> Painting:
    """The pixels that are painted on any page, as value 1. SourceError where a page has several
    values: which of them are nuclei would be lost.
    """
    union = scratch.zeros(raster.shape, np.int32)
    for page in range(len(raster.pages)):
        layer = _painting(raster, page, rules).values
        if len(value_counts(layer).keys() - {GROUND}) > 1:
            raise SourceError(
                f"{raster.path}: page {page} has several values, --mask-page union expects one "
                "besides the background on each"
            )
        for rows in scratch.bands(raster.shape):
            before = union[rows] if page else GROUND
            union[rows] = np.where(layer[rows] != GROUND, 1, before)
    return Painting(raster.path, "grey", union)


def _painting(raster: Raster, page: int, rules: Rules) -> Painting:
    path, kind, pixels = raster.path, raster.kind, raster.pages[page]
    if kind == "colour":
        kind = _kind_of_colours(path, pixels)
    values = scratch.by_bands(
        lambda rows: _whole(path, _numbers(kind, pixels[rows])), raster.shape, np.int32
    )
    counts = value_counts(values)
    ground = parse_value(rules.background, "--background") if rules.background else 0
    if kind == "palette":
        _refuse_beyond_palette(raster, pixels)
        if not rules.background:
            _refuse_unclear_palette(raster, sorted(counts))
    if raster.alpha is not None:
        _refuse_other_hidden(raster, raster.alpha[page], values, ground)
    chosen = rules.nuclei and rules.nuclei != IDS
    if ground not in counts and not rules.background and not chosen:
        raise SourceError(
            f"{path}: has no background (0 or black): {describe_counts(Counter(counts), kind)}; "
            "--nuclei says which values are nuclei, or --background which is the background"
        )
    painted = counts.keys() - {ground}
    in_white = kind == "palette" and _all_white(raster, painted)  # stored as indices
    for rows in scratch.bands(raster.shape):
        band = values[rows]
        at_ground = band == ground
        if in_white:
            band[:] = WHITE
        band[at_ground] = GROUND
    return Painting(path, "grey" if in_white else kind, values)


def _all_white(raster: Raster, indices: Iterable[int]) -> bool:
    assert raster.palette is not None
    return bool((raster.palette[sorted(indices)] == WHITE).all())


def _refuse_other_hidden(
    raster: Raster, alpha: np.ndarray, values: np.ndarray, ground: int
) -> None:
    """SourceError unless all pixels are opaque, or all but those of the ground. Those have to be
    wholly transparent, other than a palette's.
    """
    full = _full(alpha)

    def agrees(rows: slice) -> bool:
        hidden = alpha[rows] != full
        wholly = raster.kind == "palette" or not alpha[rows][hidden].any()
        return bool(wholly and np.array_equal(hidden, values[rows] == ground))

    if alpha.min() != full and not scratch.every(agrees, values.shape):
        raise SourceError(
            f"{raster.path}: has transparent pixels that are not its background, expected an "
            "opaque mask"
        )


def _kind_of_colours(path: Path, pixels: np.ndarray) -> Kind:
    """Grey where all of the colours [H, W, 3] are."""
    if scratch.every(lambda rows: (pixels[rows] == pixels[rows, :, :1]).all(), pixels.shape):
        return "grey"
    if pixels.dtype != np.uint8:
        raise SourceError(
            f"{path}: has colours of type {pixels.dtype}, expected 8 bits per channel"
        )
    return "colour"


def _numbers(kind: Kind, pixels: np.ndarray) -> np.ndarray:
    """One number a pixel: a colour as 0xRRGGBB, of a grey one its level."""
    if pixels.ndim == 2:
        return pixels
    if kind == "grey":
        return pixels[..., 0]
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return np.asarray((red << 16) + (green << 8) + blue)


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
            "from 0; --threshold gives the least value of a nucleus"
        )
    return whole.astype(np.int32)


def _refuse_unclear_palette(raster: Raster, used: Sequence[int]) -> None:
    """Index 0 is ground, unless the colours say otherwise: SourceError in doubt."""
    assert raster.palette is not None
    colours = [tuple(raster.palette[index].tolist()) for index in used]
    first = tuple(raster.palette[0].tolist())
    black, white = (0, 0, 0), (255, 255, 255)
    others = [colour for index, colour in zip(used, colours, strict=True) if index]
    if first not in (black, white) or black in others or len(set(colours)) < len(colours):
        told = ", ".join(
            f"{index} shown as {_hex(colour)}"
            for index, colour in list(zip(used, colours, strict=True))[:SHOWN]
        )
        raise SourceError(
            f"{raster.path}: its palette does not show which index is the background: {told}; "
            "--background says which, such as --background 0"
        )


def _bright(raster: Raster, rules: Rules) -> Painting:
    """Pixels of at least `threshold` as value 1."""
    pages = raster.pages
    if len(pages) > 1 and (rules.mask_page != "union" or raster.palette is not None):
        pages = pages[_page(raster, rules.mask_page, "--mask-page", "union")][None]
    _refuse_beyond_palette(raster, pages)

    def bright(rows: slice) -> np.ndarray:
        pixels = pages[:, rows].max(0)
        if raster.palette is not None:
            pixels = raster.palette[pixels]
        if pixels.ndim == 3:
            spread = int((pixels.max(-1).astype(np.int64) - pixels.min(-1)).max())
            if spread > GREYISH:
                raise SourceError(f"{raster.path}: has colours, --threshold expects a grey mask")
            pixels = pixels.mean(-1)
        return np.where(pixels >= rules.threshold, 1, GROUND)

    return Painting(raster.path, "grey", scratch.by_bands(bright, raster.shape, np.int32))


# -- values, as users type and read them -----------------------------------------------------------


def value_counts(values: np.ndarray) -> dict[int, int]:
    """How many pixels of an int32 array [H, W] have each value, in ascending order."""
    total = Counter[int]()
    low, high = int(values.min(initial=GROUND)), int(values.max(initial=GROUND))
    for rows in scratch.bands(values.shape):
        if high - low < min(values.size, MOST_BINS):
            bins = np.bincount(values[rows].ravel() - low)
            found = np.flatnonzero(bins)
            total.update(dict(zip((found + low).tolist(), bins[found].tolist(), strict=True)))
        else:
            found, counts = np.unique(values[rows], return_counts=True)
            total.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
    return dict(sorted(total.items()))


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
