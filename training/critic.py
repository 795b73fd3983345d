"""A critic that tells real patches from decoded ones, and how it is trained.

It judges squares of 13 to 34 pixels in three maps: hinge loss (Lim and Ye 2017), R1 penalty
(Mescheder et al. 2018) against winning outright.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOISE = 0.02
"""Deviation of the noise in all that it sees, of images in -1..1: decoded pixels lie on no grid of
8 bits and have less noise than real ones, which alone would give them away."""
DETAIL = 6.0
"""How much stronger it sees a patch's difference from its 4 pixel average: on plain pixels it
stayed at chance."""
PENALTY = 0.03
"""Weight of R1: at 1 the critic stayed at chance, without it won and taught nothing."""
PENALTY_EVERY = 3
SLOPE = 0.2


def _down(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(SLOPE)]


def _level(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(SLOPE)]


class Critic(nn.Module):
    """Images [B, 3, H, W] in -1..1 -> three maps of scores [B, 1, h, w], above 0 for real.

    `width` channels at half the side; all levels are convolutions, so any side will do.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.near = nn.Sequential(*_down(6, width), *_down(width, 2 * width))
        self.far = nn.Sequential(*_down(2 * width, 3 * width), *_level(3 * width, 3 * width))
        fine, narrow = width // 2, width * 2 // 3
        self.fine = nn.Sequential(
            *_level(6, fine), *_down(fine, narrow), *_level(narrow, narrow),
            nn.Conv2d(narrow, 1, 3, padding=1),
        )  # fmt: skip
        self.of_near = nn.Conv2d(2 * width, 1, 3, padding=1)
        self.of_far = nn.Conv2d(3 * width, 1, 3, padding=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The three maps."""
        coarse = F.interpolate(F.avg_pool2d(images, 4), scale_factor=4, mode="bilinear")
        seen = torch.cat([images, DETAIL * (images - coarse)], 1)
        near = self.near(seen)
        return [self.of_near(near), self.of_far(self.far(near)), self.fine(seen)]


def shown(images: Tensor, generator: torch.Generator, *, rounded: bool) -> Tensor:
    """What the critic is shown of images in -1..1: with noise, and rounded to 8 bits where no
    gradient has to pass."""
    if rounded:
        images = ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    return images + NOISE * torch.randn(images.shape, generator=generator).to(images.device)


def hinge(real: list[Tensor], drawn: list[Tensor]) -> Tensor:
    """The critic's loss; 2 at chance with scores of 0, 0 where it is sure and right."""
    each = [F.relu(1 - a).mean() + F.relu(1 + b).mean() for a, b in zip(real, drawn, strict=True)]
    return torch.stack(each).mean()


def persuasion(drawn: list[Tensor]) -> Tensor:
    """The decoder's loss: it falls as its images' scores rise."""
    return -torch.stack([scores.mean() for scores in drawn]).mean()


def gradient_penalty(real: list[Tensor], images: Tensor) -> Tensor:
    """R1: the mean squared gradient of the scores by the real images that they were given to."""
    total = torch.stack([scores.mean((1, 2, 3)).sum() for scores in real]).sum()
    (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()
