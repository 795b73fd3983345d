"""A segmenter finds the nuclei of phantoms, and teaches the tokenizer that structure rules."""

import json
from pathlib import Path

import pytest
import torch

from tests.training.commands import run
from tests.training.phantoms import write_phantoms
from tests.training.test_stages import TOKENIZER
from training import data as patches
from training.segmenter import agreement, balanced, fit, load, save

pytestmark = pytest.mark.slow

STEPS = 240


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), each=16)


@pytest.fixture(scope="module")
def dataset(data: Path) -> patches.Dataset:
    return patches.read_dataset(data, [], 64)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the command wrote, and what it said."""
    path = tmp_path_factory.mktemp("trained") / "segmenter.safetensors"
    return path, run(
        "segmenter", "--data", data, "--out", path, "--image-size", 64, "--steps", STEPS
    )


@pytest.fixture(scope="module")
def segmenter(trained: tuple[Path, str]) -> torch.nn.Module:
    return load(trained[0])


def held_out(dataset: patches.Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = dataset.validation
    images, masks = patches.batch(dataset, chosen, torch.zeros_like(chosen))
    return images, masks[:, 0] > 0


def test_it_finds_nuclei_it_has_not_seen_and_not_those_of_another_patch(
    dataset: patches.Dataset, segmenter: torch.nn.Module
) -> None:
    images, masks = held_out(dataset)
    assert agreement(segmenter, images, masks).mean() > 0.85
    assert agreement(segmenter, images, masks.roll(1, 0)).mean() < 0.6


def test_the_same_seed_trains_the_same_network_and_another_does_not(
    dataset: patches.Dataset,
) -> None:
    first, again, other = (
        fit(dataset.images, dataset.masks, steps=2, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_saved_one_finds_the_same(
    dataset: patches.Dataset, segmenter: torch.nn.Module, tmp_path: Path
) -> None:
    save(segmenter, tmp_path / "segmenter.safetensors")
    images, masks = held_out(dataset)
    kept = agreement(load(tmp_path / "segmenter.safetensors"), images, masks)
    assert torch.allclose(kept, agreement(segmenter, images, masks), atol=0.02)


def test_every_modality_is_drawn_as_often(dataset: patches.Dataset) -> None:
    fewer = dataset.training[3:]
    chances = balanced(dataset, fewer)
    table = dataset.label_table()[fewer][:, :3]
    assert torch.allclose((chances[:, None] * table).sum(0), torch.ones(3))


@pytest.mark.processes
def test_with_one_the_tokenizer_learns_that_swapped_nuclei_follow_structure(
    data: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    (segmenter, said), folder = trained, tmp_path / "run"
    assert json.loads(said.splitlines()[-1])["validation_dice"]["histology"] > 0.8
    run(*TOKENIZER, 160, "--data", data, "--workdir", folder, "--segmenter", segmenter)
    records = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    swaps = [record["swap"] for record in records if "swap" in record]
    assert swaps[-1] < swaps[0]
