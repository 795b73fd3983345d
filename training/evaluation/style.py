"""Style Score (the paper's section IV-B, Table II): do samples look like what they were asked to?

The share of samples that a classifier trained on real training patches gives the label they were
asked for. The paper trains an EfficientNet-B0; ours is logistic regression on frozen features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training.evaluation.metric import Metric
from training.run import StageError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline  # type: ignore[import-untyped]


class StyleError(StageError):
    """Labels that a classifier cannot be trained or tested on; the sentence names them."""


def style_scores(
    training: Mapping[str, Tensor],
    validation: Mapping[str, Tensor],
    generated: Mapping[str, Tensor],
    features: str,
) -> list[Metric]:
    """Style Score by label and their mean as "all"; the floor is that of validation patches.

    Each maps label names of one kind (modalities, or organs) to features [M, D] of one network,
    named `features`; `generated` and `validation` hold the same labels, all of them in `training`.
    One label alone has nothing to be told from: no figure. StyleError when labels differ.
    """
    if set(generated) != set(validation) or not set(generated) <= set(training):
        raise StyleError(
            f"style_score: samples of {sorted(generated)}, validation of {sorted(validation)}, "
            f"training of {sorted(training)}; expected the same labels"
        )
    if len(training) < 2:
        return []
    classifier = fit_classifier(training)
    scores = [
        Metric(
            "style_score",
            recognised(classifier, drawn, label),
            recognised(classifier, validation[label], label),
            features,
            len(drawn),
            label,
        )
        for label, drawn in generated.items()
    ]
    mean = sum(score.value for score in scores) / len(scores)
    floor = sum(score.floor or 0.0 for score in scores) / len(scores)
    count = sum(score.n for score in scores)
    return [*scores, Metric("style_score", mean, floor, features, count, "all")]


def fit_classifier(training: Mapping[str, Tensor]) -> Pipeline:
    """Multinomial logistic regression on standardised features [M, D], labels weighed alike."""
    # Takes a second.
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]

    inputs = torch.cat(list(training.values())).numpy()
    targets = [label for label, held in training.items() for _ in range(len(held))]
    regression = LogisticRegression(class_weight="balanced", max_iter=1000)
    return make_pipeline(StandardScaler(), regression).fit(inputs, targets)


def recognised(classifier: Pipeline, features: Tensor, label: str) -> float:
    """Share of features [M, D] that the classifier gives `label`."""
    return float((classifier.predict(features.numpy()) == label).mean())
