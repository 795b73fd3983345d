"""Muon changes matrices as torch's own does, whose products are in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 24), (2, 16, 48), (3, 48, 16)])
def test_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(1e-4 * matrices))
    assert values.max() < 1.3
    assert values.median() > 0.6


@pytest.mark.parametrize("shape", [(32, 96), (96, 32)])
def test_steps_are_those_of_torch(shape: tuple[int, int]) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = (
        Muon([(ours, 1)], rate=0.01, decay=0.1),
        torch.optim.Muon(
            [theirs], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
    )
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert moved > 0
    assert (ours - theirs).norm() < 0.05 * moved


def test_parts_are_made_orthogonal_apart() -> None:
    generator = torch.Generator().manual_seed(3)
    whole = nn.Parameter(torch.randn(36, 12, generator=generator))
    parts = [nn.Parameter(part.clone()) for part in whole.detach().chunk(3)]
    whole.grad = torch.randn(36, 12, generator=generator)
    for part, grad in zip(parts, whole.grad.chunk(3), strict=True):
        part.grad = grad.clone()
    Muon([(whole, 3)], rate=0.1, decay=0.0).step()
    Muon([(part, 1) for part in parts], rate=0.1, decay=0.0).step()
    torch.testing.assert_close(whole, torch.cat(parts))  # type: ignore[arg-type]
