"""Do synthetic pairs train a segmenter? Dice on real validation patches (paper, Tables III and IV).

Five groups of training pairs for each label: I 30 real, II 100 synthetic, III 30 real + 100
synthetic, IV 30 + 200, V 30 + 400. Every group trains the same network (MONAI's residual U-Net, or
another) for the same number of updates, once for each seed, and each seed draws its own 30 real
patches. Where a group mixes both kinds, half of every batch is real: drawn by their numbers, 30
real pairs would be 7% of what group V learns from.

Three more say what could be improved. `V by numbers` draws batches by numbers after all. `V best`
takes, of half as many pairs again, the 400 whose image and mask agree best. `all real` trains on
every real training patch: it shows how much there is to gain.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.evaluation.metric import Metric
from training.evaluation.pair_tensors import Pairs, joined
from training.segmenter import agreement, fit

REAL = 30
CEILING = "all real"


@dataclass(frozen=True)
class Group:
    """What a segmenter is trained on: `real` patches (none: all there are) and `synthetic` pairs.

    `halves`: half of every batch is real; else it is drawn by numbers. `best`: the synthetic pairs
    are those whose image and mask agree best, of half as many again.
    """

    real: int | None
    synthetic: int
    halves: bool = True
    best: bool = False

    @property
    def drawn(self) -> int:
        """How many synthetic pairs it chooses from."""
        return self.synthetic * 3 // 2 if self.best else self.synthetic


GROUPS = {
    "I": Group(REAL, 0),
    "II": Group(0, 100),
    "III": Group(REAL, 100),
    "IV": Group(REAL, 200),
    "V": Group(REAL, 400),
    "V by numbers": Group(REAL, 400, halves=False),
    "V best": Group(REAL, 400, best=True),
    CEILING: Group(None, 0),
}


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

    def metric(self) -> Metric:
        """As the report holds it; the interval, of two seeds or more, is Student's t over seeds."""
        half = _reach(self.dice) if len(self.dice) > 1 else None
        return Metric(
            f"segmenter Dice, group {self.group}",
            self.mean,
            None,
            self.network,
            self.validation,
            self.label,
            None if half is None else (self.mean - half, self.mean + half),
        )


def group_scores(
    label: str,
    training: Pairs,
    synthetic: Pairs,
    validation: Pairs,
    *,
    agreeing: Tensor | None = None,
    groups: Mapping[str, Group] = GROUPS,
    steps: int,
    seeds: int,
    network: Network = MONAI,
) -> list[GroupScore]:
    """Dice of every group; ValueError when a group asks for more pairs than there are.

    `agreeing` [M] says how well image and mask of each synthetic pair agree (`agreement`); without
    it there is no best group. A label with fewer than 30 real training patches uses all of them.
    """
    scores = []
    for name, group in groups.items():
        if group.best and agreeing is None:
            continue
        if group.drawn > len(synthetic):
            raise ValueError(f"group {name}: {len(synthetic)} synthetic pairs, needs {group.drawn}")
        dice = []
        for seed in range(seeds):
            pairs, weights = _drawn(training, synthetic, agreeing, group, seed)
            dice.append(float(network.score(pairs, weights, validation, steps, seed).nanmean()))
        scores.append(GroupScore(name, label, tuple(dice), len(validation), network.name))
        print(f"segmentation: {label} group {name} Dice {scores[-1].mean:.3f}", flush=True)
    return scores


def verdict(scores: list[GroupScore]) -> str:
    """One sentence a label: whether group V beats group I by more than the noise of the seeds,
    what the changes did, and how much there was to gain."""
    by_group = {score.group: score for score in scores}
    real, both = by_group["I"], by_group["V"]
    gain, noise_of_gain = _gain(real, both)
    helped = "help" if gain > noise_of_gain else "do not help beyond noise"
    by_seed = ", ".join(f"{each:+.3f}" for each in _differences(real, both))
    said = (
        f"{real.label}: synthetic pairs {helped}: 30 real {real.mean:.3f}, 30 real + 400 "
        f"synthetic {both.mean:.3f}, gain {gain:+.3f} ({by_seed}), noise {noise_of_gain:.3f} "
        f"(95% by Student's t, {len(real.dice)} seeds, each with the same 30 in both)"
    )
    for name in ("V by numbers", "V best"):
        if changed := by_group.get(name):
            said += f"; {name} {changed.mean:.3f}"
    if ceiling := by_group.get(CEILING):
        said += f"; all real training patches {ceiling.mean:.3f}"
        room, noise = _gain(real, ceiling)
        if room <= noise:
            said += ", no better than 30 of them beyond noise: these seeds show no room for a gain"
        elif both.mean >= ceiling.mean:
            said += ", no better than 30 of them with synthetic pairs"
        elif gain <= noise_of_gain:
            said += f"; {_shortfall(by_group)}"
    return said


def _shortfall(by_group: Mapping[str, GroupScore]) -> str:
    """Why synthetic pairs did not fill the room there is, by what else the groups show."""
    real, alone, few, many = (by_group[name] for name in ("I", "II", "III", "V"))
    less = alone.mean < real.mean
    said = f"there is room, but 100 synthetic pairs alone (II) reach {alone.mean:.3f}, "
    said += "less than 30 real ones" if less else "what 30 real ones reach already"
    if few.mean >= many.mean:
        said += f", and 100 beside them (III) do {few.mean:.3f}, no less than 400"
        less = True
    return said + (
        ": the samples are too unlike real patches, not too few (see the distances)" if less else ""
    )


def _gain(one: GroupScore, other: GroupScore) -> tuple[float, float]:
    """How much better the other is, and half of its 95% interval over seeds; infinite for one."""
    gains = _differences(one, other)
    return statistics.mean(gains), _reach(gains) if len(gains) > 1 else float("inf")


def _reach(values: Sequence[float]) -> float:
    """Half of the 95% interval of the mean of two or more values, by Student's t."""
    # Takes a second.
    from scipy import stats  # type: ignore[import-untyped]

    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def _differences(one: GroupScore, other: GroupScore) -> list[float]:
    """By seed: groups of one seed have the same real patches, which part of the noise is of."""
    return [b - a for a, b in zip(one.dice, other.dice, strict=True)]


def _drawn(
    training: Pairs, synthetic: Pairs, agreeing: Tensor | None, group: Group, seed: int
) -> tuple[Pairs, Tensor]:
    """A group's pairs, and the weights [N] that they are drawn by."""
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))
    chosen = torch.arange(group.synthetic)
    if group.best and agreeing is not None:
        chosen = agreeing[: group.drawn].topk(group.synthetic).indices
    parts = [part for part in (training[order[: group.real]], synthetic[chosen]) if len(part)]
    each = [len(part) if group.halves else 1 for part in parts]
    weights = [torch.full((len(part),), 1 / count) for part, count in zip(parts, each, strict=True)]
    return joined(parts), torch.cat(weights)
