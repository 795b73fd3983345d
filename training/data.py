"""Patches with masks in memory: labels, split by group, batches with dihedral views.

`samples.py` lists the patches. Knows no network.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.checkpoint import FACTS as FACTS
from model.instances import borders, components
from model.request import Label
from training.samples import (
    UNSTATED,
    DataError,
    Patch,
    Sample,
    joined_copies,
    picture_digest,
    read_patch,
    read_samples,
    refuse_unclear_names,
    said_of_copies,
    validation_groups,
)

VIEWS = 8
"""Dihedral views of a patch: four quarter turns, each with and without a flip."""
SCALES = (0.75, 1.35)
GAMMA = (0.75, 1.35)
LIGHT = (0.85, 1.15)
COLOUR = (0.7, 1.4)


@dataclass(frozen=True)
class Dataset:
    """Patches in memory: `images` uint8 [M, H, W, 3], `masks` bool [M, H, W], `instances` int16
    [M, H, W] (nuclei from 1, 0 = ground; the components of the mask where no map was given), M
    samples."""

    samples: tuple[Sample, ...]
    images: Tensor
    masks: Tensor
    instances: Tensor
    labels: tuple[Label, ...]
    training: Tensor
    validation: Tensor

    def to(self, device: torch.device) -> Dataset:
        """The same with its pixels on a device, where batches are then made."""
        return replace(self, images=self.images.to(device), masks=self.masks.to(device))

    def digest(self) -> str:
        """SHA-256 of the pixels, and of every sample's labels and group: which patches they are,
        wherever they lie."""
        found = hashlib.sha256()
        for sample, *pixels in zip(self.samples, self.images, self.masks, strict=True):
            named = [sample.group, *(f"{label.kind} {label.name}" for label in sample.labels)]
            found.update(json.dumps(named).encode())
            for part in pixels:
                found.update(part.cpu().numpy().tobytes())
        return found.hexdigest()

    def held_out_digest(self) -> str:
        """SHA-256 of the names of the validation groups."""
        names = {self.samples[index].group for index in self.validation.tolist()}
        return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()

    def licences(self) -> list[str]:
        """Those of its patches, each once, with UNSTATED where some state none."""
        return sorted({sample.licence or UNSTATED for sample in self.samples})

    def label_table(self) -> Tensor:
        """Bool [M, labels]: which labels each sample trains."""
        table = torch.zeros(len(self.samples), len(self.labels), dtype=torch.bool)
        for row, sample in enumerate(self.samples):
            for label in sample.labels:
                table[row, self.labels.index(label)] = True
        return table


def read_dataset(root: Path, licences: Sequence[str], image_size: int) -> Dataset:
    """Read every patch under `root` whose licence is in `licences` (empty: all of them). Says where
    patches are copies of others. DataError or SourceError where one cannot be trained on.
    """
    samples = read_samples(root, licences)
    labels = {label for sample in samples for label in sample.labels}
    refuse_unclear_names(labels)
    read = [_sized(sample, image_size) for sample in samples]
    samples, copies = joined_copies(samples, [picture_digest(patch.image) for patch in read])
    if any(one.group != other.group for one, other in copies):
        print(f"{root}: {said_of_copies(copies)}", flush=True)
    held_out = validation_groups(samples)
    validation = torch.tensor([sample.group in held_out for sample in samples])
    return Dataset(
        samples=tuple(samples),
        images=torch.stack([torch.from_numpy(patch.image) for patch in read]),
        masks=torch.stack([torch.from_numpy(patch.mask) for patch in read]),
        instances=torch.stack([_ids(patch) for patch in read]),
        labels=tuple(sorted(labels, key=lambda label: (label.kind, label.name))),
        training=(~validation).nonzero()[:, 0],
        validation=validation.nonzero()[:, 0],
    )


def _sized(sample: Sample, size: int) -> Patch:
    patch = read_patch(sample)
    height, width = patch.mask.shape
    if (height, width) != (size, size):
        raise DataError(
            f"{sample.image}: is {width} x {height} pixels, expected {size} x {size}; python -m "
            "training.import_patches cuts larger ones"
        )
    return patch


def compared_split(checkpoint: Path, dataset: Dataset) -> str:
    """Whether the validation groups are those that the checkpoint's training held out; where they
    are not, training saw some of them and figures on them flatter. DataError on a broken file.
    """
    path = checkpoint / FACTS
    if not path.exists():
        return f"unknown whether training held them out: no {FACTS} beside the checkpoint"
    try:
        held_out = json.loads(path.read_text())["held_out_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error!r})") from error
    if held_out == dataset.held_out_digest():
        return "held out in training"
    return "NOT those that training held out: it may have seen them, so figures look too good"


def batch(
    dataset: Dataset, indices: Tensor, views: Tensor, planes: int = 1
) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] in -1..1 and masks [B, planes, H, W] in 0..1, each turned to its view.

    The second plane, where it is asked for, has the borders between nuclei. They lie where the
    dataset does; `indices` and `views` [B] lie on the CPU.
    """
    chosen = indices.to(dataset.images.device)
    images = _turned(dataset.images[chosen].permute(0, 3, 1, 2), views)
    found = dataset.masks[chosen][:, None]
    if planes > 1:
        found = torch.cat([found, _borders(dataset.instances[indices]).to(found.device)], 1)
    return images.float() / 127.5 - 1, _turned(found, views).float()


