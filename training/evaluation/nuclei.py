"""Nuclei as shapes: how many, how large, how round and how far apart; real against synthetic.

Nuclei are the connected components of a mask (8 neighbours), measured by scikit-image. In a mask
of one value nuclei that touch are one component, in real and synthetic masks alike. Nothing is
filtered: specks that a decoder leaves are counted, because a user would train on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.spatial import KDTree  # type: ignore[import-untyped]
from skimage.measure import label as components
from skimage.measure import regionprops_table
from torch import Tensor

from training.evaluation.metric import Metric
from training.run import StageError

STATISTICS = {
    "count": "nuclei a patch",
    "area": "area, pixels",
    "eccentricity": "eccentricity",
    "spacing": "spacing, pixels",
}
FLOOR_DRAWS = 20
"""Random sets of training patches that a floor is the mean of."""

PANEL = (300, 150)
MARGIN = 14
LINE = 18
BINS = 24
LAST = 0.99
"""Share of the values that a histogram's axis reaches."""
SUPERSAMPLE = 2
REAL, DRAWN = "#bbbbbb", "#d55e00"

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Shapes:
    """The n nuclei of one patch: `area` [n] in pixels, `eccentricity` [n] from 0 (a circle) to 1,
    `spacing` [n] in pixels from a centroid to the nearest other, [0] for fewer than two nuclei."""

    area: Values
    eccentricity: Values
    spacing: Values

    @property
    def count(self) -> Values:
        """How many there are, [1]."""
        return np.array([len(self.area)], float)


def measure(masks: Tensor) -> list[Shapes]:
    """The nuclei of masks bool [M, H, W], patch by patch."""
    return [_shapes(mask.numpy()) for mask in masks]


def _shapes(mask: NDArray[np.bool_]) -> Shapes:
    regions = components(mask, connectivity=2)  # type: ignore[no-untyped-call]
    wanted = ("area", "eccentricity", "centroid")
    table = regionprops_table(regions, properties=wanted)  # type: ignore[no-untyped-call]
    centroids = np.stack([table["centroid-0"], table["centroid-1"]], 1)
    spacing = np.zeros(0)
    if len(centroids) > 1:
        spacing = KDTree(centroids).query(centroids, k=2)[0][:, 1]
    return Shapes(table["area"].astype(float), table["eccentricity"].astype(float), spacing)


def pooled(patches: Sequence[Shapes], statistic: str) -> Values:
    """All values of one of STATISTICS over patches."""
    return np.concatenate([np.zeros(0), *(getattr(patch, statistic) for patch in patches)])


def distance(ours: Values, theirs: Values, unit: Values) -> float:
    """Wasserstein-1 distance of two sets of values, in standard deviations of `unit`.

    NaN where a set is empty or `unit` does not vary.
    """
    deviation = float(unit.std()) if len(unit) else 0.0
    if not len(ours) or not len(theirs) or not deviation:
        return math.nan
    # Takes a second.
    from scipy.stats import wasserstein_distance  # type: ignore[import-untyped]

    return float(wasserstein_distance(ours, theirs)) / deviation


def nuclei_metrics(
    drawn: Sequence[Shapes], real: Sequence[Shapes], training: Sequence[Shapes], label: str
) -> list[Metric]:
    """Means of the statistics, and distances between their distributions, of one label.

    `nuclei_<statistic>` is the mean over samples; its floor is the mean over `real` (validation).
    `nuclei_<statistic>_distance` is the Wasserstein distance of samples to `real` in standard
    deviations of `real`; its floor is that of as many training patches, the mean of 20 random sets.
    StageError where one of the three holds no patch.
    """
    for name, held in (("samples", drawn), ("real", real), ("training", training)):
        if not held:
            raise StageError(f"nuclei, {label}: {name}: got 0 patches, expected at least 1")
    sets = _random_sets(training, len(drawn))
    metrics = []
    for statistic in STATISTICS:
        ours, theirs = pooled(drawn, statistic), pooled(real, statistic)
        name = f"nuclei_{statistic}"
        metrics.append(Metric(name, _mean(ours), _mean(theirs), "", len(drawn), label))
        value = distance(ours, theirs, theirs)
        floor = _mean([distance(pooled(held, statistic), theirs, theirs) for held in sets])
        metrics.append(Metric(f"{name}_distance", value, floor, "", len(drawn), label))
    return metrics


