"""Patches with masks from a folder: samples, labels, split by group, batches with dihedral views.

Reads either a `manifest.csv` (columns image, mask, modality, organ, group, licence, and instances
where they are known) or plain `<label>/images/` + `<label>/masks/` folders. Knows no network.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from model.instances import borders, components
from model.request import Label
from training.run import StageError

SPLIT = "split.json"
"""In a checkpoint's folder: a digest of the groups that its training held out."""
UNSTATED = "unstated"
"""The licence of what states none."""
VALIDATION_SHARE = 0.12
VIEWS = 8
"""Dihedral views of a patch: four quarter turns, each with and without a flip."""
DEEP = "IF"
"""First letters of Pillow's modes of one channel with more than 8 bits."""
DEEP_WHITE = 65535
SCALES = (0.75, 1.35)
GAMMA = (0.75, 1.35)
LIGHT = (0.85, 1.15)
COLOUR = (0.7, 1.4)


class DataError(StageError):
    """A data folder that cannot be trained on; the sentence names the file."""


@dataclass(frozen=True)
class Sample:
    """One patch. `group` names its original image: a group is never split. `instances` is the map
    of its nuclei's ids, where there is one."""

    image: Path
    mask: Path
    labels: tuple[Label, ...]
    group: str
    licence: str
    instances: Path | None = None


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
    """Read every patch under `root` whose licence is in `licences` (empty: all of them)."""
    samples = read_samples(root, licences)
    labels = {label for sample in samples for label in sample.labels}
    refuse_shared_names(labels)
    held_out = validation_groups(samples)
    validation = torch.tensor([sample.group in held_out for sample in samples])
    masks = torch.stack([_read_mask(s.mask, image_size) for s in samples])
    return Dataset(
        samples=tuple(samples),
        images=torch.stack([_read_image(s.image, image_size) for s in samples]),
        masks=masks,
        instances=torch.stack(
            [_read_instances(*each) for each in zip(samples, masks, strict=True)]
        ),
        labels=tuple(sorted(labels, key=lambda label: (label.kind, label.name))),
        training=(~validation).nonzero()[:, 0],
        validation=validation.nonzero()[:, 0],
    )


def read_samples(root: Path, licences: Sequence[str]) -> list[Sample]:
    """What is listed under `root` under one of `licences` (empty: all of it), pixels unread."""
    listed = read_manifest(root) if (root / "manifest.csv").exists() else read_folders(root)
    samples = [s for s in listed if not licences or s.licence in licences]
    if not samples:
        there = sorted({sample.licence or UNSTATED for sample in listed})
        raise DataError(f"{root}: no patches with licence in {list(licences)}, there are {there}")
    return samples


