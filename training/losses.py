"""Losses and figures of reconstruction: LPIPS, Dice, PSNR.

LPIPS (Zhang et al. 2018) is computed here from AlexNet's features and the published linear heads of
the package `lpips`. Only that package's data file is read: its code imports torchvision, whose
registry build does not load beside torch's CPU build.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from training.run import StageError

CONVOLUTIONS = (
    (0, 3, 64, 11, 4, 2),
    (3, 64, 192, 5, 1, 2),
    (6, 192, 384, 3, 1, 1),
    (8, 384, 256, 3, 1, 1),
    (10, 256, 256, 3, 1, 1),
)
POOLED = (3, 6)
"""AlexNet's convolutions (torchvision's index, channels in and out, kernel, stride, padding)
and those that a 3 x 3 max-pool precedes."""
LOOK_NOISE = 0.03
"""Deviation of the noise that teaching networks look through, of images in -1..1."""


class PerceptualError(StageError):
    """The perceptual loss cannot be built; the sentence says what is missing."""


class Lpips(nn.Module):
    """LPIPS-AlexNet. Call with images [B, 3, H, W] in -1..1; gives distances [B], on the images'
    device, wherever it lies itself.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: Path) -> None:
        super().__init__()
        try:
            weights = load_file(backbone)
        except (OSError, SafetensorError) as error:
            raise PerceptualError(f"{backbone}: cannot be read ({error})") from error
        needed = [f"features.{i}.{kind}" for i, *_ in CONVOLUTIONS for kind in ("weight", "bias")]
        if absent := [name for name in needed if name not in weights]:
            raise PerceptualError(
                f"{backbone}: holds no {absent[0]}, expected torchvision's AlexNet features"
            )
        self.convolutions = nn.ModuleDict()
        for index, inputs, outputs, kernel, stride, padding in CONVOLUTIONS:
            conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
            names = {"weight": f"features.{index}.weight", "bias": f"features.{index}.bias"}
            conv.load_state_dict({key: weights[name].float() for key, name in names.items()})
            self.convolutions[str(index)] = conv
        for number, head in enumerate(_heads()):
            self.register_buffer(f"head{number}", head)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def features(self, images: Tensor) -> list[Tensor]:
        """Five feature maps, each of unit length along channels."""
        x, maps = (images - self.shift) / self.scale, []
        for index, conv in self.convolutions.items():
            if int(index) in POOLED:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(conv(x))
            maps.append(_unit(x.float()))
        return maps

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Distances [B]; no gradient flows into `target`."""
        with torch.no_grad():
            wanted = self.features(target.to(self.shift.device))
        total = torch.zeros(len(images), device=self.shift.device)
        found = self.features(images.to(self.shift.device))
        for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
            weighted = (a - b).square() * getattr(self, f"head{number}")
            total = total + weighted.sum(1).mean((1, 2))
        return total.to(images.device)


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt()


def _heads() -> list[Tensor]:
    spec = importlib.util.find_spec("lpips")
    if spec is None or not spec.submodule_search_locations:
        raise PerceptualError(
            "the perceptual loss needs the package lpips: pip install --no-deps lpips"
        )
    path = Path(spec.submodule_search_locations[0]) / "weights" / "v0.1" / "alex.pth"
    # The installed package's own file, of tensors alone.
    heads = torch.load(path, map_location="cpu", weights_only=True)
    return [heads[f"lin{number}.model.1.weight"].float() for number in range(5)]


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """BCE + Dice of logits against masks in 0..1, [B, 1, H, W] each."""
    return F.binary_cross_entropy_with_logits(logits, masks) + dice_loss(logits.sigmoid(), masks)


def colour_loss(images: Tensor, masks: Tensor, others: Tensor, their_masks: Tensor) -> Tensor:
    """L1 between the mean colours of nuclei, and of what lies around them, in two batches.

    Images [B, 3, H, W], masks [B, 1, H, W] in 0..1. A patch without nuclei has no colour of
    nuclei and counts for nothing there.
    """
    total = torch.zeros((), device=images.device)
    for inside, theirs in ((masks, their_masks), (1 - masks, 1 - their_masks)):
        present = ((inside.sum((2, 3)) > 0) & (theirs.sum((2, 3)) > 0)).float()
        gap = (_region_mean(images, inside) - _region_mean(others, theirs)).abs()
        total = total + (gap * present).mean()
    return total


def _region_mean(images: Tensor, region: Tensor) -> Tensor:
    return (images * region).sum((2, 3)) / region.sum((2, 3)).clamp_min(1)


def dice_loss(probability: Tensor, mask: Tensor) -> Tensor:
    """1 - soft Dice, mean over the batch; [B, 1, H, W] each."""
    return 1 - dice(probability, mask).mean()


def dice(prediction: Tensor, mask: Tensor) -> Tensor:
    """Dice of each patch [B]; one empty patch drawn empty counts as 1."""
    overlap = (prediction * mask).sum((1, 2, 3))
    total = prediction.sum((1, 2, 3)) + mask.sum((1, 2, 3))
    return (2 * overlap + 1) / (total + 1)


def overlap(found: Tensor, masks: Tensor) -> Tensor:
    """Dice [B] of the nuclei found against masks, bool [B, H, W] each; NaN where both are empty,
    for nothing can be found there. Means leave those out (`nanmean`) and say how many they are of.
    """
    scores = dice(found[:, None].float(), masks[:, None].float())
    nothing = ~(found | masks).any((1, 2)) if len(found) else torch.zeros(0, dtype=torch.bool)
    return scores.masked_fill(nothing, math.nan)


def psnr(images: Tensor, target: Tensor) -> Tensor:
    """Peak signal to noise ratio of each patch [B] in dB; both in -1..1."""
    error = (images - target).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


def structure_losses(logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Of mask logits [B, P, H, W] against masks in 0..1: `bce` and `dice` of nuclei and, where
    there are borders, `border_bce` and half of `border_dice`, over all patches as one: many patches
    have no border."""
    losses = {
        "bce": F.binary_cross_entropy_with_logits(logits[:, :1], masks[:, :1]),
        "dice": dice_loss(logits[:, :1].sigmoid(), masks[:, :1]),
    }
    if masks.shape[1] > 1:
        found, wanted = logits[:, 1:], masks[:, 1:]
        overlap, total = (found.sigmoid() * wanted).sum(), found.sigmoid().sum() + wanted.sum()
        losses["border_bce"] = F.binary_cross_entropy_with_logits(found, wanted)
        losses["border_dice"] = (1 - (2 * overlap + 1) / (total + 1)) / 2
    return losses


def blurred(images: Tensor) -> Tensor:
    """Images [B, C, H, W] under a binomial 3 x 3 window."""
    steps = torch.tensor([0.25, 0.5, 0.25], device=images.device, dtype=images.dtype)
    window = (steps[:, None] * steps).expand(images.shape[1], 1, 3, 3)
    edged = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(edged, window, groups=images.shape[1])


def looked_at(images: Tensor, step: int, generator: torch.Generator) -> Tensor:
    """Images [B, C, H, W] in -1..1 as a network that teaches a decoder is given them: with noise
    and, every other step, blurred. Seen plainly, it is soon shown a pattern of single pixels that
    only it takes for nuclei."""
    seen = blurred(images.float()) if step % 2 else images.float()
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return (seen + LOOK_NOISE * noise).clamp(-1, 1)


def crops(part: int, generator: torch.Generator, *images: Tensor) -> list[Tensor]:
    """One random square, `part` pixels a side, of each of `images` [..., H, W], the same of all."""
    side = images[0].shape[-1]
    y, x = torch.randint(side - part + 1, (2,), generator=generator).tolist()
    return [image[..., y : y + part, x : x + part] for image in images]