def _random_sets(training: Sequence[Shapes], size: int) -> list[list[Shapes]]:
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(training), generator=generator) for _ in range(FLOOR_DRAWS)]
    return [[training[i] for i in order[:size].tolist()] for order in orders]


def _mean(values: Values | Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def histograms(
    drawn: Mapping[str, Sequence[Shapes]], real: Mapping[str, Sequence[Shapes]]
) -> Image.Image:
    """A row a label, a panel a statistic: real patches filled in grey, samples as a line."""
    width, height = (PANEL[0] + MARGIN) * len(STATISTICS), PANEL[1] + 3 * LINE
    scale = SUPERSAMPLE
    size = (width + MARGIN, height * len(drawn) + LINE)
    picture = Image.new("RGB", (size[0] * scale, size[1] * scale), "white")
    canvas = ImageDraw.Draw(picture)
    legend = "grey: real validation patches, line: samples; share of all values, last bin open"
    _write(canvas, (MARGIN, 0), legend)
    for row, label in enumerate(drawn):
        for column, statistic in enumerate(STATISTICS):
            x, y = MARGIN + column * (PANEL[0] + MARGIN), LINE + row * height
            _write(canvas, (x, y), f"{label}: {STATISTICS[statistic]}")
            pair = pooled(real[label], statistic), pooled(drawn[label], statistic)
            _panel(canvas, (x, y + LINE), *pair)
    return picture.reduce(scale)


def _panel(
    canvas: ImageDraw.ImageDraw, corner: tuple[int, int], real: Values, drawn: Values
) -> None:
    """One pair of histograms on one axis, its lower left corner PANEL below `corner`."""
    both = np.concatenate([real, drawn])
    if not len(both):
        return
    edges = _edges(both)
    shares = [_shares(values, edges) for values in (real, drawn)]
    top = max(share.max() for share in shares)
    (x, y), (width, height), scale = corner, PANEL, SUPERSAMPLE
    places = [(x + width * i / (len(edges) - 1)) * scale for i in range(len(edges))]
    grey, line = ([(y + height * (1 - s / top)) * scale for s in share] for share in shares)
    foot = (y + height) * scale
    for i, level in enumerate(grey):
        canvas.rectangle((places[i], level, places[i + 1], foot), fill=REAL)
    steps = [(places[i + k], level) for i, level in enumerate(line) for k in (0, 1)]
    canvas.line(steps, fill=DRAWN, width=2 * scale)
    canvas.line((places[0], foot, places[-1], foot), fill="black", width=scale)
    _write(canvas, (x, y + height), f"{edges[0]:.3g}")
    _write(canvas, (x + width, y + height), f"{edges[-1]:.3g}", anchor="ra")


def _edges(values: Values) -> Values:
    """Edges of up to BINS bins, from the least value to nearly the largest; of a whole width for
    whole numbers, so that each bin holds as many of them."""
    low, high = float(values.min()), float(np.quantile(values, LAST))
    if np.array_equal(values, values.round()):
        step = math.ceil((math.ceil(high) - low + 1) / BINS)
        return np.arange(low, math.ceil(high) + 1 + step, step)
    return np.linspace(low, high if high > low else low + 1, BINS + 1)


def _shares(values: Values, edges: Values) -> Values:
    """Share of the values in each bin; what lies beyond the last edge is in the last bin."""
    counts = np.histogram(values.clip(edges[0], edges[-1]), edges)[0]
    return np.asarray(counts / max(1, len(values)), float)


def _write(
    canvas: ImageDraw.ImageDraw, place: tuple[int, int], words: str, anchor: str = "la"
) -> None:
    font = ImageFont.load_default(13 * SUPERSAMPLE)
    x, y = (part * SUPERSAMPLE for part in place)
    canvas.text((x, y), words, fill="black", font=font, anchor=anchor)
