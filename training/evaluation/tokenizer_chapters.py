"""The chapters of a report that judge the tokenizer alone, without its prior."""

from __future__ import annotations

import torch
from torch import Tensor

from model.request import Label
from training.evaluation import distances, instance_scores, reconstruction, telling, texture
from training.evaluation.features import Features
from training.evaluation.metric import Metric, Missing
from training.evaluation.pair_tensors import Pairs, of_label
from training.evaluation.report import Section
from training.evaluation.study import Study, with_real
from training.evaluation.swaps import partners


def take_sharpness(study: Study) -> Section:
    """Whether decodes look like patches."""
    metrics: list[Metric] = []
    enough, missing = with_real(study, study.labels, distances.FEWEST, "sharpness")
    for label in enough:
        real = study.validation(label)
        decoded = {
            "reconstruction": _decoded(study, real.structure, real.appearance),
            "swap": _decoded(study, *_swapped(real)),
        }
        metrics += texture.texture_metrics(decoded, real.pixels(), label.name)
        if study.options.samples < distances.FEWEST:
            continue
        for features in study.features:
            metrics += _distances(study, features, label, real, decoded)
        print(f"sharpness: {label.name} done", flush=True)
    if study.options.samples < distances.FEWEST:
        needs = f"--samples {distances.FEWEST} or more, so many training patches being taken"
        missing = [*missing, Missing("distances of reconstructions", needs)]
    return Section(metrics, missing=missing)


def _decoded(study: Study, structure: Tensor, appearance: Tensor) -> Tensor:
    """Images [M, 3, H, W] in -1..1, rounded to 8 bits as real ones are."""
    images, _ = reconstruction.decode(study.tokenizer, structure, appearance)
    return ((images + 1) * 127.5).round() / 127.5 - 1


def _swapped(real: Pairs) -> tuple[Tensor, Tensor]:
    """The tokens of patches, each with the appearance of one far from it in their order."""
    return real.structure, real.appearance[partners(len(real), len(real))[-1]]


def _distances(
    study: Study, features: Features, label: Label, real: Pairs, decoded: dict[str, Tensor]
) -> list[Metric]:
    """Distances of decodes to training patches beside those of the real validation patches that
    they were made from, and what tells them from these."""
    training = study.training(label, study.options.samples)
    if len(training) < distances.FEWEST:
        return []
    theirs, ours = features.of(training), features.of(real)
    drawn = {name: features(images) for name, images in decoded.items()}
    metrics = [
        _renamed(metric, f"reconstruction_{metric.name}")
        for metric in distances.distribution_metrics(
            drawn["reconstruction"], theirs, ours, features.name, label.name
        )
        if metric.name in ("fid", "kid", "recall")
    ]
    unswapped = next(m.value for m in metrics if m.name == "reconstruction_kid")
    kernel, _ = distances.kernel_distance(drawn["swap"], theirs)
    metrics.append(Metric("swap_kid", kernel, unswapped, features.name, len(real), label.name))
    again = features(_decoded(study, training.structure, training.appearance))
    pairs = (theirs, again), (ours, drawn["reconstruction"])
    name = "reconstruction_told_apart"
    return [*metrics, telling.told_apart(*pairs, name, features.name, label.name)]


def _renamed(metric: Metric, name: str) -> Metric:
    return Metric(
        name, metric.value, metric.floor, metric.features, metric.n, metric.label, metric.interval
    )


def take_instances(study: Study) -> Section:
    """Whether nuclei that touch come apart again."""
    dataset, planes = study.dataset, study.tokenizer.config.structure_planes
    known = torch.tensor([sample.instances is not None for sample in dataset.samples])
    metrics, missing = [], []
    for label in study.labels:
        chosen = of_label(dataset, dataset.validation, label)
        chosen = chosen[known[chosen]]
        if not len(chosen):
            missing.append(
                Missing(f"instances of {label.name}", "validation patches with instance maps")
            )
            continue
        found = instance_scores.of_tokens(study.tokenizer, dataset, chosen)
        best = instance_scores.of_rule(dataset, chosen, planes)
        metrics += instance_scores.instance_metrics(found, best, label.name)
    return Section(metrics, missing=missing)
