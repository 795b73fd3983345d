"""A small segmenter of nuclei: `python -m training.segmenter --data D --out F` trains one.

The segmenter is trained on real patches. It finds nuclei in an image; if they match the mask, image
and mask agree. It scores samples in reports. On swapped streams it teaches the tokenizer that
nuclei belong to structure (docs/training.md). The network is MONAI's residual U-Net. If the command
is killed, run it again: it resumes from the last state.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.processors import default_threads
from model.segmenter import FILE as FILE
from training import data as patches
from training.compute import autocast, precision_name, use_threads
from training.distributed import training_device
from training.losses import overlap, segmentation_loss
from training.run import (
    ProgressLog,
    Saves,
    Schedule,
    StageError,
    check_finite,
    drop_state,
    load_optimizer,
    load_tensors,
    optimizer_tensors,
    prefixed,
    said_change,
    save_tensors,
    stage,
    state_beside,
    try_to_write,
    under,
)

WIDTH = 16
LEVELS = 4
RATE = 2e-3
DECAY = 0.5
JITTER = 0.15
BATCH = 32
DRAWN = 8
"""Patches a step."""
CROP = 128
"""Pixels on a side that a step sees of each, of larger patches."""


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


@dataclass(frozen=True)
class SegmenterOptions:
    """What a segmenter is trained with, beside its patches."""

    steps: int
    seed: int
    width: int = WIDTH
    rate: float = RATE


class SegmenterTrainer:
    """Everything that one training step changes, on images uint8 [M, H, W, 3], masks bool
    [M, H, W] and the `chances` [M] that each is drawn by (equal without).

    Each step draws patches, and of each a random crop in a random dihedral view with jittered
    contrast and brightness: a pure function of seed and step.
    """

    def __init__(
        self,
        options: SegmenterOptions,
        images: Tensor,
        masks: Tensor,
        chances: Tensor | None = None,
    ) -> None:
        self.options = options
        self.device = training_device()
        self.precision = precision_name(self.device)
        self.images, self.masks = images.to(self.device), masks.to(self.device)
        self.chances = torch.ones(len(images)) if chances is None else chances
        torch.manual_seed(options.seed)
        self.network = build(options.width).to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        parameters = self.network.parameters()
        self.optimizer = torch.optim.AdamW(parameters, options.rate, weight_decay=0.01)
        self.step = 0

    def train(
        self, progress: ProgressLog, state: Path | None = None, patches_sha256: str = ""
    ) -> None:
        """The steps that are left; where there is a `state`, kept there every minute."""
        saves = Saves()
        while self.step < self.options.steps:
            progress.add({"loss": self.train_step()})
            if progress.due(self.step):
                progress.report(self.step, self.options.steps, DRAWN)
            if state and (saves.due() or self.step == self.options.steps):
                self.save(state, patches_sha256)
                saves.done()

    def train_step(self) -> float:
        """One update; its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = Schedule(self.options.rate, self.options.steps, DECAY).rate(self.step)
        draws = patches.generator(self.options.seed, "segmenter", self.step)
        chosen = torch.multinomial(self.chances, DRAWN, replacement=True, generator=draws)
        chosen = chosen.to(self.device)
        seen, wanted = _views(self.images[chosen], self.masks[chosen], draws)
        with autocast(self.device):
            logits = self.network(seen)
        loss = segmentation_loss(logits.float(), wanted)
        lower = f"--rate, now {self.options.rate:g} (--segmenter-rate of training.train)"
        check_finite("loss", loss, self.step, lower)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def save(self, path: Path, patches_sha256: str) -> None:
        """Write everything that going on needs; `patches_sha256` is the digest of its patches."""
        tensors = prefixed("network", self.network.state_dict())
        tensors |= prefixed("optimizer", optimizer_tensors(self.optimizer))
        meta = {"step": self.step, "options": asdict(self.options), "patches": patches_sha256}
        save_tensors(path, tensors, meta | {"precision": self.precision})

    def resume(self, path: Path, patches_sha256: str) -> None:
        """Go on from a state where there is one of the same options and patches."""
        if not path.exists():
            return
        tensors, meta = load_tensors(path)
        if (meta["options"], meta["patches"]) != (asdict(self.options), patches_sha256):
            print(f"segmenter: {path} has other settings or patches, so it is not used", flush=True)
            return
        said_change(path, meta, self.precision)
        self.network.load_state_dict(under("network", tensors))
        load_optimizer(self.optimizer, under("optimizer", tensors))
        self.step = meta["step"]

    def trained(self) -> nn.Module:
        """The network on the CPU, in eval mode."""
        return self.network.cpu().eval()


