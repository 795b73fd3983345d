from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training.losses import (
    Lpips,
    PerceptualError,
    blurred,
    crops,
    dice,
    dice_loss,
    looked_at,
    overlap,
    psnr,
    structure_losses,
)


def test_dice_is_one_for_the_same_mask_and_near_zero_for_its_complement() -> None:
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, :8] = 1
    assert torch.allclose(dice(mask, mask), torch.ones(2))
    assert (dice(1 - mask, mask) < 0.01).all()
    assert torch.equal(dice(mask * 0, mask * 0), torch.ones(2))
    assert dice_loss(mask, mask) == 0


def test_psnr_is_in_decibels_of_a_range_of_two() -> None:
    image = torch.zeros(1, 3, 8, 8)
    assert psnr(image + 0.2, image).item() == pytest.approx(20.0, abs=1e-3)


def test_a_missing_backbone_is_named(tmp_path: Path) -> None:
    with pytest.raises(PerceptualError, match=r"alexnet\.safetensors"):
        Lpips(tmp_path / "alexnet.safetensors")


def test_a_backbone_of_another_network_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(PerceptualError, match=r"other\.safetensors: holds no features\.0\.weight"):
        Lpips(tmp_path / "other.safetensors")


def test_borders_are_judged_where_there_are_some() -> None:
    masks = torch.zeros(2, 2, 16, 16)
    masks[:, 0, :8] = masks[0, 1, 8] = 1
    right = (masks * 2 - 1) * 20
    assert all(float(loss) < 1e-3 for loss in structure_losses(right, masks).values())
    wrong = structure_losses(torch.cat([right[:, :1], -right[:, 1:]], 1), masks)
    assert wrong["border_dice"] > 0.4
    assert wrong["dice"] < 1e-3
    assert set(structure_losses(right[:, :1], masks[:, :1])) == {"bce", "dice"}


def test_a_pattern_of_single_pixels_is_not_seen_through_the_blur() -> None:
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    checks = ((y + x) % 2 * 2.0 - 1).expand(1, 3, 16, 16)
    assert blurred(checks)[..., 2:-2, 2:-2].abs().max() < 1e-6
    flat = torch.full((1, 3, 16, 16), 0.5)
    assert torch.allclose(blurred(flat), flat)
    noise = torch.Generator().manual_seed(0)
    seen = [looked_at(checks / 2, step, noise)[..., 2:-2, 2:-2].std() for step in (0, 1)]
    assert seen[0] > 10 * seen[1]


def test_crops_of_several_pictures_are_of_one_place() -> None:
    picture = torch.arange(64.0).view(1, 1, 8, 8)
    draws = torch.Generator().manual_seed(0)
    one, other = crops(4, draws, picture, picture + 100)
    assert one.shape == (1, 1, 4, 4)
    assert torch.equal(one + 100, other)


def test_nothing_found_where_nothing_is_is_no_success() -> None:
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    masks[2:, :4] = True
    found = masks.clone()
    found[1, 0, 0] = True
    found[3] = False
    scores = overlap(found, masks)
    assert scores.isnan().tolist() == [True, False, False, False]
    assert scores[2] == 1
    assert max(scores[1], scores[3]) < 0.55
