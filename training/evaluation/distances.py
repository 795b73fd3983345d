"""How far samples are from real patches in a feature space, and from each other.

FID (Heusel et al. 2017) and KID (Binkowski et al. 2018) come from torchmetrics; precision and
recall are those of Kynkaanniemi et al. 2019, density and coverage of Naeem et al. 2020. At the
few real patches that a validation split has, FID is biased far upward, so a figure means little
alone: each carries its floor, the same figure for as many real patches.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from training.evaluation.metric import Metric
from training.evaluation.pair_tensors import Pairs
from training.losses import Lpips
from training.run import StageError

FEWEST = 8
"""Patches a set that any figure here can be taken on."""
SUBSETS = 200
NORMAL = 1.96
"""Deviations to either side that hold 95% of a normal distribution."""
MANIFOLD_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
"""Neighbours that a real patch's reach is measured by: precision and recall, density and coverage,
each as published."""
BATCH = 16


class DistanceError(StageError):
    """Too few patches to take a figure on; the sentence says of what."""


def distribution_metrics(
    generated: Tensor, real: Tensor, floor: Tensor, features: str, label: str
) -> list[Metric]:
    """FID, KID, precision, recall, density and coverage of samples against real patches.

    All are features [M, D] of one network, named `features`. `floor` holds other real patches
    than `real`: what they score against it is the floor. Samples and `floor` are cut to the same
    number, so that figures biased by it compare. DistanceError when a set has under 8.
    """
    count = min(len(generated), len(floor))
    for name, held in (("samples and floor", count), ("real", len(real))):
        if held < FEWEST:
            raise DistanceError(f"{label}: {name}: got {held} patches, expected {FEWEST} or more")
    drawn, best = _figures(generated[:count], real), _figures(floor[:count], real)
    return [
        Metric(name, value, best[name][0], features, count, label, interval)
        for name, (value, interval) in drawn.items()
    ]


def _figures(inputs: Tensor, real: Tensor) -> dict[str, tuple[float, tuple[float, float] | None]]:
    kernel, deviation = kernel_distance(inputs, real)
    interval = (kernel - NORMAL * deviation, kernel + NORMAL * deviation)
    shares = {name: (share, None) for name, share in neighbourhoods(inputs, real).items()}
    return {"fid": (frechet_distance(inputs, real), None), "kid": (kernel, interval), **shares}


class _Given(nn.Module):
    """Stands where torchmetrics expects a network: features pass through."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


def frechet_distance(inputs: Tensor, real: Tensor) -> float:
    """FID of features [M, D] against [R, D]."""
    # Here, as torchmetrics loads for seconds.
    from torchmetrics.image.fid import FrechetInceptionDistance

    # Neither set varies outside the space that both span, and with fewer patches than features
    # that is far smaller; turning the axes into it changes no distance.
    axes = torch.linalg.qr(torch.cat([inputs, real]).double().T).Q
    metric = FrechetInceptionDistance(_Given(axes.shape[1]))
    metric.update(real.double() @ axes, real=True)
    metric.update(inputs.double() @ axes, real=False)
    return float(metric.compute())


def kernel_distance(inputs: Tensor, real: Tensor) -> tuple[float, float]:
    """KID (cubic kernel, unbiased, not scaled) of [M, D] against [R, D], and its deviation.

    The mean over random subsets of half the smaller set. Halves drawn without replacement vary as
    the whole set's figure would over new sets of its size (the delete-half jackknife), so their
    deviation is the figure's standard error. Near zero, and for the larger of two sets, it errs
    to the wide side.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance`")
        torch.manual_seed(0)
        size = min(len(inputs), len(real)) // 2
        metric = KernelInceptionDistance(_Given(real.shape[1]), SUBSETS, size)
        metric.update(real.double(), real=True)
        metric.update(inputs.double(), real=False)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def neighbourhoods(inputs: Tensor, real: Tensor) -> dict[str, float]:
    """Precision, recall, density and coverage of features [M, D] against [R, D]."""
    apart = _distances(real, inputs)
    near_real = apart < _reach(real, MANIFOLD_NEIGHBOURS)[:, None]
    near_input = apart < _reach(inputs, MANIFOLD_NEIGHBOURS)[None]
    dense = apart < _reach(real, DENSITY_NEIGHBOURS)[:, None]
    shares = {
        "precision": near_real.any(0),
        "recall": near_input.any(1),
        "density": dense.double().sum(0) / DENSITY_NEIGHBOURS,
        "coverage": dense.any(1),
    }
    return {name: float(share.double().mean()) for name, share in shares.items()}


def _distances(one: Tensor, other: Tensor) -> Tensor:
    """Between features [R, D] and [M, D]: [R, M]. Through a matrix product, neighbours of one place
    would come out apart."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(one.double(), other.double(), compute_mode=exact)


def _reach(features: Tensor, neighbours: int) -> Tensor:
    """The distance from each of [R, D] to its so-many-th neighbour: [R]."""
    return _distances(features, features).kthvalue(neighbours + 1, dim=1).values


def diversity(generated: Pairs, real: Pairs, network: Lpips, label: str) -> Metric:
    """LPIPS diversity (the paper's Table V): the mean distance between two samples of a label.

    The floor is that of real patches of the label. Both are over all pairs.
    """
    drawn, best = mean_distance(generated, network), mean_distance(real, network)
    return Metric("lpips_diversity", drawn, best, "AlexNet", len(generated), label)


@torch.no_grad()
def mean_distance(pairs: Pairs, network: Lpips) -> float:
    """Mean LPIPS over all pairs of M images, in one pass.

    LPIPS is a weighted squared distance between feature maps, so its mean over pairs is
    2 M / (M - 1) times the maps' mean squared distance to their mean.
    """
    count = len(pairs)
    if count < 2:
        raise DistanceError(f"lpips_diversity: got {count} patches, expected 2 or more")
    heads = [getattr(network, f"head{number}") for number in range(5)]
    squares, sums = 0.0, [torch.zeros((), device=network.shift.device) for _ in heads]
    for start in range(0, count, BATCH):
        pixels = pairs[start : start + BATCH].pixels()
        maps = network.features(pixels.to(network.shift.device))
        for number, (found, head) in enumerate(zip(maps, heads, strict=True)):
            squares += float((found.square() * head).sum(1).mean((1, 2)).sum())
            sums[number] = sums[number] + found.sum(0)
    of_mean = sum(
        float(((total / count).square() * head[0]).sum(0).mean())
        for total, head in zip(sums, heads, strict=True)
    )
    return 2 * (squares - count * of_mean) / (count - 1)
