"""Patches with their masks and tokens, real or drawn, in one shape for every figure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.engine import Engine, Patch, TokenGrids
from model.request import ImageRequest, Label, SamplingSettings
from model.tokenizer import Tokenizer
from training import data as patches
from training.sheets import draw

BATCH = 32


@dataclass(frozen=True)
class Pairs:
    """M pairs: `images` uint8 [M, H, W, 3], `masks` bool [M, H, W], token ids int64 [M, N] of both
    streams in raster order."""

    images: Tensor
    masks: Tensor
    structure: Tensor
    appearance: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: Tensor | slice) -> Pairs:
        """The pairs of an index tensor or slice."""
        return Pairs(
            self.images[chosen], self.masks[chosen], self.structure[chosen], self.appearance[chosen]
        )

    def pixels(self) -> Tensor:
        """Images as the networks take them: float [M, 3, H, W] in -1..1."""
        return self.images.permute(0, 3, 1, 2).float() / 127.5 - 1


def joined(parts: list[Pairs]) -> Pairs:
    """All of them in order."""
    return Pairs(
        torch.cat([part.images for part in parts]),
        torch.cat([part.masks for part in parts]),
        torch.cat([part.structure for part in parts]),
        torch.cat([part.appearance for part in parts]),
    )


def of_label(dataset: patches.Dataset, indices: Tensor, label: Label) -> Tensor:
    """Those of `indices` that carry `label`."""
    return indices[dataset.label_table()[indices, dataset.labels.index(label)]]


@torch.no_grad()
def real_pairs(dataset: patches.Dataset, indices: Tensor, tokenizer: Tokenizer) -> Pairs:
    """Real patches, unturned, with the tokens that `tokenizer` gives them; none of no indices."""
    if not len(indices):
        none = torch.zeros(0, tokenizer.config.grid_size**2, dtype=torch.long)
        return Pairs(dataset.images[indices], dataset.masks[indices], none, none)
    chunks = indices.split(BATCH)
    ids = [encode(dataset, chunk, torch.zeros_like(chunk), tokenizer) for chunk in chunks]
    return Pairs(
        dataset.images[indices],
        dataset.masks[indices],
        torch.cat([structure for structure, _ in ids]),
        torch.cat([appearance for _, appearance in ids]),
    )


@torch.no_grad()
def encode(
    dataset: patches.Dataset, indices: Tensor, views: Tensor, tokenizer: Tokenizer
) -> tuple[Tensor, Tensor]:
    """Ids [M, N] of both streams of patches, each in its view, on the CPU."""
    device = next(tokenizer.parameters()).device
    images, masks = patches.batch(dataset, indices, views, tokenizer.config.structure_planes)
    structure, appearance = tokenizer.encode(images.to(device), masks.to(device))
    return structure.flatten(1).cpu(), appearance.flatten(1).cpu()


def draw_pairs(engine: Engine, label: str, seeds: range, settings: SamplingSettings) -> Pairs:
    """Samples of one label, one a seed; says how far it is."""
    parts = []
    for start in range(0, len(seeds), BATCH):
        requests = [ImageRequest(label, seed, settings) for seed in seeds[start : start + BATCH]]
        parts.append(_pairs(draw(engine, requests)))
        print(f"{label}: drew {start + len(requests)} of {len(seeds)}", flush=True)
    return joined(parts)


def _pairs(drawn: list[tuple[TokenGrids, Patch]]) -> Pairs:
    return Pairs(
        torch.from_numpy(np.stack([patch.image for _, patch in drawn])),
        torch.from_numpy(np.stack([patch.mask for _, patch in drawn])) > 127,
        torch.from_numpy(np.stack([tokens.structure.flatten() for tokens, _ in drawn])).long(),
        torch.from_numpy(np.stack([tokens.appearance.flatten() for tokens, _ in drawn])).long(),
    )
