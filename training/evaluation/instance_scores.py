"""How well nuclei are kept apart: AJI, PQ and object F1 of instance maps.

AJI: Kumar et al. 2017 (the aggregated Jaccard index); PQ: Kirillov et al. 2019, with object F1 its
first factor, both at an IoU over 0.5. Each is the mean over patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.instances import borders, instances
from model.tokenizer import Tokenizer
from training import data as patches
from training.evaluation.metric import Metric
from training.evaluation.pair_tensors import BATCH, encode

Ids = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class InstanceScores:
    """Of one patch, each 0..1."""

    aji: float
    pq: float
    f1: float


def compare(true: Ids, found: Ids) -> InstanceScores:
    """Two maps [H, W] of ids, 0 = ground. A patch without nuclei found so scores 1."""
    overlap, real, drawn = _overlaps(true, found)
    if not len(real) or not len(drawn):
        both = float(len(real) == len(drawn))
        return InstanceScores(both, both, both)
    union = real[:, None] + drawn[None] - overlap
    share = overlap / union
    rows = np.flatnonzero(overlap.any(1))
    best = share.argmax(1)[rows]
    unused = np.ones(len(drawn), bool)
    unused[best] = False
    missed = real.sum() - real[rows].sum()
    of_all = union[rows, best].sum() + missed + drawn[unused].sum()
    aji = overlap[rows, best].sum() / of_all
    matched = share > 0.5  # at most one a row and a column
    of_either = (len(real) + len(drawn)) / 2
    return InstanceScores(
        float(aji), float(share[matched].sum() / of_either), float(matched.sum() / of_either)
    )


def _overlaps(
    true: Ids, found: Ids
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Pixels that each pair of nuclei shares [R, D], and pixels of each, [R] and [D]."""
    names, places = zip(
        *(np.unique(ids, return_inverse=True) for ids in (true, found)), strict=True
    )
    table = np.zeros([len(each) for each in names])
    np.add.at(table, tuple(place.ravel() for place in places), 1)
    inner = table[names[0] > 0][:, names[1] > 0]
    return inner, table.sum(1)[names[0] > 0], table.sum(0)[names[1] > 0]


def ids_of(planes: NDArray[np.bool_]) -> Ids:
    """The ids that a mask [P, H, W] stands for, split at its borders where it has them."""
    return instances(planes[0], planes[1] if len(planes) > 1 else None)


@torch.no_grad()
def of_tokens(
    tokenizer: Tokenizer, dataset: patches.Dataset, indices: Tensor
) -> list[InstanceScores]:
    """Instances decoded from the structure tokens of patches against their maps."""
    side, device = tokenizer.config.grid_size, next(tokenizer.parameters()).device
    scores = []
    for chunk in indices.split(BATCH):
        structure, _ = encode(dataset, chunk, torch.zeros_like(chunk), tokenizer)
        given = tokenizer.structure_codebook.look_up(
            structure.unflatten(1, (side, side)).to(device)
        )
        found = (tokenizer.mask_decoder(given) > 0).cpu().numpy()
        true = dataset.instances[chunk].numpy()
        scores += [compare(ids, ids_of(each)) for ids, each in zip(true, found, strict=True)]
    return scores


def of_rule(dataset: patches.Dataset, indices: Tensor, planes: int) -> list[InstanceScores]:
    """The same of their true masks, with true borders where there are two `planes`: what the rule
    reaches at best."""
    scores = []
    for index in indices.tolist():
        true, mask = dataset.instances[index].numpy(), dataset.masks[index].numpy()
        given = np.stack([mask, borders(true)][:planes])
        scores.append(compare(true, ids_of(given)))
    return scores


def instance_metrics(
    found: Sequence[InstanceScores], best: Sequence[InstanceScores], label: str
) -> list[Metric]:
    """`instance_aji`, `instance_pq`, `instance_f1`: means over patches; floors are those of the
    rule on true masks."""
    return [
        Metric(
            f"instance_{name}",
            float(np.mean([getattr(each, name) for each in found])),
            float(np.mean([getattr(each, name) for each in best])),
            "",
            len(found),
            label,
        )
        for name in ("aji", "pq", "f1")
    ]
