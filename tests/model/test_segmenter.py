"""What a checkpoint's segmenter finds, and how far that agrees with a mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from model.checkpoint import CheckpointError, load_checkpoint
from model.engine import Engine, TokenGrids
from model.segmenter import FILE, SegmenterError, dice, read_segmenter
from tests.segmenters import write_segmenter
from training import segmenter as training

SHIPPED = Path(__file__).parent.parent.parent / "checkpoints" / "small" / FILE


def noise(side: int = 64) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.slow  # importing MONAI takes seconds
def test_it_computes_what_the_trained_network_computes(tmp_path: Path) -> None:
    for path in (SHIPPED, write_segmenter(tmp_path)):
        segmenter = read_segmenter(path)
        assert segmenter is not None
        image = noise()
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.inference_mode():
            wanted = training.load(path)(pixels)[0, 0]
        assert torch.allclose(
            segmenter.logits(image), wanted, atol=1e-5 * float(wanted.abs().max())
        )
        assert 0.02 < segmenter.find(image).mean() < 0.98


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    assert read_segmenter(tmp_path / FILE) is None


def test_a_file_that_is_no_segmenter_is_refused_by_name(tmp_path: Path) -> None:
    whole = load(write_segmenter(tmp_path).read_bytes())
    path = tmp_path / FILE
    name = "model.2.0.conv.weight"
    damaged = {
        "is not a segmenter": b"no tensors at all",
        name: {each: tensor for each, tensor in whole.items() if each != name},
        "model.9": {**whole, "model.9": torch.zeros(1)},
        "not finite": {**whole, name: torch.full_like(whole[name], torch.nan)},
        "size": {**whole, name: whole[name][:3]},
    }
    for said, content in damaged.items():
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save_file({n: tensor.contiguous() for n, tensor in content.items()}, path)
        with pytest.raises(SegmenterError, match=said):
            read_segmenter(path)


def test_agreement_is_dice_and_two_empty_masks_agree() -> None:
    empty, half = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    half[:2] = True
    quarter = half.copy()
    quarter[1] = False
    assert dice(half, half) == 1
    assert dice(half, quarter) == pytest.approx(2 * 4 / 12)
    assert dice(half, ~half) == 0
    assert dice(empty, empty) == 1
    assert dice(empty, half) == dice(half, empty) == 0


def grids(engine: Engine) -> TokenGrids:
    side, size = engine.layout.grid_size, engine.config.tokenizer.codebook_size
    return TokenGrids(*np.random.default_rng(0).integers(0, size, (2, side, side)))


def test_the_engine_scores_the_image_as_it_is_stored(test_checkpoint: Path) -> None:
    engine = Engine(load_checkpoint(test_checkpoint), device="cpu", slots=1, threads=1)
    patch = engine.render(grids(engine))
    segmenter = read_segmenter(test_checkpoint / FILE)
    assert segmenter is not None
    found = segmenter.to(torch.device("cpu"), engine.pixels_in).find(patch.image)
    assert patch.agreement == dice(found, patch.mask > 0)
    assert 0 < patch.agreement < 1


def test_a_segmenter_is_part_of_the_numerics_and_of_no_version(
    test_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(test_checkpoint)
    other = read_segmenter(write_segmenter(tmp_path, seed=1))
    made = [
        Engine(replace(checkpoint, segmenter=each), device="cpu", slots=1, threads=1)
        for each in (checkpoint.segmenter, other, None)
    ]
    assert len({engine.version for engine in made}) == 1
    assert checkpoint.segmenter is not None
    assert made[0].facts["segmenter"] == checkpoint.segmenter.digest[:12]
    assert made[1].facts["segmenter"] != made[0].facts["segmenter"]
    assert "segmenter" not in made[2].facts
    patches = [engine.render(grids(engine)) for engine in made]
    assert patches[2].agreement is None
    assert patches[0].agreement != patches[1].agreement
    assert all(np.array_equal(patch.image, patches[0].image) for patch in patches)


def test_a_checkpoint_with_a_damaged_segmenter_does_not_load(
    test_checkpoint: Path, tmp_path: Path
) -> None:
    for path in test_checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / FILE).write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=FILE):
        load_checkpoint(tmp_path)