def fit(
    images: Tensor,
    masks: Tensor,
    *,
    steps: int,
    seed: int,
    weights: Tensor | None = None,
) -> nn.Module:
    """A network trained on images uint8 [M, H, W, 3] and masks bool [M, H, W], each drawn by
    `weights` [M]; in eval mode on the CPU, where the same arguments give the same network."""
    trainer = SegmenterTrainer(SegmenterOptions(steps, seed), images, masks, weights)
    trainer.train(ProgressLog(None, "segmenter", every=0))
    return trainer.trained()


@torch.no_grad()
def find(segmenter: nn.Module, images: Tensor) -> Tensor:
    """The nuclei that it finds in images [M, 3, H, W] in -1..1: bool [M, H, W], on the CPU."""
    device = next(segmenter.parameters(), images).device
    found = [segmenter(chunk.to(device))[:, 0] > 0 for chunk in images.split(BATCH)]
    return torch.cat(found).cpu()


def agreement(segmenter: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """Dice [M] of what it finds in images [M, 3, H, W] against masks bool [M, H, W]."""
    found = find(segmenter, images)
    return overlap(found, masks)


def _mean(scores: Tensor) -> float | None:
    """Of the patches with nuclei; None where there are none."""
    known = scores[~scores.isnan()]
    return float(known.mean()) if len(known) else None


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


def _views(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random crops [B, 3, CROP, CROP] in -1..1 and [B, 1, CROP, CROP] in 0..1, or whole patches
    where those are smaller."""
    crop = min(CROP, images.shape[1])
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
    """Parse and train."""
    parser = argparse.ArgumentParser(prog="python -m training.segmenter", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with patches")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--licence", action="append", default=[], help="train only on these")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=RATE, help="peak learning rate")
    parser.add_argument("--width", type=int, default=WIDTH, help="channels at the finest level")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=default_threads())
    args = parser.parse_args(words)
    with stage("segmenter"):
        for name in ("steps", "threads"):
            if getattr(args, name) < 1:
                raise StageError(f"--{name}: got {getattr(args, name)}, expected at least 1")
        if args.out.is_dir():
            raise StageError(f"--out: {args.out} is a folder, expected a file to write")
        try_to_write("--out", args.out.parent)
        use_threads(args.threads)
        dataset = patches.read_dataset(args.data, args.licence, args.image_size)
        options = SegmenterOptions(args.steps, args.seed, args.width, args.rate)
        train(dataset, options, args.out)


def train(dataset: patches.Dataset, options: SegmenterOptions, out: Path) -> None:
    """Train on the training groups, save, print Dice on the validation groups by label.

    Until that is printed a state stands beside `out`, from which the same command goes on.
    """
    training, held_out = dataset.training, dataset.validation
    chances = balanced(dataset, training)
    trainer = SegmenterTrainer(options, dataset.images[training], dataset.masks[training], chances)
    state, patches_sha256 = state_beside(out), dataset.digest()
    trainer.resume(state, patches_sha256)
    print(
        f"segmenter: {len(training)} training and {len(held_out)} validation patches, from step "
        f"{trainer.step}",
        flush=True,
    )
    trainer.train(ProgressLog(None, "segmenter"), state, patches_sha256)
    save(trainer.trained(), out, options.width)
    print(f"segmenter: scoring {len(held_out)} validation patches", flush=True)
    images, masks = patches.batch(dataset, held_out, torch.zeros_like(held_out))
    scores = agreement(load(out), images, masks[:, 0] > 0)
    table = dataset.label_table()[held_out]
    by_label = {label.name: scores[table[:, i]] for i, label in enumerate(dataset.labels)}
    report = {name: _mean(of) for name, of in by_label.items()}
    empty = {name: n for name, of in by_label.items() if (n := int(of.isnan().sum()))}
    said = {"validation_dice": report} | ({"empty_in_both": empty} if empty else {})
    print(json.dumps(said), flush=True)
    drop_state(state)


if __name__ == "__main__":
    main()
