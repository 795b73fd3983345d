"""Trains a tokenizer's image decoder further, step by step; all of it can be resumed.

Encoders, codebooks and the mask decoder are frozen, so that no token changes.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.tokenizer import Tokenizer
from training.compute import autocast, precision_name
from training.distributed import training_device
from training.losses import Lpips, colour_loss, crops, looked_at, segmentation_loss
from training.run import (
    RunError,
    Schedule,
    check_finite,
    load_optimizer,
    load_tensors,
    optimizer_tensors,
    prefixed,
    said_change,
    save_tensors,
    under,
)
from training.segmenter import load as load_segmenter
from training.texture_losses import feature_loss, lattice_loss, power_loss
from training.tokenizer import (
    AVERAGE_LIMIT,
    COLOUR_WEIGHT,
    LPIPS_WEIGHT,
    SWAP_WEIGHT,
    channels_last,
)
from training.warm_start import Start

DECAY = 0.3
BETAS = (0.5, 0.95)
POWER_WEIGHT = 0.25
"""Of `power_loss`; half of it for swapped decodes, whose own texture is not known."""
LATTICE_WEIGHT = 0.15
FEATURE_WEIGHT = 0.25


@dataclass(frozen=True)
class DecoderOptions:
    """What a run is made with; all of it stands in its state. `origin` says which tokenizer was
    begun from."""

    origin: str
    steps: int
    batch: int
    rate: float
    seed: int
    licences: tuple[str, ...]


class DecoderTrainer:
    """Everything that one training step changes."""

    def __init__(
        self, options: DecoderOptions, start: Start, perceptual: Path | None,
        features: Path | None, segmenter: Path | None,
    ) -> None:  # fmt: skip
        self.options = options
        self.device = training_device()
        torch.manual_seed(options.seed)
        tokenizer = Tokenizer(start.config)
        tokenizer.load_state_dict(start.weights)
        self.tokenizer = channels_last(tokenizer.eval().requires_grad_(False), self.device)
        self.average = copy.deepcopy(self.tokenizer)
        self.trained = decoder_parameters(self.tokenizer)
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.trained, options.rate, betas=BETAS)
        self.lpips = Lpips(perceptual).to(self.device) if perceptual else None
        self.features = feature_loss(features) if features else None
        self.segmenter = load_segmenter(segmenter).to(self.device) if segmenter else None
        self.precision = precision_name(self.device)
        self.step = 0

    def train_step(self, images: Tensor, masks: Tensor) -> dict[str, float]:
        """One update on images [B, 3, H, W] and masks [B, P, H, W]."""
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.step)
        half = len(images) // 2
        donors = torch.randperm(len(images), generator=generator)[:half].to(self.device)
        drawn, swapped = self._decoded(images, masks, donors)
        nuclei = masks[:, :1]
        losses = self._own_losses(drawn, images, generator)
        losses |= self._swap_losses(
            swapped, nuclei[donors], images[:half], nuclei[:half], generator
        )
        total = torch.stack(list(losses.values())).sum()
        check_finite("loss", total, self.step, "--rate")
        rate = Schedule(self.options.rate, self.options.steps, DECAY).rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self._follow()
        self.step += 1
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def _decoded(self, images: Tensor, masks: Tensor, donors: Tensor) -> tuple[Tensor, Tensor]:
        """Decodes of the patches' own tokens [B, ...], and of half of them with other structure."""
        with autocast(self.device):
            with torch.no_grad():
                structure, appearance = self.tokenizer.encode(images, masks)
                given = self.tokenizer.structure_codebook.look_up(structure)
                seen = self.tokenizer.appearance_codebook.look_up(appearance)
            both = self.tokenizer.decode_image(
                torch.cat([given, given[donors]]), torch.cat([seen, seen[: len(donors)]])
            ).float()
        return both[: len(images)], both[len(images) :]

    def _own_losses(
        self, drawn: Tensor, images: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Of decodes of the patches' own tokens."""
        losses = {
            "l1": (drawn - images).abs().mean(),
            "power": POWER_WEIGHT * power_loss(drawn, images),
            "lattice": LATTICE_WEIGHT * self._lattice(drawn, images),
        }
        if self.lpips:
            seen, wanted = crops(images.shape[-1] // 2, generator, drawn, images)
            losses["lpips"] = LPIPS_WEIGHT * self.lpips(seen, wanted).mean()
        if self.features:
            losses["features"] = FEATURE_WEIGHT * self.features(drawn, images)
        return losses

    def _lattice(self, drawn: Tensor, images: Tensor) -> Tensor:
        return lattice_loss(drawn, images, self.tokenizer.config.downsample)

    def _swap_losses(
        self, swapped: Tensor, wanted: Tensor, painters: Tensor, theirs: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:  # fmt: skip
        """That nuclei of swapped decodes are those of `wanted`, in the colours and the texture of
        `painters`."""
        power = power_loss(swapped, painters, by_place=False)
        losses = {
            "colour": COLOUR_WEIGHT * colour_loss(swapped, wanted, painters, theirs),
            "swap_power": POWER_WEIGHT / 2 * power,
            "swap_lattice": LATTICE_WEIGHT * self._lattice(swapped, painters),
        }
        if self.segmenter:
            seen, nuclei = crops(swapped.shape[-1] // 2, generator, swapped, wanted)
            found = self.segmenter(looked_at(seen, self.step, generator))
            losses["swap"] = SWAP_WEIGHT * segmentation_loss(found, nuclei)
        return losses

    @torch.no_grad()
    def _follow(self) -> None:
        rate = 1 - min(AVERAGE_LIMIT, (self.step + 2) / (self.step + 21))
        for ours, theirs in zip(decoder_parameters(self.average), self.trained, strict=True):
            ours.lerp_(theirs, rate)

    def save(self, path: Path) -> None:
        """Write everything that going on needs."""
        tensors = prefixed("tokenizer", self.tokenizer.state_dict())
        tensors |= prefixed("average", self.average.state_dict())
        tensors |= prefixed("optimizer", optimizer_tensors(self.optimizer))
        meta = {"step": self.step, "options": asdict(self.options), "precision": self.precision}
        save_tensors(path, tensors, meta)

    def load(self, path: Path) -> None:
        """Inverse of `save`; RunError where the run was begun in another way."""
        tensors, meta = load_tensors(path)
        held = meta["options"] | {"licences": tuple(meta["options"]["licences"])}
        for name, value in asdict(self.options).items():
            if held[name] != value:
                raise RunError(
                    f"{path}: was started with {name} {held[name]!r}, now it is {value!r}"
                )
        said_change(path, meta, self.precision)
        self.tokenizer.load_state_dict(under("tokenizer", tensors))
        self.average.load_state_dict(under("average", tensors))
        load_optimizer(self.optimizer, under("optimizer", tensors))
        self.step = meta["step"]


def decoder_parameters(tokenizer: Tokenizer) -> list[nn.Parameter]:
    """What lies between the codes and the image, and decides no token."""
    parts = (
        tokenizer.structure_projection,
        tokenizer.appearance_projection,
        tokenizer.fusion,
        tokenizer.image_decoder,
    )
    return [tokenizer.structure_scale, *(p for part in parts for p in part.parameters())]