def read_manifest(root: Path) -> list[Sample]:
    """The samples that `root/manifest.csv` lists; paths in it are relative to `root`."""
    samples = []
    with (root / "manifest.csv").open(newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                samples.append(_manifest_sample(root, row))
            except KeyError as error:
                raise DataError(f"manifest.csv line {line}: no column {error}") from error
    return samples


def read_folders(root: Path) -> list[Sample]:
    """Samples of `root/<label>/images/*.png` with masks of the same name in `masks/`."""
    samples = []
    for image in sorted(root.glob("*/images/*.png")):
        mask = image.parent.parent / "masks" / image.name
        if not mask.exists():
            raise DataError(f"{image}: has no mask {mask.relative_to(root)}")
        label = Label(image.parent.parent.name, "modality")
        samples.append(Sample(image, mask, (label,), f"{label.name}/{image.stem}", ""))
    if not samples:
        raise DataError(f"{root}: has neither a manifest.csv nor <label>/images/*.png")
    return samples


def refuse_shared_names(labels: Collection[Label]) -> None:
    """DataError where two labels have one name: by it alone a label is asked for and reported."""
    names = [label.name for label in labels]
    for name in sorted(names):
        if names.count(name) > 1:
            raise DataError(f"{name}: is both a modality and an organ, expected two names")


def validation_groups(samples: Sequence[Sample]) -> set[str]:
    """About an eighth of the groups of every set of labels, the same ones on every run."""
    groups: dict[tuple[Label, ...], set[str]] = defaultdict(set)
    for sample in samples:
        groups[sample.labels].add(sample.group)
    held_out: set[str] = set()
    for names in groups.values():
        ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        if len(ranked) > 1:
            held_out.update(ranked[: max(1, round(VALIDATION_SHARE * len(ranked)))])
    return held_out


def compared_split(checkpoint: Path, dataset: Dataset) -> str:
    """Whether the validation groups are those that the checkpoint's training held out; where they
    are not, training saw some of them and figures on them flatter. DataError on a broken file.
    """
    path = checkpoint / SPLIT
    if not path.exists():
        return f"unknown whether training held them out: no {SPLIT} beside the checkpoint"
    try:
        held_out = json.loads(path.read_text())["held_out_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error!r})") from error
    if held_out == dataset.held_out_digest():
        return "held out in training"
    return "NOT those that training held out: it may have seen them, and figures flatter"


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


def _manifest_sample(root: Path, row: dict[str, str]) -> Sample:
    labels = [Label(row["modality"], "modality")] if row["modality"] else []
    if row["organ"]:
        labels.append(Label(row["organ"], "organ"))
    listed = row.get("instances")
    return Sample(
        root / row["image"], root / row["mask"], tuple(labels), row["group"], row["licence"],
        root / listed if listed else None,
    )  # fmt: skip


def _read_image(path: Path, size: int) -> Tensor:
    mode, pixels = _pixels(path, size)
    if mode[0] in DEEP:
        raise DataError(f"{path}: has mode {mode}, expected 8 bits a channel")
    return torch.from_numpy(pixels)


def _read_mask(path: Path, size: int) -> Tensor:
    """Bool [H, W]: white. Any other value than black and white could mean anything: DataError."""
    _, pixels = _pixels(path, size)
    white = DEEP_WHITE if pixels.max() == DEEP_WHITE else 255
    nuclei = (pixels == white).all(-1)
    others = pixels[(pixels != 0).any(-1) & ~nuclei]
    if len(others):
        red, green, blue = value = others[0].tolist()
        shown = red if red == green == blue else value
        raise DataError(
            f"{path}: has pixels of {shown}, expected 0 and 255 alone; masks with numbered or "
            "coloured nuclei are read by python -m training.import_patches folders"
        )
    return torch.from_numpy(nuclei)


def _read_instances(sample: Sample, mask: Tensor) -> Tensor:
    """Int16 [H, W]: the nuclei of a sample, numbered from 1 by rising id."""
    if sample.instances is None:
        return torch.from_numpy(components(mask.numpy()).astype(np.int16))
    _, pixels = _pixels(sample.instances, mask.shape[0])
    held, places = np.unique(pixels[..., 0], return_inverse=True)
    ids = torch.from_numpy((places + (held[0] != 0)).astype(np.int16).reshape(mask.shape))
    if not torch.equal(ids > 0, mask):
        raise DataError(
            f"{sample.instances}: has other nuclei than {sample.mask}, expected ids above 0 in "
            "white pixels of the mask and 0 elsewhere"
        )
    return ids


def _pixels(path: Path, size: int) -> tuple[str, np.ndarray]:
    """The mode of a picture and its pixels [H, W, 3], as they are where the mode is deep.

    Pillow would clip deep ones to 255: a dim image would come out white, and so would numbers.
    """
    try:
        with Image.open(path) as file:
            deep = file.mode[0] in DEEP
            pixels = np.array(file if deep else file.convert("RGB"))
            mode = file.mode
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'is no picture'}") from error
    if pixels.shape[:2] != (size, size):
        height, width = pixels.shape[:2]
        raise DataError(f"{path}: is {width} x {height} pixels, expected {size} x {size}")
    return mode, np.repeat(pixels[..., None], 3, 2) if deep else pixels
