"""Pairs for a training in torch, drawn by a service while the training runs.

    pairs = DrawnPairs({"histology": 1000, "blood": 500}, seed=7)
    for epoch in range(10):
        pairs.set_epoch(epoch)
        for batch in DataLoader(pairs, batch_size=16, num_workers=2):
            train(batch["image"], batch["mask"], batch["label"])

Needs torch (`pip install 'pathar[torch]'`). Knows no folders.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any, Unpack

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from pathar.client import Client, RecipeFields
from pathar.contract import image_seed
from pathar.errors import UsageError
from pathar.pairs import Pair
from pathar.pulling import AHEAD, models_of
from pathar.recipe import Plan, PlannedJob, Recipe


class DrawnPairs(IterableDataset[dict[str, Any]]):
    """Each epoch draws its own pairs of the same labels, counts and settings; those of epoch 0 are
    the pairs that `pathar pull` writes with the same seed. Labels are mixed.

    A sample is a dict: `image` uint8 [3, H, W], `mask` uint8 [1, H, W] of 0 and 1, `label` its
    place in `labels`, and `seed`. In a DataLoader with workers each pair comes once. The first
    argument may be a recipe file. Raises what a client raises.
    """

    def __init__(
        self,
        labels: Mapping[str, int] | str | os.PathLike[str],
        *,
        url: str | None = None,
        key: str | None = None,
        **fields: Unpack[RecipeFields],
    ) -> None:
        self._open = partial(Client, url, key)
        self._open().close()  # a wrong URL or key is said here
        self._recipe = Recipe.of(labels, fields)
        if self._recipe.filtered:
            raise UsageError("min_agreement, best_of: only pull filters, expected none here")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers see it, too

    def set_epoch(self, epoch: int) -> None:
        """Choose whose pairs the next iteration draws."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._open() as client:
            left, running = deque(self._jobs(client)), deque[_Running]()
            try:
                while left or running:
                    if left and len(running) < AHEAD:
                        running.append(self._begun(client, left.popleft()))
                        continue
                    job = running.popleft()
                    pair = next(job.pairs, None)
                    if pair is None:
                        client.cancel(job.id, files=True)
                    else:
                        running.append(job)
                        yield _sample(pair, job.place)
            finally:  # of a training that ends early, too
                for job in running:
                    job.pairs.close()
                    client.cancel(job.id, files=True)

    def _jobs(self, client: Client) -> list[PlannedJob]:
        """The jobs of this epoch that this worker draws: the first of each label, and so on."""
        seed = image_seed(self._recipe.seed, int(self._epoch))
        models = models_of(self._recipe, client.labels())
        jobs = Plan(replace(self._recipe, seed=seed), models).jobs
        of_labels = [[job for job in jobs if job.label == label] for label in self._recipe.labels]
        mixed = [job for each in zip_longest(*of_labels) for job in each if job is not None]
        worker = get_worker_info()
        return mixed[worker.id :: worker.num_workers] if worker else mixed

    def _begun(self, client: Client, job: PlannedJob) -> _Running:
        """Ask for a job."""
        fields: dict[str, Any] = {**job.fields(), "model": self._recipe.model, "priority": "bulk"}
        job_id = client.submit(**fields).id
        place = list(self._recipe.labels).index(job.label)
        return _Running(job_id, place, client.pairs(job_id))


@dataclass(frozen=True)
class _Running:
    """A job on the service, and its pairs as they come. `place`: which label it has."""

    id: str
    place: int
    pairs: Generator[Pair, None, None]


def _sample(pair: Pair, place: int) -> dict[str, Any]:
    return {
        "image": torch.from_numpy(np.array(pair.image)).permute(2, 0, 1),
        "mask": torch.from_numpy(np.array(pair.mask) // 255)[None],
        "label": place,
        "seed": pair.seed,
    }
