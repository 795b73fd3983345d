"""Dots in panels: a row a point of a sweep, a panel a figure. Knows no figure in particular."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH, GAP, EDGE = 180, 26, 12
"""Of a panel; between two; around all."""
LINE, ROW = 22, 20
DOT = 4
TICKS = 4
SUPERSAMPLE = 2
GREY, PALE, BAND = "#888888", "#e6e6e6", "#eef5ee"
COLOURS = {"chosen": "#d55e00", "passes": "#0072b2", "out": "#aaaaaa"}


@dataclass(frozen=True)
class Panel:
    """One figure: `dots` has (value, half-width of its error bar or 0) of each row; one that is not
    a number is not drawn. `level` is a dashed line, such as the same figure of real patches;
    `within` are bounds, drawn as a band."""

    title: str
    dots: Sequence[tuple[float, float]]
    level: float | None = None
    within: tuple[float, float] | None = None


def picture(title: str, rows: Sequence[tuple[str, str]], panels: Sequence[Panel]) -> Image.Image:
    """Panels side by side; `rows` are the name of each row and which of COLOURS it has."""
    drawing = _Drawing()
    names = max(drawing.width(name) for name, _ in rows)
    left, top = int(EDGE + names + GAP), EDGE + 3 * LINE + 4
    bottom = top + ROW * len(rows)
    drawing.start((left + (WIDTH + GAP) * len(panels), bottom + LINE + EDGE))
    drawing.write((EDGE, EDGE), title)
    x = float(EDGE)
    for state, colour in COLOURS.items():
        drawing.dot((x + DOT, EDGE + 1.4 * LINE), colour)
        drawing.write((x + 14, EDGE + LINE), state)
        x += drawing.width(state) + 34
    drawing.write((x, EDGE + LINE), "bars: 95%; dashed: real patches; band: what may pass", GREY)
    for number, (name, state) in enumerate(rows):
        y = top + ROW * (number + 0.5)
        if state == "chosen":
            box = (EDGE / 2, y - ROW / 2, left - GAP / 2, y + ROW / 2)
            drawing.box(box, PALE)
        drawing.write((left - GAP, y), name, "black" if state != "out" else GREY, anchor="rm")
    colours = [COLOURS[state] for _, state in rows]
    for number, panel in enumerate(panels):
        _draw(drawing, (left + (WIDTH + GAP) * number, top), panel, colours)
    return drawing.finished()


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within low..high, evenly apart, one to five of them."""
    if not high > low:
        return [low]
    rough = (high - low) / TICKS
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor > rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _draw(
    drawing: _Drawing, corner: tuple[float, float], panel: Panel, colours: Sequence[str]
) -> None:
    (left, top), bottom = corner, corner[1] + ROW * len(panel.dots)
    levels = [] if panel.level is None else [panel.level]
    ends = [value + sign * error for value, error in panel.dots for sign in (-1, 1)]
    low, high = _bounds([end for end in (*levels, *ends) if math.isfinite(end)])

    def across(value: float) -> float:
        return left + WIDTH * (min(max(value, low), high) - low) / (high - low)

    drawing.write((left, top - 6), panel.title, anchor="ls")
    if panel.within:
        drawing.box((across(panel.within[0]), top, across(panel.within[1]), bottom), BAND)
    for value in ticks(low, high):
        drawing.line([(across(value), top), (across(value), bottom)], PALE, 1)
        drawing.write((across(value), bottom + 5), f"{value:.4g}", anchor="mt")
    drawing.line([(left, top), (left, bottom), (left + WIDTH, bottom)], "black", 1)
    if panel.level is not None:
        drawing.dashes(across(panel.level), top, bottom)
    for number, (value, error) in enumerate(panel.dots):
        if math.isfinite(value):
            y, colour = top + ROW * (number + 0.5), colours[number]
            drawing.line([(across(value - error), y), (across(value + error), y)], colour, 2)
            drawing.dot((across(value), y), colour)


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """The values' range with a little room to either side."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.08 * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


class _Drawing:
    """A canvas in pixels of the finished picture, drawn at twice the size for smooth lines."""

    def __init__(self) -> None:
        self.font = ImageFont.load_default(13 * SUPERSAMPLE)

    def start(self, size: tuple[int, int]) -> None:
        width, height = size
        self.picture = Image.new("RGB", (width * SUPERSAMPLE, height * SUPERSAMPLE), "white")
        self.canvas = ImageDraw.Draw(self.picture)

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

    def box(self, box: tuple[float, float, float, float], colour: str) -> None:
        self.canvas.rectangle((*_large(box[:2]), *_large(box[2:])), fill=colour)

    def dashes(self, x: float, top: float, bottom: float) -> None:
        for y in range(int(top), int(bottom), 10):
            self.line([(x, y), (x, min(y + 6, bottom))], GREY, 1)

    def dot(self, point: tuple[float, float], colour: str) -> None:
        x, y = point
        box = (*_large((x - DOT, y - DOT)), *_large((x + DOT, y + DOT)))
        self.canvas.ellipse(box, fill=colour)


def _large(point: tuple[float, float]) -> tuple[float, float]:
    return point[0] * SUPERSAMPLE, point[1] * SUPERSAMPLE
