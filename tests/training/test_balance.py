from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.phantoms import write_phantoms
from training import balance
from training import data as patches


@pytest.fixture
def dataset(tmp_path: Path) -> patches.Dataset:
    return patches.read_dataset(write_phantoms(tmp_path), [], 64)


def test_a_source_and_an_original_count_by_the_root_of_their_patches(
    dataset: patches.Dataset,
) -> None:
    """Ten patches, eight of one original: fluorescence; one patch: histology."""
    samples = [s for s in dataset.samples if s.labels[0].name == "fluorescence"][:10]
    samples = [replace(s, group="a" if i < 8 else f"b{i}") for i, s in enumerate(samples)]
    other = next(s for s in dataset.samples if s.labels[0].name == "histology")
    held = replace(dataset, samples=(*samples, other))
    found = balance.chances(held, torch.arange(11))
    assert float(found.sum()) == pytest.approx(1)
    assert float(found[10] / found[:10].sum()) == pytest.approx(1 / 10**0.5)
    assert float(found[:8].sum() / found[8]) == pytest.approx(8**0.5)


def test_another_licence_is_another_source(dataset: patches.Dataset) -> None:
    pool = torch.arange(12)
    assert balance.chances(dataset, pool).unique().numel() == 1
    first, *others = dataset.samples
    held = replace(dataset, samples=(replace(first, licence="MIT"), *others))
    assert float(balance.chances(held, pool)[0]) == pytest.approx(1 / (1 + 11**0.5))


def test_a_draw_depends_on_seed_and_step_alone_and_keeps_to_the_pool(
    dataset: patches.Dataset,
) -> None:
    pool = dataset.training
    chances = balance.chances(dataset, pool)
    chosen, views = balance.draw(pool, chances, 1, 5, 64)
    again = balance.draw(pool, chances, 1, 5, 64)
    assert torch.equal(chosen, again[0])
    assert torch.equal(views, again[1])
    assert not torch.equal(chosen, balance.draw(pool, chances, 1, 6, 64)[0])
    assert set(chosen.tolist()) <= set(pool.tolist())
    assert 0 <= int(views.min()) < int(views.max()) < patches.VIEWS
