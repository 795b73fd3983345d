"""Traces that a decoder leaves in its pictures and real patches lack: lattice, checkerboard, blur.

All are taken on grey pictures, the mean of the channels, by FFT along rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from training.evaluation.metric import Metric

PERIODS = (8.0, 16 / 3)
"""Pixels; multiples of the token grid's and of the coarser levels' frequencies."""
NEIGHBOURS = (-3, -2, -1, 1, 2, 3)
"""Places in a spectrum beside a peak that it is measured by."""
BAND = (1 / 16, 1 / 4)
"""Cycles a pixel of what is called detail: chromatin, rims."""


def grey(images: Tensor) -> Tensor:
    """Images [M, 3, H, W] in -1..1 -> grey levels [M, H, W] in 0..255."""
    return (images.mean(1) + 1) * 127.5


def checkerboard(images: Tensor) -> float:
    """The mean |x(i, j) - x(i+1, j) - x(i, j+1) + x(i+1, j+1)| in grey levels."""
    step = grey(images).diff(dim=1).diff(dim=2)
    return float(step.abs().mean())


def spectrum(images: Tensor) -> Tensor:
    """Mean power by frequency, [H / 2 + 1], of all rows and columns of images [M, 3, H, H]."""
    levels = grey(images).double()
    lines = torch.cat([levels, levels.transpose(1, 2)])
    lines = lines - lines.mean(2, keepdim=True)
    power: Tensor = torch.fft.rfft(lines, dim=2).abs().square().mean((0, 1))
    return power


def lattice(images: Tensor) -> float:
    """The highest of the spectrum's peaks at PERIODS, in multiples of its neighbours' mean; 1 is
    none."""
    power, side = spectrum(images), images.shape[-1]
    places = [round(side / period) for period in PERIODS]
    beside = [power[[place + step for step in NEIGHBOURS]].mean() for place in places]
    return max(float(power[p] / b) for p, b in zip(places, beside, strict=True))


def detail(images: Tensor, real: Tensor) -> float:
    """The power of images within BAND, as a share of that of `real`."""
    frequencies = torch.fft.rfftfreq(images.shape[-1])
    band = (frequencies >= BAND[0]) & (frequencies <= BAND[1])
    return float(spectrum(images)[band].sum() / spectrum(real)[band].sum())


def texture_metrics(drawn: Mapping[str, Tensor], real: Tensor, label: str) -> list[Metric]:
    """`<name>_lattice`, `<name>_checkerboard` and `<name>_detail` of each set of `drawn` images
    [M, 3, H, H] in -1..1, by its name; floors are those of `real`."""
    metrics = []
    for name, images in drawn.items():
        count = len(images)
        figures = {
            "lattice": (lattice(images), lattice(real)),
            "checkerboard": (checkerboard(images), checkerboard(real)),
            "detail": (detail(images, real), 1.0),
        }
        metrics += [
            Metric(f"{name}_{figure}", *values, "", count, label)
            for figure, values in figures.items()
        ]
    return metrics
