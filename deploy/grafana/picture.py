"""Draws the main panels of the dashboard from what a Prometheus holds, for docs/operate.md.

    python deploy/grafana/picture.py --url http://127.0.0.1:9090 --minutes 10 --out dashboard.png

Asks the very expressions of `dashboards/pathar.json`. Not Grafana, and not meant to look like it:
where none is at hand, it shows what the panels would.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw, ImageFont

DASHBOARD = Path(__file__).parent / "dashboards" / "pathar.json"
MORE = (
    *("Where the time goes", "Images by label", "Mean fill of a step"),
    *("Slots", "Age of the oldest", "Jobs by their end"),
    *("Requests by status", "Problems by type", "Memory"),
)
"""Panels below the first row, three in a line."""
POINTS = 300
WIDTH, STAT_HEIGHT, PANEL_HEIGHT, GAP = 1500, 130, 290, 12
SCALE = 2
"""Drawn larger by this and shrunk, for smooth lines."""
INK, DIM, GRID, BACK, PANEL = "#1b1f24", "#6a737d", "#e6e8eb", "#f3f4f6", "#ffffff"
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#999933", "#444444")
SAID = {"reqps": "req/s", "cps": "a second"}
STATES = {"text": INK, "green": "#1a7f37", "orange": "#bf8700", "red": "#cf222e"}


@dataclass(frozen=True)
class Series:
    """One line: its name, and a value for each moment at which it has one."""

    name: str
    values: Mapping[float, float]


@dataclass(frozen=True)
class Span:
    """What is asked for: from, to and between two points, in seconds."""

    start: float
    end: float
    step: float

    def times(self) -> list[float]:
        """The moments of the points."""
        count = int((self.end - self.start) / self.step) + 1
        return [self.start + index * self.step for index in range(count)]


class Canvas:
    """A picture in which lengths are those of the result."""

    def __init__(self, width: int, height: int) -> None:
        self._image = Image.new("RGB", (width * SCALE, height * SCALE), BACK)
        self._draw = ImageDraw.Draw(self._image)

    def box(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """A filled rectangle."""
        corners = [x * SCALE, y * SCALE, (x + width) * SCALE, (y + height) * SCALE]
        self._draw.rounded_rectangle(corners, 4 * SCALE, fill=color)

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 1) -> None:
        """A line through points."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        if len(scaled) > 1:
            self._draw.line(scaled, fill=color, width=round(width * SCALE), joint="curve")

    def area(self, points: Sequence[tuple[float, float]], color: str) -> None:
        """A filled shape."""
        if len(points) > 2:
            self._draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=color)

    def text(
        self, x: float, y: float, text: str, size: int, color: str = INK, anchor: str = "la"
    ) -> None:
        """Words at a place; `anchor` as Pillow has it."""
        font = ImageFont.load_default(size * SCALE)
        self._draw.text((x * SCALE, y * SCALE), text, fill=color, font=font, anchor=anchor)

    def width(self, text: str, size: int) -> float:
        """How wide words are."""
        return ImageFont.load_default(size * SCALE).getlength(text) / SCALE

    def save(self, path: Path) -> None:
        """Write the picture."""
        size = (self._image.width // SCALE, self._image.height // SCALE)
        self._image.resize(size, Image.Resampling.LANCZOS).save(path, optimize=True)


# -- what is shown --------------------------------------------------------------------------------


def ask(url: str, panel: Mapping[str, Any], span: Span, rate: str) -> list[Series]:
    """The series of a panel, all models together."""
    found = []
    for target in panel["targets"]:
        expr = target["expr"].replace("$__rate_interval", rate).replace("$model", ".*")
        asked = {"query": expr, "start": span.start, "end": span.end, "step": span.step}
        answer = httpx.get(f"{url}/api/v1/query_range", params=asked).raise_for_status().json()
        for each in answer["data"]["result"]:
            numbers = ((float(at), float(value)) for at, value in each["values"])
            values = {at: value for at, value in numbers if math.isfinite(value)}
            found.append(Series(name(target["legendFormat"], each["metric"]), values))
    return [series for series in found if series.values]


def name(legend: str, labels: Mapping[str, str]) -> str:
    """A series' name from its legend."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend)


def said(value: float, unit: str) -> str:
    """A value with its unit."""
    number = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    match unit:
        case "percentunit":
            return f"{100 * value:.3g}%"
        case "bytes":
            return f"{value / 2**20:.0f} MiB"
        case "s":
            return f"{1000 * value:.3g} ms" if 0 < value < 1 else f"{number} s"
        case "short":
            return number
        case _:
            return f"{number} {SAID.get(unit, unit.removeprefix('suffix: '))}"


def color_of(value: float, panel: Mapping[str, Any]) -> str:
    """The colour that a panel's thresholds give a value."""
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    passed = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return STATES[passed[-1]]


# -- how it is drawn ------------------------------------------------------------------------------


def figure(
    canvas: Canvas, place: tuple[float, float, float], panel: Mapping[str, Any], all_: list[Series]
) -> None:
    """Big numbers."""
    x, y, width = place
    unit = panel["fieldConfig"]["defaults"]["unit"]
    canvas.box(x, y, width, STAT_HEIGHT, PANEL)
    canvas.text(x + 12, y + 10, panel["title"], 14)
    for index, series in enumerate(all_):
        left = x + 12 + index * (width - 12) / len(all_)
        last = series.values[max(series.values)]
        canvas.text(left, y + 78, said(last, unit), 27, color_of(last, panel), anchor="lm")
        if len(all_) > 1:
            canvas.text(left, y + 106, series.name, 12, DIM)


def lines(
    canvas: Canvas,
    place: tuple[float, float, float],
    panel: Mapping[str, Any],
    all_: list[Series],
    span: Span,
) -> None:
    """Lines, or areas on top of each other, with axes and a legend. What was 0 all the time is left
    out beside what was not."""
    x, y, width = place
    unit = panel["fieldConfig"]["defaults"]["unit"]
    custom = panel["fieldConfig"]["defaults"]["custom"]
    stacks = custom.get("stacking", {}).get("mode") == "normal"
    log = custom.get("scaleDistribution", {}).get("type") == "log"
    canvas.box(x, y, width, PANEL_HEIGHT, PANEL)
    canvas.text(x + 12, y + 10, panel["title"], 14)
    moved = [series for series in all_ if any(series.values.values())]
    shown = (moved or all_)[: len(COLORS)]
    rows = legend(canvas, (x + 12, y + PANEL_HEIGHT - 12, width - 24), shown, unit)
    frame = (x + 92, y + 44, x + width - 16, y + PANEL_HEIGHT - 44 - 17 * rows)
    axes = Axes(span, ticks_for(shown, span, unit, stacks=stacks, log=log), log, frame)
    grid(canvas, axes, unit)
    if not shown:
        middle = ((frame[0] + frame[2]) / 2, (frame[1] + frame[3]) / 2)
        canvas.text(*middle, "no data", 13, DIM, anchor="mm")
    elif stacks:
        areas(canvas, shown, axes)
    else:
        for series, color in reversed(list(zip(shown, COLORS, strict=False))):
            for part in unbroken(series, span):
                canvas.line([axes.to(at, series.values[at]) for at in part], color, 2)


@dataclass(frozen=True)
class Axes:
    """Where a value at a moment is drawn; `frame` is left, top, right and bottom."""

    span: Span
    ticks: list[float]
    log: bool
    frame: tuple[float, float, float, float]

    def to(self, at: float, value: float) -> tuple[float, float]:
        """Its place."""
        left, top, right, bottom = self.frame
        across = (at - self.span.start) / (self.span.end - self.span.start)
        low, high = self.ticks[0], self.ticks[-1]
        up = math.log(max(value, low) / low, high / low) if self.log else value / high
        return left + across * (right - left), bottom - up * (bottom - top)


def ticks_for(all_: list[Series], span: Span, unit: str, *, stacks: bool, log: bool) -> list[float]:
    """Marks that all values are between."""
    one = 2**20 if unit == "bytes" else 1
    tops = [sum(values) if stacks else max(values) for values in _at(all_, span)]
    highest = max(tops, default=0.0) or one
    if log:
        lowest = min((min(series.values.values()) for series in all_), default=0.0)
        return powers(max(lowest, 0.001), highest)
    return [one * tick for tick in round_ticks(highest / one)]


def grid(canvas: Canvas, axes: Axes, unit: str) -> None:
    """Lines and words at the marks of both axes."""
    start, end = axes.span.start, axes.span.end
    for tick in axes.ticks:
        left, right = axes.to(start, tick), axes.to(end, tick)
        canvas.line([left, right], GRID)
        canvas.text(left[0] - 8, left[1], said(tick, unit), 11, DIM, anchor="rm")
    for minute in minutes(axes.span):
        x, y = axes.to(start + 60 * minute, axes.ticks[0])
        canvas.text(x, y + 8, f"{minute} min", 11, DIM, anchor="ma")


def areas(canvas: Canvas, all_: list[Series], axes: Axes) -> None:
    """Each series on top of those before it."""
    times = axes.span.times()
    below = dict.fromkeys(times, 0.0)
    for series, color in zip(all_, COLORS, strict=False):
        above = {at: below[at] + series.values.get(round(at, 3), 0.0) for at in times}
        edge = [axes.to(at, above[at]) for at in times]
        canvas.area(edge + [axes.to(at, below[at]) for at in reversed(times)], _pale(color))
        canvas.line(edge, color, 1.5)
        below = above


def legend(canvas: Canvas, place: tuple[float, float, float], all_: list[Series], unit: str) -> int:
    """Names and last values, from the bottom up; how many rows they take."""
    left, bottom, width = place
    words = [f"{s.name}  {said(s.values[max(s.values)], unit)}" for s in all_]
    rows: list[list[int]] = [[]]
    used = 0.0
    for index, text in enumerate(words):
        needs = canvas.width(text, 12) + 34
        if used + needs > width and rows[-1]:
            rows.append([])
            used = 0.0
        rows[-1].append(index)
        used += needs
    for number, row in enumerate(reversed(rows)):
        x, y = left, bottom - 17 * number - 7
        for index in row:
            canvas.box(x, y - 2, 12, 4, COLORS[index])
            canvas.text(x + 17, y, words[index], 12, DIM, anchor="lm")
            x += canvas.width(words[index], 12) + 34
    return len(rows)


def round_ticks(top: float) -> list[float]:
    """Three to six round values from 0 to at least `top`."""
    power = 10.0 ** math.floor(math.log10(top / 4))
    step = next(power * each for each in (1, 2, 2.5, 5, 10) if power * each * 5 >= top)
    return [step * index for index in range(math.ceil(top / step - 1e-9) + 1)]


def powers(low: float, high: float) -> list[float]:
    """Powers of ten from at most `low` to at least `high`."""
    first = math.floor(math.log10(low))
    last = max(math.ceil(math.log10(high)), first + 1)
    return [10.0**power for power in range(first, last + 1)]


def minutes(span: Span) -> range:
    """Full minutes for about six marks."""
    total = int((span.end - span.start) / 60)
    return range(0, total + 1, max(1, round(total / 6)))


def unbroken(series: Series, span: Span) -> Iterator[list[float]]:
    """Moments that follow each other without a gap."""
    part: list[float] = []
    for at in sorted(series.values):
        if part and at - part[-1] > 1.5 * span.step:
            yield part
            part = []
        part.append(at)
    yield part


def _at(all_: list[Series], span: Span) -> Iterator[list[float]]:
    for at in span.times():
        values = [s.values[round(at, 3)] for s in all_ if round(at, 3) in s.values]
        if values:
            yield values


def _pale(color: str) -> str:
    mixed = [int(color[at : at + 2], 16) * 0.45 + 255 * 0.55 for at in (1, 3, 5)]
    return "#" + "".join(f"{round(each):02x}" for each in mixed)


def draw(url: str, span: Span, rate: str, out: Path) -> None:
    """The picture."""
    panels = {panel["title"]: panel for panel in json.loads(DASHBOARD.read_text())["panels"]}
    first = [panel for panel in panels.values() if panel["gridPos"]["y"] in (1, 6)]
    below = [panel for panel in first if panel["type"] == "timeseries"]
    below += [panels[title] for title in MORE]
    rows = math.ceil(len(below) / 3)
    canvas = Canvas(WIDTH, STAT_HEIGHT + rows * (PANEL_HEIGHT + GAP) + 2 * GAP)
    column = (WIDTH - GAP) / 24
    for panel in first:
        if panel["type"] == "stat":
            place = panel["gridPos"]
            where = (GAP + place["x"] * column, GAP, place["w"] * column - GAP)
            figure(canvas, where, panel, ask(url, panel, span, rate))
    for index, panel in enumerate(below):
        y = 2 * GAP + STAT_HEIGHT + index // 3 * (PANEL_HEIGHT + GAP)
        place = (GAP + index % 3 * 8 * column, y, 8 * column - GAP)
        lines(canvas, place, panel, ask(url, panel, span, rate), span)
    canvas.save(out)


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:9090", help="of the Prometheus")
    parser.add_argument("--minutes", type=float, default=10, help="how far to look back")
    parser.add_argument("--end", type=float, help="seconds since 1970; now when not given")
    parser.add_argument("--rate", default="20s", help="what Grafana calls $__rate_interval")
    parser.add_argument("--out", type=Path, required=True)
    told = parser.parse_args()
    end = math.floor(told.end or time.time())
    seconds = round(60 * told.minutes)
    step = max(1, round(seconds / POINTS))
    draw(told.url, Span(end - seconds // step * step, end, step), told.rate, told.out)


if __name__ == "__main__":
    main()
