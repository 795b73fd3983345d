from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.given import SIDES, main, seam
from tests.training.phantoms import write_phantoms


def test_it_prints_tables_and_json_of_masks_and_holes(
    test_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_phantoms(tmp_path, each=6)
    before = torch.get_num_threads()
    words = ["--checkpoint", test_checkpoint, "--data", data, "--patches", "2", "--holes", "1"]
    words += ["--sheet", tmp_path / "holes.png", "--label", "histology", "--label", "cytology"]
    try:
        main([*map(str, words), "--threads", "1"])
    finally:
        torch.set_num_threads(before)
    said = capsys.readouterr().out
    assert "given masks" in said
    assert "histology, best" in said
    told = json.loads(said.splitlines()[-1])
    assert told["masks"].keys() == told["holes"].keys() == {"cytology", "histology"}
    with Image.open(tmp_path / "holes.png") as sheet:
        assert sheet.size == (3 * 64, 2 * 64)
    for of_masks, of_holes in zip(told["masks"].values(), told["holes"].values(), strict=True):
        assert of_masks["same_structure"] == 1.0
        assert of_masks["returned"] == pytest.approx(of_masks["limit"], abs=0.02)
        assert (of_holes["patches"], of_holes["tokens_changed"]) == (1, 0)


def test_a_seam_is_what_differs_across_the_border_by_side() -> None:
    hole = np.zeros((8, 8), bool)
    hole[2:6, 2:6] = True
    images, found = torch.full((2, 3, 8, 8), -1.0), torch.zeros(2, 8, 8, dtype=torch.bool)
    images[:, :, :, 2:] = 1.0  # a step of 255 at the left border
    found[0, 1:3, 3] = True  # goes on across the top
    found[0, 5, 4] = True  # ends at the bottom
    across = seam(images, found, hole)
    assert across.pairs == dict.fromkeys(SIDES, 8)
    assert across.touching == {"top": 1, "left": 0, "bottom": 1, "right": 0}
    assert across.cut == {"top": 0, "left": 0, "bottom": 1, "right": 0}
    assert across.step == {"top": 0, "left": 8 * 255, "bottom": 0, "right": 0}
    assert across.figures(("top", "left")) == (0.0, 127.5)
    assert across.figures(("bottom", "right")) == (1.0, 0.0)
