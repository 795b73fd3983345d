"""From patches with instance maps to a served checkpoint whose structure keeps borders."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint import create_random_checkpoint, load_checkpoint
from model.config import NAMED_SIZES
from model.engine import Engine
from model.request import ImageRequest, Label, SamplingSettings
from tests.training.phantoms import write_phantoms
from tests.training.test_data import with_instances
from training import export, prior, tokenizer, tokens
from training.sheets import draw

PLAIN, PRIOR = NAMED_SIZES["test"]
FINE = replace(PLAIN, structure_input="mask_borders", fine_widths=(6, 4))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = write_phantoms(tmp_path / "phantoms")
    with_instances(root)
    _with_mpp(root)
    return root


def _with_mpp(root: Path) -> None:
    """Gives all patches of histology 0.25 or 0.26 microns a pixel, and some of fluorescence 1."""
    path = root / "manifest.csv"
    header, *lines = path.read_text().splitlines()
    known = {"histology": ["0.25", "0.26"], "fluorescence": ["1", ""], "cytology": ["", ""]}
    listed = [
        f"{line},{known[line.split(',')[2]][number % 2]}" for number, line in enumerate(lines)
    ]
    path.write_text("\n".join([f"{header},mpp", *listed]))


def test_patches_with_instances_become_a_checkpoint_that_draws(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts from a checkpoint that knows no borders."""
    labels = [Label("histology", "modality")]
    begun = create_random_checkpoint(tmp_path / "c", "test", (PLAIN, PRIOR), labels=labels)
    monkeypatch.setitem(NAMED_SIZES, "test", (FINE, PRIOR))
    run = ["--workdir", str(tmp_path / "run")]
    given = ["--data", str(data), *run]
    words = ["--size", "test", "--batch", "4", "--every", "3", "--steps", "3"]
    tokenizer.main([*given, *words, "--start-from", str(begun)])
    tokens.main(given)
    prior.main([*run, "--batch", "4", "--every", "1", "--steps", "1"])
    export.main([*run, "--out", str(tmp_path / "out"), "--name", "fine"])
    lines = (tmp_path / "run" / "progress.jsonl").read_text().splitlines()
    scores = [r["validation"] for r in map(json.loads, lines) if "validation" in r]
    assert 0 <= scores[0]["all"]["mask_dice"] <= 1
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.tokenizer.config == FINE
    mpp = {label.name: label.mpp for label in checkpoint.config.labels}
    assert mpp == {"histology": 0.255, "fluorescence": 0, "cytology": 0, "blood": 0}
    engine = Engine(checkpoint, device="cpu", slots=2, threads=1)
    settings = SamplingSettings(top_k=64)
    [(_, patch)] = draw(engine, [ImageRequest("histology", 7, settings)])
    assert patch.image.shape == (64, 64, 3)
    assert set(patch.mask.flatten().tolist()) <= {0, 255}
    assert np.array_equal(patch.instances > 0, patch.mask > 0)
