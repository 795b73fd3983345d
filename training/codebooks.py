"""How a codebook's entries are trained: k-means start, moving averages, restarts of dead entries.

The codebook itself (`model.tokenizer.Codebook`) only assigns and looks up. Entries follow the
exponential moving average of the latents assigned to them (van den Oord et al. 2017, appendix
A.1), on the unit sphere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.tokenizer import Codebook
from training.distributed import sum_over_ranks

DECAY = 0.99
DEAD_BELOW = 0.1
RESTARTS_A_STEP = 16
KMEANS_ROUNDS = 12
KMEANS_CHUNKS = 16
START_COUNT = 2000.0
ADOPTED_COUNT = 4.0
"""Of entries trained elsewhere: an entry in use keeps it, one out of use is dead in 370 steps."""


class CodebookTrainer:
    """Moving averages of one codebook: `counts` [K] and `sums` [K, dim]."""

    def __init__(self, codebook: Codebook) -> None:
        self.codebook = codebook
        self.counts = torch.ones(len(codebook.entries), device=codebook.entries.device)
        self.sums = codebook.entries.clone()

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {"counts": self.counts, "sums": self.sums}

    def load(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
        self.counts.copy_(state["counts"])
        self.sums.copy_(state["sums"])

    @torch.no_grad()
    def adopt(self) -> None:
        """Go on from the entries that the codebook has."""
        self.counts.fill_(ADOPTED_COUNT)
        self.sums.copy_(self.codebook.entries * ADOPTED_COUNT)

    @torch.no_grad()
    def start(self, latents: Tensor, generator: torch.Generator) -> None:
        """Set the entries by k-means++ and a few Lloyd rounds over unit latents [M, dim]."""
        entries = _spread(latents, len(self.counts), generator)
        counts = self.counts
        for _ in range(KMEANS_ROUNDS):
            ids = (latents @ entries.t()).argmax(1)
            counts, sums = _gather(latents, ids, len(entries))
            used = counts > 0
            entries[used] = F.normalize(sums[used], dim=1)
        self.codebook.entries.copy_(entries)
        self.counts.copy_((counts / len(latents) * START_COUNT).clamp_min(0.3))
        self.sums.copy_(entries * self.counts[:, None])

    @torch.no_grad()
    def update(self, latents: Tensor, ids: Tensor, generator: torch.Generator) -> None:
        """One step: `follow`, then move dead entries."""
        self.follow(latents, ids)
        self._restart_dead(latents, ids, generator)

    @torch.no_grad()
    def follow(self, latents: Tensor, ids: Tensor) -> None:
        """Move entries toward their latents [M, dim] with `ids` [M]."""
        counts, sums = _gather(latents, ids, len(self.counts))
        self.counts.lerp_(sum_over_ranks(counts), 1 - DECAY)
        self.sums.lerp_(sum_over_ranks(sums), 1 - DECAY)
        self.codebook.entries.copy_(F.normalize(self.sums, dim=1))

    def _restart_dead(self, latents: Tensor, ids: Tensor, generator: torch.Generator) -> None:
        """Move unused entries onto badly served latents, drawn by squared distance."""
        dead = (self.counts < DEAD_BELOW).nonzero()[:RESTARTS_A_STEP, 0]
        if not len(dead):
            return
        distance = (latents - self.codebook.entries[ids]).square().sum(1) + 1e-9
        drawn = torch.multinomial(distance.cpu(), len(dead), generator=generator)
        self.codebook.entries[dead] = latents[drawn.to(latents.device)]
        self.counts[dead] = 1.0
        self.sums[dead] = self.codebook.entries[dead]


def usage(ids: Tensor, size: int) -> tuple[float, float]:
    """Share of the codebook in use (0..1) and perplexity exp(H) of the ids."""
    counts = torch.bincount(ids.flatten(), minlength=size).float()
    share = counts[counts > 0] / counts.sum()
    return float((counts > 0).float().mean()), float(torch.exp(-(share * share.log()).sum()))


def _gather(latents: Tensor, ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
    counts = torch.bincount(ids, minlength=size).float()
    sums = torch.zeros(size, latents.shape[1], device=latents.device).index_add_(0, ids, latents)
    return counts, sums


def _spread(latents: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """k-means++ seeding, in KMEANS_CHUNKS draws rather than one an entry."""
    order = torch.randperm(len(latents), generator=generator).to(latents.device)
    latents = latents[order]
    chosen = latents[:1]
    distance = (latents - chosen).square().sum(1)
    while len(chosen) < size:
        count = min(max(1, size // KMEANS_CHUNKS), size - len(chosen))
        weights = (distance + 1e-9).cpu()
        drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
        new = latents[drawn.to(latents.device)]
        nearest = (2 - 2 * (latents @ new.t()).max(1).values).clamp_min(0)
        distance = torch.minimum(distance, nearest)
        chosen = torch.cat([chosen, new])
    return chosen.clone()
