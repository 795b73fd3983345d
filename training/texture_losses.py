"""Losses of texture: the power of local spectra, a lattice, and maps of a network that recognises.

L1 favours the mean of everything that a token could stand for. That mean is soft, and what is left
of it repeats from token to token. These losses compare how much there is of each frequency, not
where its crests lie, and what a network sees in the patch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training.networks import imagenet, mobilenet_maps, read_graph

WINDOW = 32
"""Pixels a side of the squares whose spectra are taken; they overlap by half."""
REGION = 5
"""Squares a side over which power is averaged: 96 pixels."""
FLOOR = (1.5 / 127.5) ** 2
"""Power that is nothing: noise of 1.5 grey levels, of images in -1..1."""
LOWEST = 0.04
"""Cycles a pixel from which on frequencies count, each by 1 / frequency: octaves count alike."""
MARGIN = 0.1
"""What a peak of a lattice may have over its neighbours, in log power, beside the real one's."""
NEIGHBOURS = (-3, -2, -1, 1, 2, 3)


def power_loss(images: Tensor, wanted: Tensor, *, by_place: bool = True) -> Tensor:
    """The mean |log ratio| of the power by frequency of images and `wanted`, [B, 3, H, W] each in
    -1..1, H >= WINDOW; of regions, or without `by_place` of whole patches.

    Of a patch drawn anew with the texture of another, only the whole can be asked for.
    """
    gap = (_log_power(images, by_place) - _log_power(wanted, by_place)).abs()
    weights = _weights().to(gap.device)
    return (gap * weights[:, None, None]).sum(1).mean()


def _log_power(images: Tensor, by_place: bool) -> Tensor:
    """[B, 3, H, W] -> log power [3 B, frequencies, regions, regions]."""
    window = torch.hann_window(WINDOW, device=images.device)
    window = window[:, None] * window
    squares = images.float().unfold(2, WINDOW, WINDOW // 2).unfold(3, WINDOW, WINDOW // 2)
    squares = squares - squares.mean((-1, -2), keepdim=True)
    power = torch.fft.rfft2(squares * window / window.norm()).abs().square()
    power = power.flatten(4).permute(0, 1, 4, 2, 3).flatten(0, 1)
    size = min(REGION, power.shape[-1]) if by_place else power.shape[-1]
    mean: Tensor = F.avg_pool2d(power, size)
    return (mean + FLOOR).log()


def _weights() -> Tensor:
    """The weight of each frequency of `_log_power`; their sum is 1."""
    rows, columns = torch.fft.fftfreq(WINDOW), torch.fft.rfftfreq(WINDOW)
    frequency = (rows[:, None].square() + columns.square()).sqrt().flatten()
    counts = (frequency > LOWEST) & (frequency <= 0.5)
    weights: Tensor = counts / frequency.clamp_min(LOWEST)
    return weights / weights.sum()


def lattice_loss(images: Tensor, wanted: Tensor, period: int) -> Tensor:
    """How far peaks of the spectrum at multiples of 1 / `period` pixels (one token's side) stand
    out further in images than in `wanted`, [B, 3, H, H] each: the mean excess of log ratios."""
    excess = _peaks(images, period) - _peaks(wanted, period).clamp_min(0)
    return F.relu(excess - MARGIN).mean()


def _peaks(images: Tensor, period: int) -> Tensor:
    """Log ratios of the power of rows and columns at the peaks to the mean beside them."""
    grey = images.float().mean(1)
    lines = torch.cat([grey, grey.transpose(1, 2)])
    lines = lines - lines.mean(2, keepdim=True)
    power = torch.fft.rfft(lines, dim=2).abs().square().mean((0, 1)) + FLOOR
    places = torch.arange(1, period // 2, device=images.device) * (images.shape[-1] // period)
    # What is beside a peak is measured, not moved: raising it would hide the peak.
    beside = torch.stack([power[places + step] for step in NEIGHBOURS]).mean(0).detach()
    ratios: Tensor = (power[places] / beside).log()
    return ratios


def feature_loss(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss between images and `wanted`, [B, 3, H, W] each in -1..1, on MobileNetV2's weights:
    squared differences of its maps, each relative to the map's mean square, and of the means of its
    last one, relative to their variance in the batch (after Johnson et al. 2016). No gradient flows
    into `wanted`. FeatureError where the file does not hold that network."""
    maps = read_graph(path, mobilenet_maps, 64, spare=("classifier.",))

    def loss(images: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            sought = maps(imagenet(wanted))
        found = maps(imagenet(images))
        total = torch.zeros((), device=images.device)
        for ours, theirs in zip(found, sought, strict=True):
            total = total + (ours - theirs).square().mean() / (theirs.square().mean() + 1e-6)
        ours, theirs = found[-1].mean((2, 3)), sought[-1].mean((2, 3))
        spread = (theirs - theirs.mean(0)).square().mean()
        return total + (ours - theirs).square().mean() / (spread + 1e-6)

    return loss
