"""The points of a sweep, and which of them is best: `RULE` states how, in words for the page.

Knows no tensors and no files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.request import SamplingSettings
from training.evaluation.metric import Metric

NORMAL = 1.96
"""Deviations to either side that hold 95% of a normal distribution."""
FEWEST_NUCLEI, MOST_NUCLEI = 2 / 3, 3 / 2
"""Wider than training and validation patches differ where groups are few (0.79 has been seen),
narrower than the halving that it is to find."""
ALL = "all"
"""The label of means over labels."""

RULE = (
    "1. Nuclei: a point is excluded if a label has under 2/3 or over 3/2 of the nuclei per patch "
    "of the label's real patches (training and validation together). Too low a temperature can "
    "halve the nuclei while KID and Dice stay within noise. If no point passes, the one nearest "
    "to real nuclei is chosen.\n"
    "2. Dice: of the rest, a point is excluded if its pair agreement (the mean over labels) is "
    "below the best by more than noise (1.96 standard errors of the difference). The best counts "
    "as no better than real pairs, because samples need not be easier to segment than real "
    "patches.\n"
    "3. KID: of the rest, the point with the lowest mean over labels on the first network is "
    "chosen. FID is not used, because with so few real patches it is mostly bias. A sum of ranks "
    "is not used, because ranks count a difference within noise as much as one far outside, and "
    "change with points that nobody would choose."
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
    """The same and, as label "all", means over labels of every figure, with their intervals."""
    groups: dict[tuple[str, str], list[Metric]] = {}
    for metric in metrics:
        groups.setdefault((metric.name, metric.features), []).append(metric)
    return [*metrics, *(_mean(held) for held in groups.values())]


def _mean(held: list[Metric]) -> Metric:
    first, value = held[0], sum(metric.value for metric in held) / len(held)
    floors = [metric.floor for metric in held if metric.floor is not None]
    floor = sum(floors) / len(floors) if len(floors) == len(held) else None
    noise = NORMAL * error(held)
    interval = (value - noise, value + noise) if first.interval else None
    total = sum(metric.n for metric in held)
    return Metric(first.name, value, floor, first.features, total, ALL, interval)


def error(held: Sequence[Metric]) -> float:
    """The standard error of the mean of independent figures, from their 95% intervals."""
    widths = [metric.interval[1] - metric.interval[0] for metric in held if metric.interval]
    return math.hypot(*widths) / (2 * NORMAL * len(held))


@dataclass(frozen=True)
class Scores:
    """A point as the rule sees it.

    `kid` and `dice` are means over labels, each with its standard error; `nuclei` maps a label to
    its nuclei a sample over those of real patches.
    """

    kid: float
    kid_error: float
    dice: float
    dice_error: float
    nuclei: Mapping[str, float]

    @property
    def farthest(self) -> str:
        """The label whose number of nuclei is farthest from real, as a ratio."""
        return max(self.nuclei, key=lambda label: _departure(self.nuclei[label]))


def scores(point: Point, network: str, labels: Sequence[str]) -> Scores:
    """The point as the rule sees it, by KID on `network`."""
    means = point.of(ALL)
    kid, dice = means["kid", network], means["pair_agreement", ""]
    ratios = {label: point.of(label)["nuclei_ratio", ""].value for label in labels}
    return Scores(kid.value, error([kid]), dice.value, error([dice]), ratios)


@dataclass(frozen=True)
class Choice:
    """The place of the best point; what is said of each point (nothing of one that KID alone
    sets behind); and the places of those that KID cannot tell from the best."""

    best: int
    verdicts: tuple[str, ...]
    alike: tuple[int, ...]


def choose(points: Sequence[Scores], real_dice: float) -> Choice:
    """Apply `RULE` to at least one point; `real_dice` is the agreement of real pairs."""
    verdicts = [_nuclei_verdict(point) for point in points]
    sane = [place for place, verdict in enumerate(verdicts) if not verdict]
    if not sane:
        best = min(
            range(len(points)),
            key=lambda place: _departure(points[place].nuclei[points[place].farthest]),
        )
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


def _departure(ratio: float) -> float:
    return abs(math.log(ratio)) if ratio > 0 else math.inf


def _nuclei_verdict(point: Scores) -> str:
    label = point.farthest
    ratio = point.nuclei[label]
    if FEWEST_NUCLEI <= ratio <= MOST_NUCLEI:
        return ""
    return f"out: {ratio:.2f} of real nuclei in {label}"


def _alike(one: Scores, other: Scores) -> bool:
    return abs(one.kid - other.kid) <= NORMAL * math.hypot(one.kid_error, other.kid_error)
