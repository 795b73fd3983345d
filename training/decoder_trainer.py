"""Trains a tokenizer's image decoder against a critic, step by step; all of it can be resumed.

Encoders, codebooks and the mask decoder are frozen, so that no token changes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.tokenizer import Tokenizer
from training import critic
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
from training.tokenizer import (
    AVERAGE_LIMIT,
    COLOUR_WEIGHT,
    LPIPS_WEIGHT,
    SWAP_WEIGHT,
    channels_last,
)
from training.warm_start import Start

DECAY = 0.3
RAMP = 150
"""Steps of the decoder over which the critic's weight rises to the whole."""
CRITIC_RATE = 2e-4
CRITIC_FIRST_RATE = 1e-3
BETAS = (0.5, 0.95)
SURE = 0.9
"""Below this hinge loss the critic is far ahead, and waits."""
RATIO_EVERY = 4
RATIO_MOST = 20.0
CROP = 96
"""Pixels a side that the critic sees of a patch, at most."""


@dataclass(frozen=True)
class Options:
    """What a run is made with; all of it stands in its state.

    `origin` says which tokenizer was begun from. The critic is trained alone for `critic_steps`,
    for one that is at chance teaches noise, then both for `steps`. `weight` is the critic's,
    against L1 and LPIPS by their gradients.
    """

    origin: str
    critic_steps: int
    steps: int
    batch: int
    rate: float
    weight: float
    seed: int
    licences: tuple[str, ...]


