"""Do synthetic pairs train a segmenter? Dice on real validation patches (paper, Tables III and IV).

Five groups of training pairs for each label: I 30 real, II 100 synthetic, III 30 real + 100
synthetic, IV 30 + 200, V 30 + 400; and a ceiling, all real training patches. Every group trains
the same network (MONAI's residual U-Net, or another) for the same number of updates, once for
each seed, and each seed draws its own 30 real patches. Where a group mixes both kinds, half of
every batch is real: drawn by their numbers, 30 real pairs would be 7% of what group V learns from.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.evaluation.metric import Metric
from training.evaluation.pairs import Pairs, joined
from training.segmenter import agreement, fit

REAL = 30
CEILING = "all real"
GROUPS: dict[str, tuple[int | None, int]] = {
    "I": (REAL, 0),
    "II": (0, 100),
    "III": (REAL, 100),
    "IV": (REAL, 200),
    "V": (REAL, 400),
    CEILING: (None, 0),
}
"""Real (none: all there are) and synthetic pairs of each group."""


@dataclass(frozen=True)
class Network:
    """What groups train, by the name that reports give it. `score(pairs, weights, validation,
    steps, seed)` trains on pairs drawn by `weights` [N] and returns Dice [M] on M validation
    patches."""

    name: str
    score: Callable[[Pairs, Tensor, Pairs, int, int], Tensor]


def _unet(pairs: Pairs, weights: Tensor, validation: Pairs, steps: int, seed: int) -> Tensor:
    segmenter = fit(pairs.images, pairs.masks, steps=steps, seed=seed, weights=weights)
    return agreement(segmenter, validation.pixels(), validation.masks)


MONAI = Network("MONAI UNet", _unet)


@dataclass(frozen=True)
class GroupScore:
    """Mean Dice on the validation patches, one value a seed."""

    group: str
    label: str
    dice: tuple[float, ...]
    validation: int
    network: str = MONAI.name

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.mean(self.dice)

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds; 0 for one seed."""
        return statistics.stdev(self.dice) if len(self.dice) > 1 else 0.0

    def metric(self) -> Metric:
        """As the report holds it; the interval is two standard errors each way."""
        half = 2 * self.deviation / len(self.dice) ** 0.5
        return Metric(
            f"segmenter Dice, group {self.group}",
            self.mean,
            None,
            self.network,
            self.validation,
            self.label,
            (self.mean - half, self.mean + half),
        )


def group_scores(
    label: str,
    training: Pairs,
    synthetic: Pairs,
    validation: Pairs,
    *,
    groups: dict[str, tuple[int | None, int]] = GROUPS,
    steps: int,
    seeds: int,
    network: Network = MONAI,
) -> list[GroupScore]:
    """Dice of every group; ValueError when a group asks for more pairs than there are.

    A label with fewer than 30 real training patches uses all of them in groups I and III to V.
    """
    scores = []
    for name, (real, drawn) in groups.items():
        if drawn > len(synthetic):
            raise ValueError(f"group {name}: {len(synthetic)} synthetic pairs, needs {drawn}")
        dice = []
        for seed in range(seeds):
            pairs, weights = _drawn(training, synthetic, real, drawn, seed)
            dice.append(float(network.score(pairs, weights, validation, steps, seed).mean()))
        scores.append(GroupScore(name, label, tuple(dice), len(validation), network.name))
        print(f"segmentation: {label} group {name} Dice {scores[-1].mean:.3f}", flush=True)
    return scores


def verdict(scores: list[GroupScore]) -> str:
    """One sentence a label: whether group V beats group I by more than the noise of the seeds."""
    by_group = {score.group: score for score in scores}
    real, both = by_group["I"], by_group["V"]
    gain = both.mean - real.mean
    noise = 2 * ((real.deviation**2 + both.deviation**2) / len(real.dice)) ** 0.5
    helped = "help" if gain > noise else "do not help beyond noise"
    ceiling = by_group.get(CEILING)
    all_real = f"; all real training patches {ceiling.mean:.3f}" if ceiling else ""
    return (
        f"{real.label}: synthetic pairs {helped}: 30 real {real.mean:.3f}, 30 real + 400 "
        f"synthetic {both.mean:.3f}, gain {gain:+.3f}, noise {noise:.3f} "
        f"(two standard errors, {len(real.dice)} seeds){all_real}"
    )


def _drawn(
    training: Pairs, synthetic: Pairs, real: int | None, drawn: int, seed: int
) -> tuple[Pairs, Tensor]:
    """A group's pairs, and the weights [N] that they are drawn by."""
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))
    parts = [part for part in (training[order[:real]], synthetic[:drawn]) if len(part)]
    weights = torch.cat([torch.full((len(part),), 1 / len(part)) for part in parts])
    return joined(parts), weights
