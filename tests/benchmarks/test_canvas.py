"""The benchmark of large images tells what each size took, and of seams and density."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import canvas, layout, seams
from model.engine import Patch
from model.windows import Overlap
from tests.running import painted

pytestmark = pytest.mark.processes


def test_it_tells_costs_seams_and_density(
    test_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(test_checkpoint), "--sides", "64,96", "--seam-side", "256"]
    words += ["--images", "2", "--slots", "4", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["canvas", *words])
    canvas.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["side"] for row in told["sides"]] == [64, 96]
    assert told["sides"][0]["cost"] == 1 < told["sides"][1]["cost"]
    assert all(len(ratios) == 2 + 4 + 4 for ratios in told["seams"].values())


def test_it_tells_what_large_images_keep_of_masks(
    test_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.fromarray(painted(100)[:70]).save(tmp_path / "mask.png")
    words = ["--checkpoint", str(test_checkpoint), "--masks", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["layout", *words])
    layout.main()
    of_mask, mean = capsys.readouterr().out.splitlines()
    assert of_mask.startswith("mask.png: 96 x 64, 0.")
    assert mean.startswith("1 masks: 0.")


def test_borders_lie_between_windows() -> None:
    beside, below = seams.borders(32, 32, Overlap.of(16))
    assert np.flatnonzero(beside.all(0)).tolist() == [13, 21]
    assert np.flatnonzero(below.all(1)).tolist() == [7, 15, 23]
    assert beside.sum() == 2 * 32
    assert below.sum() == 3 * 32


def test_crops_are_of_one_window_or_of_four_and_their_distance_shows_a_seam() -> None:
    """Images whose windows each have a brightness of their own: inside there is no edge."""
    overlap, chance = Overlap.of(8), np.random.default_rng(0)
    images = []
    for _ in range(4):
        image = np.zeros((32, 32, 3), np.uint8)
        for window in seams.plan(32, 32, overlap):
            if window.rows[0] >= 0:
                image[slice(*window.rows), slice(*window.columns)] = chance.integers(256)
        images.append(seams.Crops.of(Patch(image, image[..., 0], image[..., 0]), 32, 32, overlap))
    for crops in images:
        assert crops.inside.shape[1:] == crops.across.shape[1:] == crops.cut.shape[1:] == (4, 4, 3)
        assert all(len(crop.unique()) == 1 for crop in crops.inside)
        assert all(len(crop[:2, :2].unique()) == 1 for crop in crops.across)
        assert any(len(crop.unique()) == 4 for crop in crops.across)

    def features(name: str) -> list[torch.Tensor]:
        return [getattr(each, name).flatten(1)[:, ::3].double() / 255 for each in images]

    apart = seams.kernel_distance(features("inside"), features("across"))
    assert apart.mean > 4 * apart.error > 0
    assert seams.kernel_distance(features("across"), features("across")).mean == 0
