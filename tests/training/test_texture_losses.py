"""Losses of texture: what they ask for, and what they leave free."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.mobilenet import write_mobilenet
from training.losses import blurred
from training.networks import FeatureError
from training.texture_losses import feature_loss, lattice_loss, power_loss

TOKEN = 16


def texture(seed: int) -> Tensor:
    """Two patches of smooth noise [2, 3, 128, 128]."""
    noise = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(seed))
    return blurred(0.3 * noise)


def test_power_asks_for_as_much_texture_and_not_for_the_same() -> None:
    wanted = texture(0)
    assert float(power_loss(wanted, wanted)) == 0.0
    another, soft = power_loss(texture(1), wanted), power_loss(blurred(wanted), wanted)
    assert float(another) < float(soft) / 2


@pytest.mark.parametrize(("by_place", "tells"), [(True, True), (False, False)])
def test_texture_at_another_place_is_told_where_asked(by_place: bool, tells: bool) -> None:
    left = torch.zeros(1, 1, 128, 128)
    left[..., :64] = 1
    wanted = texture(0) * left
    moved = wanted.flip(3)
    assert (float(power_loss(moved, wanted, by_place=by_place)) > 0.5) == tells


def test_a_pattern_of_each_token_is_a_lattice_unless_the_patch_has_it() -> None:
    wave = torch.cos(torch.arange(128) * 2 * torch.pi * 3 / TOKEN) * 0.2
    smooth = blurred(blurred(texture(0)))
    drawn = (smooth + wave).requires_grad_(True)
    assert float(lattice_loss(smooth, smooth, TOKEN)) == 0.0
    assert float(lattice_loss(drawn.detach(), drawn.detach(), TOKEN)) == 0.0
    loss = lattice_loss(drawn, smooth, TOKEN)
    assert float(loss.detach()) > 0.1
    loss.backward()
    assert drawn.grad is not None
    # What falls is the wave.
    assert float((drawn.grad * wave).sum()) > 0


def test_features_tell_near_from_far_and_ask_nothing_of_the_real(tmp_path: Path) -> None:
    path = tmp_path / "mobilenet.safetensors"
    write_mobilenet(path, 0.25)
    loss, wanted = feature_loss(path), texture(0).requires_grad_(True)
    near, far = wanted + 0.05 * texture(1), (wanted + texture(1)).detach().requires_grad_(True)
    assert float(loss(wanted, wanted).detach()) == 0.0
    assert 0 < float(loss(near, wanted).detach()) < float(loss(far, wanted).detach())
    wanted.grad = None
    loss(far, wanted).backward()
    assert far.grad is not None
    assert wanted.grad is None


def test_a_file_without_the_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="cannot be read as safetensors"):
        feature_loss(tmp_path / "none.safetensors")
