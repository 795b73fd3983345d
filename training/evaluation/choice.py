"""The points of a sweep, and which of them is best: `RULE` states how, in words for the page.

Knows no tensors and no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from model.request import SamplingSettings
from training.evaluation.metric import Metric

NORMAL = 1.96
"""Deviations to either side that hold 95% of a normal distribution."""
BOUNDS = {"nuclei_ratio": (2 / 3, 3 / 2), "area_ratio": (3 / 4, 4 / 3)}
"""What a ratio to real patches may be. Validation patches alone have 0.64 to 1.04 of the nuclei of
all, and 0.83 to 1.19 of their area (seven labels, some of few groups). The halving of nuclei that a
low temperature makes is outside."""
ALL = "all"
"""The label of means over labels."""

RULE = (
    "The rule is applied to each label by itself. The same rule, applied to the means over all "
    "measured labels, gives the default of the other labels.\n\n"
    "1. Nuclei: a point is excluded if its samples have under 2/3 or over 3/2 of the nuclei of a "
    "real patch, or if the mean area of a nucleus is under 3/4 or over 4/3 of that in real patches "
    "(training and validation together). Too low a temperature can halve the nuclei while KID and "
    "Dice stay within noise. If no point passes, the one nearest to real nuclei is chosen: the one "
    "whose farther ratio of the two leaves its bounds the least.\n"
    "2. Dice: of the rest, a point is excluded if its pair agreement is below the best by more "
    "than noise (1.96 standard errors of the difference). The best counts as no better than real "
    "pairs, because samples need not be easier to segment than real patches.\n"
    "3. KID: of the rest, the point with the lowest on the first network is chosen. FID is not "
    "used, because with so few real patches it is mostly bias. A sum of ranks is not used, because "
    "ranks count a difference within noise as much as one far outside, and change with points "
    "that nobody would choose."
)


@dataclass(frozen=True)
class Point:
    """A finished point; `metrics` by label, and under the label "all" their means."""

    settings: SamplingSettings
    metrics: list[Metric]

    def of(self, label: str) -> dict[tuple[str, str], Metric]:
        """The label's figures by name and network."""
        return {(m.name, m.features): m for m in self.metrics if m.label == label}


def with_means(metrics: Sequence[Metric]) -> list[Metric]:
    """The same and, as label "all", means over labels of every figure, with their intervals. What
    is not a number, such as the Dice of samples without nuclei, is left out of a mean."""
    groups: dict[tuple[str, str], list[Metric]] = {}
    for metric in metrics:
        groups.setdefault((metric.name, metric.features), []).append(metric)
    return [*metrics, *(_mean(held) for held in groups.values())]


def _mean(held: list[Metric]) -> Metric:
    first = held[0]
    held = [metric for metric in held if math.isfinite(metric.value)]
    if not held:
        return Metric(first.name, math.nan, None, first.features, 0, ALL)
    value = sum(metric.value for metric in held) / len(held)
    floors = [metric.floor for metric in held if metric.floor is not None]
    floor = sum(floors) / len(floors) if len(floors) == len(held) else None
    noise = NORMAL * error(held)
    interval = (value - noise, value + noise) if any(m.interval for m in held) else None
    total = sum(metric.n for metric in held)
    return Metric(first.name, value, floor, first.features, total, ALL, interval)


def error(held: Sequence[Metric]) -> float:
    """The standard error of the mean of independent figures, from their 95% intervals."""
    widths = [metric.interval[1] - metric.interval[0] for metric in held if metric.interval]
    return math.hypot(*widths) / (2 * NORMAL * len(held))


@dataclass(frozen=True)
class PointScores:
    """A point of one label as the rule sees it: `kid` and `dice`, each with its standard error,
    and nuclei a sample and their mean area, each over that of real patches."""

    kid: float
    kid_error: float
    dice: float
    dice_error: float
    nuclei: float
    area: float

    @property
    def departure(self) -> float:
        """How far nuclei are from real, as a share of the way to the bound; over 1 is outside."""
        return max(_departure("nuclei_ratio", self.nuclei), _departure("area_ratio", self.area))


def scores(point: Point, network: str, label: str) -> PointScores:
    """The point as the rule sees it, by KID on `network`."""
    found = point.of(label)
    kid, dice = found["kid", network], found["pair_agreement", ""]
    # Samples without nuclei agree in nothing.
    agreement = dice.value if math.isfinite(dice.value) else 0.0
    ratios = found["nuclei_ratio", ""].value, found["area_ratio", ""].value
    return PointScores(kid.value, error([kid]), agreement, error([dice]), *ratios)


@dataclass(frozen=True)
class Choice:
    """The place of the best point; what is said of each point (nothing of one that KID alone
    sets behind); and the places of those that KID cannot tell from the best."""

    best: int
    verdicts: tuple[str, ...]
    alike: tuple[int, ...]


def choose_of(points: Sequence[Point], network: str, label: str) -> Choice:
    """Apply `RULE` to a label's figures, or to the means under the label "all"."""
    real = points[0].of(label)["pair_agreement", ""].floor
    return choose(
        [scores(point, network, label) for point in points], math.inf if real is None else real
    )


def choose(points: Sequence[PointScores], real_dice: float) -> Choice:
    """Apply `RULE` to at least one point; `real_dice` is the agreement of real pairs."""
    verdicts = [_nuclei_verdict(point) for point in points]
    sane = [place for place, verdict in enumerate(verdicts) if not verdict]
    if not sane:
        best = min(range(len(points)), key=lambda place: points[place].departure)
        verdicts[best] = f"chosen, the nearest to real nuclei; {verdicts[best]}"
        return Choice(best, tuple(verdicts), ())
    top = max((points[place] for place in sane), key=lambda point: point.dice)
    wanted = min(top.dice, real_dice)
    agreeing = []
    for place in sane:
        noise = NORMAL * math.hypot(points[place].dice_error, top.dice_error)
        if points[place].dice + noise >= wanted:
            agreeing.append(place)
        else:
            verdicts[place] = f"out: Dice under {wanted:.3f}"
    best = min(agreeing, key=lambda place: points[place].kid)
    verdicts[best] = "chosen"
    alike = [place for place in agreeing if place != best and _alike(points[place], points[best])]
    return Choice(best, tuple(verdicts), tuple(alike))


def _departure(name: str, ratio: float) -> float:
    # The bounds are as far below 1 as above.
    return abs(math.log(ratio)) / math.log(BOUNDS[name][1]) if ratio > 0 else math.inf


def _nuclei_verdict(point: PointScores) -> str:
    if point.departure <= 1:
        return ""
    if _departure("nuclei_ratio", point.nuclei) == point.departure:
        return f"out: {point.nuclei:.2f} of real nuclei"
    return f"out: {point.area:.2f} of their real area"


def _alike(one: PointScores, other: PointScores) -> bool:
    return abs(one.kid - other.kid) <= NORMAL * math.hypot(one.kid_error, other.kid_error)
