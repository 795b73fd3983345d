"""Which patches a step draws: every source and every original counts, however many patches it has.

A source is one set of labels with one licence. Its chance is proportional to the square root of the
number of its patches. Within a source, an original's chance is too. This is between two extremes:
with equal chances for patches, a large source would drown the others; with equal chances for
sources, a small one would show its patches far too often.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from model.request import Label
from training import data as patches

Source = tuple[tuple[Label, ...], str]


def chances(dataset: patches.Dataset, pool: Tensor) -> Tensor:
    """The chance of each patch of `pool` [M] to be drawn: float64 [M], their sum is 1."""
    samples = [dataset.samples[index] for index in pool.tolist()]
    sources: list[Source] = [(sample.labels, sample.licence) for sample in samples]
    originals = [(source, s.group) for source, s in zip(sources, samples, strict=True)]
    of_source, of_original = Counter(sources), Counter(originals)
    shares: dict[Source, float] = {}
    for (source, _), count in of_original.items():
        shares[source] = shares.get(source, 0.0) + count**0.5
    found = [
        of_source[source] ** 0.5 / shares[source] * of_original[original] ** -0.5
        for source, original in zip(sources, originals, strict=True)
    ]
    drawn = torch.tensor(found, dtype=torch.float64)
    return drawn / drawn.sum()


def draw(pool: Tensor, chances: Tensor, seed: int, step: int, size: int) -> tuple[Tensor, Tensor]:
    """The samples and views of one training step, a pure function of (seed, step).

    Samples of `pool` [M] are drawn by `chances` [M], with replacement.
    """
    draws = patches.generator(seed, "balanced", step)
    chosen = pool[torch.multinomial(chances, size, replacement=True, generator=draws)]
    views = torch.randint(patches.VIEWS, (size,), generator=patches.generator(seed, "views", step))
    return chosen, views
