"""How far samples are from real patches in a feature space, and from each other.

FID is that of Heusel et al. 2017 and KID that of Binkowski et al. 2018, with the values of
torchmetrics; precision and recall are those of Kynkaanniemi et al. 2019, density and coverage of
Naeem et al. 2020. At the few real patches that a validation split has, FID is biased far upward,
so a figure means little alone: each carries its floor, the same figure for as many real patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

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


def frechet_distance(inputs: Tensor, real: Tensor) -> float:
    """FID of features [M, D] against [R, D]."""
    # Neither set varies outside the space that both span, and with fewer patches than features
    # that is far smaller; turning the axes into it changes no distance.
    axes = torch.linalg.qr(torch.cat([inputs, real]).double().T).Q
    (mean, spread), (other_mean, other_spread) = (
        _moments(x.double() @ axes) for x in (inputs, real)
    )
    root = torch.linalg.eigvals(spread @ other_spread).sqrt().real.sum()
    apart = (mean - other_mean).square().sum()
    return float(apart + spread.trace() + other_spread.trace() - 2 * root)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] of [M, D]."""
    mean = features.mean(0)
    apart = features - mean
    return mean, apart.T @ apart / (len(features) - 1)


def kernel_distance(inputs: Tensor, real: Tensor) -> tuple[float, float]:
    """KID (cubic kernel, unbiased, not scaled) of [M, D] against [R, D], and its deviation.

    The mean over random subsets of half the smaller set. Halves drawn without replacement vary as
    the whole set's figure would over new sets of its size (the delete-half jackknife), so their
    deviation is the figure's standard error. Near zero, and for the larger of two sets, it errs
    to the wide side.
    """
    sets, size = (inputs.double(), real.double()), min(len(inputs), len(real)) // 2
    halves = [torch.zeros(SUBSETS, len(each)).to(each) for each in sets]
    generator = torch.Generator().manual_seed(0)
    for row in range(SUBSETS):
        for half in reversed(halves):
            half[row, torch.randperm(half.shape[1], generator=generator)[:size]] = 1

    def sums(one: int, other: int) -> Tensor:
        """Of the kernel of two halves, without what a patch has with itself: [SUBSETS]."""
        kernel = (sets[one] @ sets[other].T / real.shape[1] + 1) ** 3
        if one == other:
            kernel.fill_diagonal_(0)
        return ((halves[one] @ kernel) * halves[other]).sum(1)

    found = (sums(0, 0) + sums(1, 1)) / (size * (size - 1)) - 2 * sums(0, 1) / size**2
    return float(found.mean()), float(found.std(correction=0))


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
