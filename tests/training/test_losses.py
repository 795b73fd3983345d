from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training.losses import Lpips, PerceptualError, dice, dice_loss, overlap, psnr


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