class DecoderTrainer:
    """Everything that one training step changes."""

    def __init__(
        self, options: Options, start: Start, perceptual: Path | None, segmenter: Path | None
    ) -> None:
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
        self.critic = critic.Critic().to(self.device)
        self.critic.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.trained, options.rate, betas=BETAS)
        self.critic_optimizer = torch.optim.Adam(
            self.critic.parameters(), CRITIC_FIRST_RATE, betas=BETAS
        )
        self.lpips = Lpips(perceptual).to(self.device) if perceptual else None
        self.segmenter = load_segmenter(segmenter).to(self.device) if segmenter else None
        self.precision = precision_name(self.device)
        self.step, self.ratio, self.hinge = 0, 0.0, 2.0

    @property
    def made(self) -> int:
        """Steps of the decoder so far; below 0 while the critic is trained alone."""
        return self.step - self.options.critic_steps

    def train_step(self, images: Tensor, masks: Tensor) -> dict[str, float]:
        """One update on images [B, 3, H, W] and masks [B, P, H, W]: of the critic, and once that
        has had its first steps also of the decoder."""
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.step)
        half = len(images) // 2
        donors = torch.randperm(len(images), generator=generator)[:half].to(self.device)
        first = self.made < 0
        with torch.set_grad_enabled(not first):
            drawn, swapped = self._decoded(images, masks, donors)
        figures = self._teach_critic(images, drawn, swapped, generator)
        if not first:
            nuclei = masks[:, :1]
            others = self._swap_losses(
                swapped, nuclei[donors], images[:half], nuclei[:half], generator
            )
            figures |= self._teach_decoder(images, drawn, swapped, others, generator)
        self.step += 1
        return figures

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

    def _teach_critic(
        self, images: Tensor, drawn: Tensor, swapped: Tensor, generator: torch.Generator
    ) -> dict[str, float]:
        side = min(CROP, images.shape[-1])
        decoded = torch.cat([*crops(side, generator, drawn), *crops(side, generator, swapped)])
        (square,) = crops(side, generator, images)
        real = critic.shown(square, generator, rounded=True)
        real.requires_grad_(True)
        scores = self.critic(real)
        loss = critic.hinge(
            scores, self.critic(critic.shown(decoded.detach(), generator, rounded=True))
        )
        self.hinge = 0.9 * self.hinge + 0.1 * float(loss.detach())
        figures = {"hinge": float(loss.detach())}
        if self.made < 0 or self.hinge > SURE:
            if self.step % critic.PENALTY_EVERY == 0:
                penalty = critic.gradient_penalty(scores, real)
                loss = loss + 0.5 * critic.PENALTY_EVERY * critic.PENALTY * penalty
            check_finite("critic's loss", loss, self.step, "--weight")
            rate = CRITIC_FIRST_RATE if self.made < 0 else CRITIC_RATE
            _descend(self.critic_optimizer, loss, rate)
        return figures

    def _swap_losses(
        self, swapped: Tensor, wanted: Tensor, painters: Tensor, theirs: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:  # fmt: skip
        """That nuclei of swapped decodes are those of `wanted`, in the colours of `painters`."""
        losses = {"colour": COLOUR_WEIGHT * colour_loss(swapped, wanted, painters, theirs)}
        if self.segmenter:
            seen, nuclei = crops(swapped.shape[-1] // 2, generator, swapped, wanted)
            found = self.segmenter(looked_at(seen, self.step, generator))
            losses["swap"] = SWAP_WEIGHT * segmentation_loss(found, nuclei)
        return losses

    def _teach_decoder(
        self, images: Tensor, drawn: Tensor, swapped: Tensor, others: dict[str, Tensor],
        generator: torch.Generator,
    ) -> dict[str, float]:  # fmt: skip
        side = min(CROP, images.shape[-1])
        decoded = torch.cat([*crops(side, generator, drawn), *crops(side, generator, swapped)])
        adversarial = critic.persuasion(
            self.critic(critic.shown(decoded, generator, rounded=False))
        )
        pixels = {"l1": (drawn - images).abs().mean()}
        if self.lpips:
            seen, wanted = crops(images.shape[-1] // 2, generator, drawn, images)
            pixels["lpips"] = LPIPS_WEIGHT * self.lpips(seen, wanted).mean()
        if self.step % RATIO_EVERY == 0:
            self._balance(torch.stack(list(pixels.values())).sum(), adversarial)
        weight = self.options.weight * min(1.0, self.made / RAMP) * self.ratio
        losses = {**pixels, **others, "critic": weight * adversarial}
        total = torch.stack(list(losses.values())).sum()
        check_finite("loss", total, self.step, "--rate or --weight")
        schedule = Schedule(self.options.rate, self.options.steps, DECAY)
        _descend(self.optimizer, total, schedule.rate(self.made), self.trained)
        self._follow()
        return {name: float(loss.detach()) for name, loss in losses.items()} | {"ratio": self.ratio}

    def _balance(self, pixels: Tensor, adversarial: Tensor) -> None:
        """Weigh the critic by the ratio of both gradients at the decoder's last layer (VQGAN)."""
        layers = [m for m in self.tokenizer.image_decoder if isinstance(m, nn.Conv2d)]
        last = layers[-1].weight
        norms = [
            float(torch.autograd.grad(loss, last, retain_graph=True)[0].norm())
            for loss in (pixels, adversarial)
        ]
        ratio = min(RATIO_MOST, norms[0] / (norms[1] + 1e-6))
        self.ratio = 0.95 * self.ratio + 0.05 * ratio if self.ratio else ratio

    @torch.no_grad()
    def _follow(self) -> None:
        rate = 1 - min(AVERAGE_LIMIT, (self.made + 2) / (self.made + 21))
        for ours, theirs in zip(decoder_parameters(self.average), self.trained, strict=True):
            ours.lerp_(theirs, rate)

    def save(self, path: Path) -> None:
        """Write everything that going on needs."""
        tensors = prefixed("tokenizer", self.tokenizer.state_dict())
        tensors |= prefixed("average", self.average.state_dict())
        tensors |= prefixed("critic", self.critic.state_dict())
        tensors |= prefixed("optimizer", optimizer_tensors(self.optimizer))
        tensors |= prefixed("critic_optimizer", optimizer_tensors(self.critic_optimizer))
        meta: dict[str, object] = {"step": self.step, "ratio": self.ratio, "hinge": self.hinge}
        meta |= {"options": asdict(self.options), "precision": self.precision}
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
        self.critic.load_state_dict(under("critic", tensors))
        load_optimizer(self.optimizer, under("optimizer", tensors))
        load_optimizer(self.critic_optimizer, under("critic_optimizer", tensors))
        self.step, self.ratio, self.hinge = (meta[name] for name in ("step", "ratio", "hinge"))


def decoder_parameters(tokenizer: Tokenizer) -> list[nn.Parameter]:
    """What lies between the codes and the image, and decides no token."""
    parts = (
        tokenizer.structure_projection,
        tokenizer.appearance_projection,
        tokenizer.fusion,
        tokenizer.image_decoder,
    )
    return [tokenizer.structure_scale, *(p for part in parts for p in part.parameters())]


def _descend(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    rate: float,
    clipped: Sequence[nn.Parameter] = (),
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if clipped:
        torch.nn.utils.clip_grad_norm_(clipped, 1.0)
    optimizer.step()
