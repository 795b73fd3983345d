"""Figures of a row's samples: FID and KID on frozen features, by modality, and agreement.

Real tiles of all groups stand against the samples, as the paper's figures do; the floor is what
held-out tiles score against training tiles. Knows no training and no tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from training import data as patches
from training import segmenter as segmenters
from training.ablation.tile_sets import of
from training.distributed import training_device
from training.evaluation.distances import frechet_distance, kernel_distance, mean_distance
from training.evaluation.features import Features
from training.evaluation.pair_tensors import Pairs
from training.losses import Lpips
from training.run import load_tensors, save_tensors

Figures = dict[str, dict[str, float]]
"""FID and KID by modality."""

BATCH = 64


def real_features(network: Features, tiles: patches.Dataset, folder: Path) -> Tensor:
    """Features [tiles, D], kept in `folder` since every row needs them."""
    path = folder / f"real-{network.name.replace('/', '-')}.safetensors"
    if not path.exists():
        print(f"ablate: {network.name} features of {len(tiles.images)} real tiles", flush=True)
        chunks = torch.arange(len(tiles.images)).split(BATCH)
        found = [network(patches.batch(tiles, c, torch.zeros_like(c))[0]) for c in chunks]
        save_tensors(path, {"features": torch.cat(found)}, {})
    return load_tensors(path)[0]["features"]


def distances(
    network: Features, drawn: Mapping[str, Pairs], real: Tensor, tiles: patches.Dataset
) -> Figures:
    """FID and KID of each modality's samples against its real tiles, of features [tiles, D]."""
    every = torch.arange(len(tiles.images))
    return {
        label.name: _distance(network.of(drawn[label.name]), real[of(tiles, every, label)])
        for label in tiles.labels
    }


def floor(real: Tensor, tiles: patches.Dataset, count: int) -> Figures:
    """The same for real tiles: up to `count` of the validation groups against training groups."""
    figures = {}
    for label in tiles.labels:
        held_out = of(tiles, tiles.validation, label)
        places = torch.linspace(0, len(held_out) - 1, min(count, len(held_out))).long()
        training = real[of(tiles, tiles.training, label)]
        figures[label.name] = _distance(real[held_out[places]], training)
        figures[label.name]["n"] = float(len(places))
    return figures


def _distance(found: Tensor, real: Tensor) -> dict[str, float]:
    return {"fid": frechet_distance(found, real), "kid": kernel_distance(found, real)[0]}


def segmenter(tiles: patches.Dataset, steps: int, path: Path) -> torch.nn.Module:
    """What finds nuclei in samples: trained once on real training tiles, then read from `path`."""
    if not path.exists():
        print(f"ablate: a segmenter, {steps} steps", flush=True)
        training = tiles.training
        network = segmenters.fit(
            tiles.images[training],
            tiles.masks[training],
            steps=steps,
            seed=0,
            weights=segmenters.balanced(tiles, training),
        )
        segmenters.save(network, path)
    return segmenters.load(path).to(training_device())


def agreement(network: torch.nn.Module, drawn: Mapping[str, Pairs]) -> dict[str, float]:
    """Dice by modality of the nuclei found in the images against their masks, all pixels together:
    many a tile is empty.
    """
    figures = {}
    for name, pairs in drawn.items():
        found = segmenters.find(network, pairs.pixels())
        overlap, total = (found & pairs.masks).sum(), found.sum() + pairs.masks.sum()
        figures[name] = float(2 * overlap / total.clamp_min(1))
    return figures


def diversity(network: Lpips, drawn: Mapping[str, Pairs]) -> dict[str, float]:
    """Mean LPIPS between two samples of a modality."""
    return {name: mean_distance(pairs, network) for name, pairs in drawn.items()}
