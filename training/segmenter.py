"""A small segmenter of nuclei: `python -m training.segmenter --data D --out F` trains one.

What a network trained on real patches finds in an image, against the mask that came with it, says
whether the two agree. It scores samples in reports, and on swapped streams it teaches the
tokenizer that nuclei belong to structure (docs/training.md). The network is MONAI's residual
U-Net.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from training import data as patches
from training.distributed import training_device
from training.losses import dice, segmentation_loss
from training.run import Schedule, StageError, load_tensors, save_tensors, stage

FILE = "segmenter.safetensors"
"""Its name in a checkpoint."""
WIDTH = 16
LEVELS = 4
RATE = 2e-3
DECAY = 0.5
JITTER = 0.15
BATCH = 32


def build(width: int = WIDTH) -> nn.Module:
    """An untrained network: images [B, 3, H, W] in -1..1 -> logits [B, 1, H, W].

    `width` channels at half the patch's side, twice as many at each of three coarser levels.
    """
    # Takes seconds, for it imports every network that MONAI has.
    from monai.networks.nets.unet import UNet

    return UNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=1,
        channels=[width * 2**level for level in range(LEVELS)],
        strides=[2] * (LEVELS - 1),
        num_res_units=1,
        norm="batch",
    )


def fit(
    images: Tensor,
    masks: Tensor,
    *,
    steps: int,
    seed: int,
    batch: int = 8,
    crop: int = 128,
    weights: Tensor | None = None,
    width: int = WIDTH,
) -> nn.Module:
    """Train on images uint8 [M, H, W, 3] and masks bool [M, H, W]; in eval mode.

    Each step draws `batch` patches by `weights` [M] (uniform without), and of each a random crop
    in a random dihedral view with jittered contrast and brightness. Trained on a GPU where there is
    one, and given back on the CPU, where the same arguments give the same network.
    """
    device = training_device()
    images, masks = images.to(device), masks.to(device)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = build(width).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.01)
    schedule = Schedule(RATE, steps, DECAY)
    chances = torch.ones(len(images)) if weights is None else weights
    crop = min(crop, images.shape[1])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        chosen = torch.multinomial(chances, batch, replacement=True, generator=generator)
        seen, wanted = _views(images[chosen.to(device)], masks[chosen.to(device)], crop, generator)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = network(seen)
        loss = segmentation_loss(logits.float(), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return network.cpu().eval()


@torch.no_grad()
def find(segmenter: nn.Module, images: Tensor) -> Tensor:
    """The nuclei that it finds in images [M, 3, H, W] in -1..1: bool [M, H, W], on the CPU."""
    device = next(segmenter.parameters(), images).device
    found = [segmenter(chunk.to(device))[:, 0] > 0 for chunk in images.split(BATCH)]
    return torch.cat(found).cpu()


def agreement(segmenter: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """Dice [M] of what it finds in images [M, 3, H, W] against masks bool [M, H, W]."""
    found = find(segmenter, images)
    return dice(found[:, None].float(), masks[:, None].float())


def save(segmenter: nn.Module, path: Path, width: int = WIDTH) -> None:
    """Write it in half precision."""
    tensors = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in segmenter.state_dict().items()
    }
    save_tensors(path, tensors, {"width": width})
    path.chmod(0o644)  # safetensors leaves it readable by its owner alone


def load(path: Path) -> nn.Module:
    """Inverse of `save`, in eval mode and frozen."""
    tensors, meta = load_tensors(path)
    network = build(meta["width"])
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


def digest(path: Path) -> str:
    """SHA-256 of a segmenter's file: figures of different segmenters do not compare."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def balanced(dataset: patches.Dataset, indices: Tensor) -> Tensor:
    """Chances [M] that give every modality the same share of the draws."""
    modalities = [i for i, label in enumerate(dataset.labels) if label.kind == "modality"]
    table = dataset.label_table()[indices][:, modalities].float()
    return (table / table.sum(0)).sum(1)


def _views(
    images: Tensor, masks: Tensor, crop: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random crops [B, 3, crop, crop] in -1..1 and [B, 1, crop, crop] in 0..1."""
    spare = images.shape[1] - crop + 1
    seen, wanted = [], []
    for image, mask in zip(images, masks, strict=True):
        y, x, view = (int(torch.randint(n, (), generator=generator)) for n in (spare, spare, 8))
        window = (..., slice(y, y + crop), slice(x, x + crop))
        pixels = image.permute(2, 0, 1)[window].float() / 127.5 - 1
        gain, shift = ((torch.rand(2, generator=generator) * 2 - 1) * JITTER).tolist()
        seen.append(patches.dihedral(pixels * (1 + gain) + shift, view))
        wanted.append(patches.dihedral(mask[None][window].float(), view))
    return torch.stack(seen).clamp(-1, 1), torch.stack(wanted)


def main(words: Sequence[str] | None = None) -> None:
    """Train on the training groups, print Dice on the validation groups by label, save."""
    parser = argparse.ArgumentParser(prog="python -m training.segmenter", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with patches")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--licence", action="append", default=[], help="train on these alone")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--width", type=int, default=WIDTH, help="channels at the finest level")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args(words)
    with stage("segmenter"):
        if args.steps < 1:
            raise StageError(f"--steps: got {args.steps}, expected at least 1")
        torch.set_num_threads(args.threads)
        dataset = patches.read_dataset(args.data, args.licence, args.image_size)
        training, held_out = dataset.training, dataset.validation
        segmenter = fit(
            dataset.images[training],
            dataset.masks[training],
            steps=args.steps,
            seed=args.seed,
            width=args.width,
            weights=balanced(dataset, training),
        )
        save(segmenter, args.out, args.width)
        images, masks = patches.batch(dataset, held_out, torch.zeros_like(held_out))
        scores = agreement(load(args.out), images, masks[:, 0] > 0)
        table = dataset.label_table()[held_out]
        report = {
            label.name: float(scores[table[:, i]].mean()) for i, label in enumerate(dataset.labels)
        }
        print(json.dumps({"validation_dice": report}))


if __name__ == "__main__":
    main()
