"""Annotations as outlines: the pixels that an outline encloses, and which classes are nuclei.

A format's reader gives `Annotated`: outlines, each with its class and a function that gives its
pixels in an image. What is common to all formats is here. Nuclei are numbered from 1 in the order
of the file; where outlines overlap, the earlier keeps its pixels; what lies outside the image is
cut off. Three rules say which pixels an outline encloses; each format's docstring names its own.
Knows no format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import shapely
from PIL import Image, ImageDraw

from training import scratch
from training.layouts.original import Original, Pair
from training.pictures import Rules, read_image
from training.rasters import SourceError

Shape = tuple[int, int]
"""Height and width of an image."""
LIMIT = 1e6
"""Pixels. No coordinate is larger, and no outline is longer: what one costs stays within bounds."""
BLOCK = 1 << 20
"""Pixels that are tested against an outline at once."""
BESIDE = (1e-6, 1e-7)
"""Pixels in x and y: what decides whether a centre that lies on an edge is inside."""
NO_PIXEL = "annotations without a pixel"
LONGEST_NAME = 60
SHOWN = 12
"""Classes that a message lists, the most frequent first."""


class TooLong(ValueError):
    """An outline that no nucleus has; the sentence says how long it is."""


@dataclass(frozen=True)
class Piece:
    """Pixels of an image: bool [h, w], and the row and column of its upper left corner."""

    top: int
    left: int
    mask: np.ndarray


@dataclass(frozen=True)
class Outline:
    """One annotation. `pixels` gives its pieces in an image of a shape, and raises SourceError
    where it has no area. `doubt` says what it marks where its nuclei are not outlined one by one.
    """

    label: str
    pixels: Callable[[Shape], Sequence[Piece]]
    doubt: str = ""


@dataclass(frozen=True)
class Annotated:
    """What an annotation file tells of one image. `shape` is None, and `mpp` 0, where it does not
    say.
    """

    outlines: Sequence[Outline]
    shape: Shape | None = None
    mpp: float = 0.0


@dataclass
class Classes:
    """The classes of a source's annotations, and how often each was found. `numbers` gives the
    names that a number or another word stands for.
    """

    found: Counter[str] = field(default_factory=Counter)
    numbers: dict[str, set[str]] = field(default_factory=dict)

    def count(self, outlines: Iterable[Outline]) -> None:
        """Add those of a file."""
        self.found.update(outline.label for outline in outlines if not outline.doubt)

    def nuclei(self, source: Path, rules: Rules, known: Iterable[str] = ()) -> frozenset[str]:
        """The classes that are nuclei: those of the rule, all where all are `known` nuclei, or
        the only one. SourceError where that is in doubt.
        """
        if rules.nuclei:
            return frozenset(name for word in rules.nuclei for name in self._named(word))
        names = frozenset(self.found)
        if len(names) <= 1 or names <= frozenset(known):
            return names
        raise SourceError(
            f"{source}: has annotations of {len(names)} classes: {self._listed()}; --nuclei says "
            f"which are nuclei, such as --nuclei {_quoted(self.found.most_common(1)[0][0])}"
        )

    def _named(self, word: str) -> set[str]:
        names = {word} if word in self.found else self.numbers.get(word, set()) & set(self.found)
        if not names:
            found = self._listed() or "none"
            raise SourceError(f"--nuclei: got {word}, but the annotations have classes: {found}")
        return names

    def _listed(self) -> str:
        shown = [f"{_quoted(name)} ({count})" for name, count in self.found.most_common(SHOWN)]
        more = f" and {len(self.found) - SHOWN} more" if len(self.found) > SHOWN else ""
        return ", ".join(shown) + more


def _quoted(name: str) -> str:
    """As a shell takes it, on one line and cut short."""
    plain = name.isprintable() and " " not in name and "'" not in name
    return (name if plain and name else repr(name))[:LONGEST_NAME]


# -- originals -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Annotation:
    """An image, the file that annotates it and how that is read. `also`: what is read with it."""

    name: str
    image: Path
    file: Path
    read: Callable[[], Annotated]
    organ: str = ""
    group: str = ""
    also: tuple[Path, ...] = ()


def count_classes(found: Sequence[Annotation]) -> Classes:
    """The classes of annotations, each read once. One that cannot be read is passed over: it says
    so when its pair is asked for.
    """
    classes = Classes()
    for each in found:
        try:
            classes.count(each.read().outlines)
        except SourceError:
            continue
    return classes


def originals(
    found: Sequence[Annotation], nuclei: frozenset[str], rules: Rules
) -> list[tuple[Original, Path]]:
    """Originals of annotations whose class is one of `nuclei`, each with its image."""
    return [(_original(each, nuclei, rules), each.image) for each in found]


def _original(annotation: Annotation, nuclei: frozenset[str], rules: Rules) -> Original:
    read = partial(read_pair, annotation, nuclei, rules)
    files = (annotation.image, annotation.file, *annotation.also)
    return Original(annotation.name, read, files, annotation.organ, group=annotation.group)


def read_pair(annotation: Annotation, nuclei: frozenset[str], rules: Rules) -> Pair:
    """An image with the ids of its outlined nuclei. SourceError."""
    annotated = annotation.read()
    image = read_image(annotation.image, rules)
    shape = image.shape[0], image.shape[1]
    if annotated.shape not in (None, shape):
        ours, theirs = (f"{width} x {height}" for height, width in (annotated.shape, shape))
        raise SourceError(
            f"{annotation.file}: says that its image is {ours} pixels, but {annotation.image} is "
            f"{theirs}"
        )
    try:
        ids, doubtful, left_out = paint(annotated.outlines, shape, nuclei)
    except TooLong as error:
        raise SourceError(f"{annotation.file}: {error}") from None
    return Pair(image, ids, annotated.mpp, doubtful, left_out)


def paint(
    outlines: Sequence[Outline], shape: Shape, nuclei: frozenset[str]
) -> tuple[np.ndarray, np.ndarray | None, Mapping[str, int]]:
    """Ids, int32 [H, W], of the outlines whose class is one of `nuclei`; where nuclei are in doubt,
    bool [H, W], or None; and how many annotations were left out, by reason.
    """
    ids, number = scratch.zeros(shape, np.int32), 0
    doubtful: np.ndarray | None = None
    left_out: Counter[str] = Counter()
    for outline in outlines:
        if outline.label not in nuclei:
            left_out[f"annotations of class {outline.label}"] += 1
        elif outline.doubt:
            doubtful = scratch.zeros(shape, bool) if doubtful is None else doubtful
            for piece in outline.pixels(shape):
                _window(doubtful, piece)[piece.mask] = True
            left_out[outline.doubt] += 1
        elif _number(ids, outline.pixels(shape), number + 1):
            number += 1
        else:
            left_out[NO_PIXEL] += 1
    return ids, doubtful, left_out


def _number(ids: np.ndarray, pieces: Sequence[Piece], number: int) -> bool:
    """Give the free pixels of an outline a number; whether there were any."""
    any_free = False
    for piece in pieces:
        window = _window(ids, piece)
        free = piece.mask & ((window == 0) | (window == number))
        window[free] = number
        any_free = any_free or bool(free.any())
    return any_free


def _window(pixels: np.ndarray, piece: Piece) -> np.ndarray:
    height, width = piece.mask.shape
    return pixels[piece.top : piece.top + height, piece.left : piece.left + width]


# -- which pixels an outline encloses --------------------------------------------------------------


def around(points: np.ndarray, shape: Shape) -> tuple[int, int, int, int] | None:
    """The first row and column of an image that points [N, 2] of x and y reach, and those after the
    last, with a pixel more on each side; None where they lie outside. TooLong.
    """
    height, width = shape
    steps = np.abs(np.diff(points, axis=0, append=points[:1])).max(1).sum()
    if steps > LIMIT:
        raise TooLong(f"has an outline of {steps:,.0f} pixels, expected up to {LIMIT:,.0f}")
    low, high = np.floor(points.min(0)).astype(int) - 1, np.ceil(points.max(0)).astype(int) + 2
    top, left = max(0, low[1]), max(0, low[0])
    bottom, right = min(height, high[1]), min(width, high[0])
    return (top, left, bottom, right) if top < bottom and left < right else None


def inside_or_on(points: np.ndarray, shape: Shape) -> list[Piece]:
    """Rule 1: coordinates are those of pixels' centres, so (0, 0) is the middle of the first pixel.
    A pixel belongs if its centre lies inside the outline or on it.
    """
    return _inside([points], shape, shapely.intersects_xy, (0.0, 0.0))


def centres_inside(rings: Sequence[np.ndarray], shape: Shape) -> list[Piece]:
    """Rule 2: coordinates are those of pixels' corners, so (0, 0) is the upper left corner of the
    first pixel and (0.5, 0.5) its centre. A pixel belongs if its centre lies inside the first ring
    and in no other, which are holes. A centre on an edge is inside if what is right of it is, as
    Java draws (java.awt.Shape).
    """
    return _inside(rings, shape, shapely.contains_xy, (0.5 + BESIDE[0], 0.5 + BESIDE[1]))


def _inside(
    rings: Sequence[np.ndarray],
    shape: Shape,
    test: Callable[..., np.ndarray],
    offset: tuple[float, float],
) -> list[Piece]:
    """Rings that cross themselves enclose what a line from outside reaches after an odd number of
    crossings.
    """
    rings = [ring for ring in rings if len(ring) >= 3]
    boxes = [around(ring, shape) for ring in rings]
    box = boxes[0] if boxes else None
    if box is None:
        return []
    top, left, bottom, right = box
    polygon = shapely.Polygon(rings[0], rings[1:])
    shapely.prepare(polygon)
    mask = np.empty((bottom - top, right - left), dtype=bool)
    x, step = np.arange(left, right) + offset[0], max(1, BLOCK // (right - left))
    for row in range(top, bottom, step):
        y = np.arange(row, min(bottom, row + step)) + offset[1]
        mask[row - top : row - top + len(y)] = test(polygon, x[None], y[:, None])
    return [Piece(top, left, mask)]


def drawn(points: np.ndarray, shape: Shape, how: str = "polygon") -> list[Piece]:
    """Rule 3: coordinates lose what is behind their point, so each is a whole pixel, and the shape
    is drawn between these pixels with its edge, as Pillow draws a `polygon`, or a `rectangle` or
    an `ellipse` between two corners.
    """
    whole = np.trunc(points).astype(int)
    box = around(whole, shape) if len(whole) >= (3 if how == "polygon" else 2) else None
    if box is None:
        return []
    top, left, bottom, right = box
    canvas = Image.new("1", (right - left, bottom - top))
    corners = [(int(x) - left, int(y) - top) for x, y in whole]
    getattr(ImageDraw.Draw(canvas), how)(corners, fill=1, outline=1)
    return [Piece(top, left, np.array(canvas))]