def _borders(instances: Tensor) -> Tensor:
    """Bool [B, 1, H, W] of maps [B, H, W] on the CPU."""
    return torch.from_numpy(np.stack([borders(ids.numpy()) for ids in instances]))[:, None]


def _turned(patches: Tensor, views: Tensor) -> Tensor:
    """Patches [B, C, H, W], each in its view of `views` [B]."""
    turned = torch.empty_like(patches, memory_format=torch.contiguous_format)
    for view in views.unique().tolist():
        rows = (views == view).nonzero()[:, 0].to(patches.device)
        turned[rows] = dihedral(patches[rows], view)
    return turned


def varied(images: Tensor, masks: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch as `batch` gives it, a quarter of it scaled and half in other colours and light.

    Scale, gamma, brightness and the strength of each colour stay within `SCALES`, `GAMMA`, `LIGHT`
    and `COLOUR`; grey stays grey, and what a smaller patch leaves open is its mirror image. With
    few groups of training patches a tokenizer learns their stains and scales by heart; this shows
    it others. What is drawn depends on `draws`, a generator on the CPU, alone.
    """
    scaled, tinted = torch.rand(2, len(images), generator=draws) < torch.tensor([[0.25], [0.5]])
    seen, wanted = images.clone(), masks.clone()
    for row in scaled.nonzero()[:, 0].tolist():
        seen[row], wanted[row] = _scaled(images[row], masks[row], draws)
    rows = tinted.nonzero()[:, 0].to(images.device)
    seen[rows] = _recoloured(seen[rows], draws)
    return seen, wanted


def _scaled(image: Tensor, mask: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    side = image.shape[-1]
    window = round(side / float(_between(SCALES, 1, draws)))
    both, margin = torch.cat([image, mask])[None], max(0, window - side)
    first = int(torch.randint(margin + 1, (), generator=draws))
    both = F.pad(both, (first, margin - first, first, margin - first), mode="reflect")
    y, x = torch.randint(both.shape[-1] - window + 1, (2,), generator=draws).tolist()
    both = both[..., y : y + window, x : x + window]
    seen = F.interpolate(both, size=(side, side), mode="bilinear", antialias=True)[0]
    return seen[:3], (seen[3:] > 0.5).float()


def _recoloured(images: Tensor, draws: torch.Generator) -> Tensor:
    """Images [B, 3, H, W] in -1..1, each in a light and colours of its own."""
    bounds = (GAMMA, LIGHT, COLOUR, COLOUR, COLOUR)
    drawn = torch.stack([_between(each, len(images), draws) for each in bounds], 1)
    gamma, gain, strengths = drawn[..., None, None].to(images.device).split((1, 1, 3), 1)
    light = ((images + 1) / 2).clamp(0, 1) ** gamma * gain
    grey = light.mean(1, keepdim=True)
    tinted: Tensor = grey + (light - grey) * strengths
    return tinted.clamp(0, 1) * 2 - 1


def _between(bounds: tuple[float, float], count: int, draws: torch.Generator) -> Tensor:
    """Log-uniform numbers [count]."""
    low, high = (math.log(bound) for bound in bounds)
    return torch.exp(low + (high - low) * torch.rand(count, generator=draws))


def dihedral(patch: Tensor, view: int) -> Tensor:
    """View 0..7 of [..., H, W]: view % 4 quarter turns, flipped from view 4 on."""
    turned = torch.rot90(patch, view % 4, (-2, -1))
    return turned.flip(-1) if view >= 4 else turned


def draw(pool: Tensor, seed: int, step: int, size: int) -> tuple[Tensor, Tensor]:
    """The samples and views of one training step, a pure function of (seed, step).

    Walks through `pool` in a new order each epoch. Resuming at a step therefore needs no state.
    """
    places = torch.arange(step * size, (step + 1) * size)
    chosen = []
    for epoch in (places // len(pool)).unique().tolist():
        order = torch.randperm(len(pool), generator=generator(seed, "epoch", epoch))
        chosen.append(pool[order[places[places // len(pool) == epoch] % len(pool)]])
    views = torch.randint(VIEWS, (size,), generator=generator(seed, "views", step))
    return torch.cat(chosen), views


def generator(seed: int, purpose: str, count: int) -> torch.Generator:
    """Random draws for one purpose of a run, a pure function of the arguments."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{count}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _ids(patch: Patch) -> Tensor:
    """The ids of a patch's nuclei, int16 [H, W]; the components of its mask where unknown."""
    if patch.ids is not None:
        return torch.from_numpy(patch.ids)
    return torch.from_numpy(components(patch.mask).astype(np.int16))
