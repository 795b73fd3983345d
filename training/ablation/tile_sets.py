"""Real patches cut into tiles of the budget's size, under their modality labels alone.

Cutting, where shrinking would do too, keeps nuclei at the size in pixels that f is meant for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.request import Label
from training import data as patches
from training.pictures import read_image
from training.samples import DataError, Sample, read_samples


@dataclass(frozen=True)
class TileSet:
    """What one model is trained on: all modalities, or one alone. Indices are of tiles."""

    name: str
    labels: tuple[Label, ...]
    training: Tensor
    validation: Tensor


def read_tiles(root: Path, licences: Sequence[str], size: int) -> patches.Dataset:
    """Every patch under `root` as tiles of `size`; DataError where they cannot be cut so.

    Tiles of one patch share its group, so that the split stands.
    """
    side = _side(root)
    if side % size:
        raise DataError(
            f"budget.image_size: {size} does not divide the patches of {side} pixels in {root}"
        )
    whole = patches.read_dataset(root, licences, side)
    kept = [i for i, sample in enumerate(whole.samples) if _modalities(sample)]
    labels = tuple(label for label in whole.labels if label.kind == "modality")
    if not kept:
        raise DataError(f"{root}: no patch has a modality, which the ablations go by")
    each = (side // size) ** 2
    held_out = torch.zeros(len(whole.samples), dtype=torch.bool)
    held_out[whole.validation] = True
    of_tile = held_out[kept].repeat_interleave(each)
    tiles = patches.Dataset(
        samples=tuple(
            replace(whole.samples[i], labels=_modalities(whole.samples[i]))
            for i in kept
            for _ in range(each)
        ),
        images=cut(whole.images[kept], size),
        masks=cut(whole.masks[kept], size),
        instances=cut(whole.instances[kept], size),
        labels=labels,
        training=(~of_tile).nonzero()[:, 0],
        validation=of_tile.nonzero()[:, 0],
    )
    for label in labels:
        if not len(of(tiles, tiles.validation, label)):
            raise DataError(f"{root}: {label.name}: one group, expected two to hold one out")
    return tiles


def cut(pictures: Tensor, size: int) -> Tensor:
    """[M, H, H, ...] -> [M (H / size)^2, size, size, ...], a picture's tiles in raster order."""
    count = pictures.shape[1] // size
    rows: Tensor = pictures.unflatten(2, (count, size)).unflatten(1, (count, size))
    return rows.transpose(2, 3).flatten(0, 2)


def parts(tiles: patches.Dataset, *, one_modality: bool) -> list[TileSet]:
    """One part of everything, or one for each modality."""
    if not one_modality:
        return [TileSet("", tiles.labels, tiles.training, tiles.validation)]
    return [
        TileSet(
            label.name,
            (label,),
            of(tiles, tiles.training, label),
            of(tiles, tiles.validation, label),
        )
        for label in tiles.labels
    ]


def of(tiles: patches.Dataset, indices: Tensor, label: Label) -> Tensor:
    """Those of `indices` that carry `label`."""
    return indices[tiles.label_table()[indices, tiles.labels.index(label)]]


def _modalities(sample: Sample) -> tuple[Label, ...]:
    return tuple(label for label in sample.labels if label.kind == "modality")


def _side(root: Path) -> int:
    """Pixels a side of the first patch; `read_dataset` refuses patches that differ."""
    return int(read_image(read_samples(root, [])[0].image).shape[1])
