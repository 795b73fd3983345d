from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import NAMED_SIZES
from model.tokenizer import Tokenizer
from tests.training.phantoms import write_phantoms
from training import data as patches
from training.evaluation import instance_scores
from training.evaluation.instance_scores import InstanceScores, compare


def squares(*ids: int) -> np.ndarray:
    """Squares of 4 x 4 side by side on a ground, each with its id."""
    found = np.zeros((8, 32), np.int32)
    for place, number in enumerate(ids):
        found[2:6, 1 + 6 * place : 5 + 6 * place] = number
    return found


def test_numbers_do_not_matter() -> None:
    assert compare(squares(1, 2, 3), squares(9, 4, 300)) == InstanceScores(1, 1, 1)


def test_a_missed_nucleus_and_one_too_many_cost_as_published() -> None:
    """AJI: pixels shared over pixels of either; PQ and F1: matches over the mean of both counts."""
    assert compare(squares(1, 2), squares(1)) == InstanceScores(0.5, 1 / 1.5, 1 / 1.5)
    assert compare(squares(1), squares(1, 2)) == InstanceScores(0.5, 1 / 1.5, 1 / 1.5)


def test_two_nuclei_found_as_one_match_neither() -> None:
    true = np.zeros((4, 8), np.int32)
    true[:, :4], true[:, 4:] = 1, 2
    merged = compare(true, np.ones_like(true))
    assert (merged.pq, merged.f1) == (0, 0)
    assert merged.aji == pytest.approx(32 / 64)


def test_empty_patches_are_right_or_wrong() -> None:
    nothing = squares()
    assert compare(nothing, nothing) == InstanceScores(1, 1, 1)
    assert compare(nothing, squares(1)) == InstanceScores(0, 0, 0)
    assert compare(squares(1), nothing) == InstanceScores(0, 0, 0)


def test_tokens_are_scored_beside_what_the_rule_reaches(tmp_path: Path) -> None:
    dataset = patches.read_dataset(write_phantoms(tmp_path), [], 64)
    chosen = torch.arange(6)
    for structure, planes, reached in (("mask", 1, 0.8), ("mask_borders", 2, 0.97)):
        torch.manual_seed(0)
        config = replace(NAMED_SIZES["test"][0], structure_input=structure)
        found = instance_scores.of_tokens(Tokenizer(config).eval(), dataset, chosen)
        best = instance_scores.of_rule(dataset, chosen, planes)
        metrics = instance_scores.instance_metrics(found, best, "cytology")
        assert [m.name for m in metrics] == ["instance_aji", "instance_pq", "instance_f1"]
        assert all(m.n == 6 and (m.floor or 0) > reached > m.value for m in metrics)


def test_touching_nuclei_need_borders_to_be_told_apart(tmp_path: Path) -> None:
    dataset = patches.read_dataset(write_phantoms(tmp_path), [], 64)
    ids = dataset.instances.clone()
    halves = torch.where(torch.arange(64) < 32, 1, 2).to(ids.dtype).expand_as(ids)
    touching = replace(dataset, instances=torch.where(ids > 0, halves, 0), masks=ids > 0)
    touching.masks[:, 20:40], touching.instances[:, 20:40] = True, halves[:, 20:40]
    plain, apart = (
        np.mean([s.pq for s in instance_scores.of_rule(touching, torch.arange(6), planes)])
        for planes in (1, 2)
    )
    assert plain < 0.5
    assert apart > plain + 0.3
