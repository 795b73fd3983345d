"""Can a linear classifier tell drawn patches from real ones, on frozen features?"""

from __future__ import annotations

import torch
from torch import Tensor

from training.evaluation.metric import Metric
from training.evaluation.style import fit_classifier, recognised

REAL, DRAWN = "real", "drawn"


def told_apart(
    seen: tuple[Tensor, Tensor], unseen: tuple[Tensor, Tensor], name: str, features: str, label: str
) -> Metric:
    """The share of `unseen` real and drawn patches that are told from each other, each kind
    counted alike, by logistic regression on `seen` ones; its floor is chance, 0.5.

    Both are features ([M, D] real, [R, D] drawn) of one network, named `features`.
    """
    classifier = fit_classifier(dict(zip((REAL, DRAWN), seen, strict=True)))
    shares = [
        recognised(classifier, held, kind) for held, kind in zip(unseen, (REAL, DRAWN), strict=True)
    ]
    count = sum(map(len, unseen))
    return Metric(name, sum(shares) / 2, 0.5, features, count, label)


def halves(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features [M, D] in two random halves, the same ones each time."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    return features[order[::2]], features[order[1::2]]
