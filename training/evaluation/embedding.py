"""Where patches lie: a t-SNE picture of features, and distances between labels' tokens.

The picture is the paper's Fig. 7 (a-d), the distances are its Table IX.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from model.tokenizer import Codebook, Tokenizer
from training.evaluation.metric import Metric
from training.evaluation.pair_tensors import Pairs
from training.run import StageError

SIDE = 720
MARGIN = 24
LINE = 22
DOT = 5
PERPLEXITY = 30.0
SUPERSAMPLE = 2
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's (2008)."""


def project(features: Tensor) -> Tensor:
    """Features [M, D] on a plane by t-SNE: [M, 2] in 0..1. The same features, the same places."""
    if len(features) < 4:
        raise StageError(f"t-SNE: got {len(features)} patches, expected 4 or more")
    # Takes a second.
    from sklearn.manifold import TSNE  # type: ignore[import-untyped]

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features.numpy())
    low, high = places.min(0), places.max(0)
    return torch.from_numpy((places - low) / np.maximum(high - low, 1e-12)).float()


def tsne_picture(
    real: Mapping[str, Tensor], generated: Mapping[str, Tensor], features: str
) -> Image.Image:
    """Real patches as discs and samples as crosses, one colour a label, by features [M, D]."""
    groups = [*real.items(), *generated.items()]
    places = project(torch.cat([held for _, held in groups]))
    labels = sorted({*real, *generated})
    colours = dict(zip(labels, palette(len(labels)), strict=True))
    legend = MARGIN + LINE * (len(labels) + 2)
    scale = SUPERSAMPLE
    picture = Image.new("RGB", (SIDE * scale, (SIDE + legend) * scale), "white")
    canvas = ImageDraw.Draw(picture)
    start = 0
    for number, (label, held) in enumerate(groups):
        for x, y in places[start : start + len(held)].tolist():
            spread = SIDE - 2 * MARGIN
            centre = (MARGIN + spread * x) * scale, (MARGIN + spread * y) * scale
            _mark(canvas, centre, colours[label], drawn=number >= len(real))
        start += len(held)
    font = ImageFont.load_default(15 * scale)
    lines = [f"t-SNE, {features} features", "disc: real patch, cross: sample", *labels]
    for number, line in enumerate(lines):
        top = (SIDE + LINE * number) * scale
        colour = colours.get(line, "black")
        canvas.text((MARGIN * scale, top), line, fill=colour, font=font)
    return picture.reduce(scale)


def palette(count: int) -> list[str]:
    """As many colours, told apart by colour-blind people too while there are eight or fewer."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return [f"hsl({360 * i / count}, 80%, 40%)" for i in range(count)]


def _mark(
    canvas: ImageDraw.ImageDraw, centre: tuple[float, float], colour: str, *, drawn: bool
) -> None:
    x, y = centre
    reach = DOT * SUPERSAMPLE
    if not drawn:
        canvas.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour, outline="white")
        return
    for slant in (-reach, reach):
        line = (x - reach, y - slant, x + reach, y + slant)
        canvas.line(line, fill=colour, width=2 * SUPERSAMPLE)


def centroid_distances(pairs: Mapping[str, Pairs], tokenizer: Tokenizer) -> list[Metric]:
    """Table IX: Euclidean distances between the labels' centroids in both token spaces.

    A centroid is the mean embedding over all locations and patches of a label. Each pair of labels
    gives `structure_centroid_distance` and `appearance_centroid_distance`, then "all" their mean
    and, as `..._deviation`, their standard deviation over pairs. Entries are unit vectors here, so
    the ratio of the streams compares with the paper's, the distances themselves do not.
    """
    metrics = []
    for stream in ("structure", "appearance"):
        codebook: Codebook = getattr(tokenizer, f"{stream}_codebook")
        centroids = {
            label: centroid(codebook, getattr(held, stream)) for label, held in pairs.items()
        }
        found = {
            (a, b): float(torch.dist(centroids[a], centroids[b]))
            for a, b in itertools.combinations(pairs, 2)
        }
        if not found:
            continue
        name, total = f"{stream}_centroid_distance", sum(map(len, pairs.values()))
        metrics += [
            Metric(name, value, None, "", len(pairs[a]) + len(pairs[b]), f"{a} - {b}")
            for (a, b), value in found.items()
        ]
        values = list(found.values())
        metrics.append(Metric(name, float(np.mean(values)), None, "", total, "all"))
        spread = float(np.std(values))
        metrics.append(Metric(f"{name}_deviation", spread, None, "", total, "all"))
    return metrics


@torch.no_grad()
def centroid(codebook: Codebook, ids: Tensor) -> Tensor:
    """Mean embedding [dim] of token ids [M, N]."""
    embeddings = codebook.look_up(ids[:, None].to(codebook.entries.device)).cpu()
    return embeddings.mean((0, 2, 3))
