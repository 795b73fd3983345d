"""Curves in panels: figures of a sweep against one setting, a line for each value of another.

The paper's Fig. 7 (e, f). Knows no figure in particular.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from training.evaluation.embedding import palette

PANEL = (400, 220)
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 30, 42
"""Room around a panel's field for its numbers and words."""
LINE = 22
COLUMNS = 2
DOT = 4
SPREAD = 5
"""Pixels between the lines' dots at one place, so that error bars stand side by side."""
TICKS = 6
SUPERSAMPLE = 2
GREY = "#888888"


@dataclass(frozen=True)
class Panel:
    """One figure: `lines` maps a line's name to (x, value, half-width of its error bar or 0),
    sorted by x. `level` is a dashed line across, such as the same figure of real patches; `best`
    the (line, x) that is ringed."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float, float]]]
    level: float | None = None
    best: tuple[str, float] | None = None


def picture(title: str, across: str, panels: Sequence[Panel], legend: str) -> Image.Image:
    """Panels two abreast, `across` under each; lines of one name have one colour throughout."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colours = dict(zip(names, palette(len(names)), strict=True))
    rows = math.ceil(len(panels) / COLUMNS)
    cell = LEFT + PANEL[0] + RIGHT, TOP + PANEL[1] + BOTTOM
    head = 2 * LINE + 8
    size = cell[0] * min(COLUMNS, len(panels)), head + cell[1] * rows
    drawing = _Drawing(size)
    drawing.write((12, 6), title)
    drawing.write((12, 6 + LINE), legend, GREY)
    x = drawing.width(legend) + 36
    for name, colour in colours.items():
        drawing.line([(x, 6 + 1.4 * LINE), (x + 20, 6 + 1.4 * LINE)], colour, 2)
        drawing.write((x + 26, 6 + LINE), name)
        x += drawing.width(name) + 50
    for number, panel in enumerate(panels):
        corner = cell[0] * (number % COLUMNS) + LEFT, head + cell[1] * (number // COLUMNS) + TOP
        _draw(drawing, corner, panel, across, colours)
    return drawing.finished()


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within low..high, evenly apart, two to seven of them."""
    if not high > low:
        return [low]
    rough = (high - low) / TICKS
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor > rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _draw(
    drawing: _Drawing,
    corner: tuple[int, int],
    panel: Panel,
    across: str,
    colours: Mapping[str, str],
) -> None:
    (left, top), (width, height) = corner, PANEL
    dots = [dot for line in panel.lines.values() for dot in line]
    places = sorted({x for x, _, _ in dots})
    levels = [] if panel.level is None else [panel.level]
    low, high = _bounds([*levels, *(y + s * e for _, y, e in dots for s in (-1, 1))])
    start, end = _bounds(places)

    def across_at(x: float) -> float:
        return left + width * (x - start) / (end - start)

    def up_at(y: float) -> float:
        return top + height * (high - y) / (high - low)

    drawing.write((left, top - 8), panel.title, anchor="ls")
    for y in ticks(low, high):
        drawing.line([(left, up_at(y)), (left + width, up_at(y))], "#e6e6e6", 1)
        drawing.write((left - 6, up_at(y)), f"{y:.4g}", anchor="rm")
    for x in places:
        drawing.line([(across_at(x), top + height), (across_at(x), top + height + 4)], "black", 1)
        drawing.write((across_at(x), top + height + 6), f"{x:g}", anchor="mt")
    drawing.write((left + width / 2, top + height + 22), across, GREY, anchor="mt")
    if panel.level is not None:
        drawing.dashes(left, left + width, up_at(panel.level))
    drawing.line([(left, top), (left, top + height), (left + width, top + height)], "black", 1)
    for number, (name, line) in enumerate(panel.lines.items()):
        aside = SPREAD * (number - (len(panel.lines) - 1) / 2)
        points = [(across_at(x) + aside, up_at(y)) for x, y, _ in line]
        drawing.line(points, colours[name], 2)
        for (x, y, error), point in zip(line, points, strict=True):
            ends = [(point[0], up_at(y + sign * error)) for sign in (-1, 1)]
            drawing.line(ends, colours[name], 1)
            drawing.dot(point, colours[name], ringed=panel.best == (name, x))


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """The values' range with a little room to either side."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


class _Drawing:
    """A canvas in pixels of the finished picture, drawn at twice the size for smooth lines."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.picture = Image.new("RGB", (size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE), "white")
        self.canvas = ImageDraw.Draw(self.picture)
        self.font = ImageFont.load_default(13 * SUPERSAMPLE)

    def finished(self) -> Image.Image:
        return self.picture.reduce(SUPERSAMPLE)

    def width(self, words: str) -> float:
        return float(self.font.getlength(words)) / SUPERSAMPLE

    def write(
        self, place: tuple[float, float], words: str, colour: str = "black", anchor: str = "la"
    ) -> None:
        self.canvas.text(_large(place), words, fill=colour, font=self.font, anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
        places = [_large(point) for point in points]
        self.canvas.line(places, fill=colour, width=width * SUPERSAMPLE)

    def dashes(self, left: float, right: float, y: float) -> None:
        for x in range(int(left), int(right), 10):
            self.line([(x, y), (min(x + 6, right), y)], GREY, 1)

    def dot(self, point: tuple[float, float], colour: str, *, ringed: bool) -> None:
        self._circle(point, DOT, fill=colour)
        if ringed:
            self._circle(point, DOT + 5, outline="black", width=2 * SUPERSAMPLE)

    def _circle(self, point: tuple[float, float], reach: int, **how: str | int) -> None:
        x, y = point
        box = (*_large((x - reach, y - reach)), *_large((x + reach, y + reach)))
        self.canvas.ellipse(box, **how)  # type: ignore[arg-type]


def _large(point: tuple[float, float]) -> tuple[float, float]:
    return point[0] * SUPERSAMPLE, point[1] * SUPERSAMPLE
