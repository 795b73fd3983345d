"""Copies planted among patches whose nearest neighbours are known."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from model.config import NAMED_SIZES
from model.tokenizer import Tokenizer
from tests.training.phantoms import write_phantoms
from training import data as patches
from training.evaluation import audit
from training.evaluation.audit import Audit, Case, CopyFinding, Seen
from training.evaluation.features import Features
from training.evaluation.pair_tensors import Pairs
from training.losses import CONVOLUTIONS, Lpips
from training.run import StageError

SIDE, CELLS = 32, 8
FEATURES = Features("cells", lambda images: F.adaptive_avg_pool2d(images, CELLS).flatten(1))


def pixel_distance(image: Tensor, others: Tensor) -> Tensor:
    return (image - others).abs().mean((1, 2, 3))


def encode(images: Tensor) -> tuple[Tensor, Tensor]:
    """Toy tokens: brightness of each cell in steps, two colours for the two streams."""
    cells = F.adaptive_avg_pool2d(images, CELLS)
    ids = ((cells + 1) * 4).long().flatten(2)
    return ids[:, 0], ids[:, 1]


def as_pairs(images: Tensor) -> Pairs:
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    held = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    return Pairs(pixels, held[:, 0] > 0, *encode(held))


def patches_of(count: int, seed: int) -> Tensor:
    """Patches that have nothing to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, CELLS, CELLS, generator=generator) * 2 - 1
    return F.interpolate(coarse, (SIDE, SIDE), mode="bilinear")


def turned(images: Tensor, views: Tensor) -> Tensor:
    return torch.stack(
        [patches.dihedral(image, int(view)) for image, view in zip(images, views, strict=True)]
    )


def seen_of(images: Tensor) -> Seen:
    """Every patch an original of its own."""
    views = [as_pairs(turned(images, torch.full((len(images),), view))) for view in range(8)]
    return Seen(
        images=views[0].images,
        decoded=views[0].images,
        structure=torch.stack([view.structure for view in views], 1).short(),
        appearance=torch.stack([view.appearance for view in views], 1).short(),
        features=torch.stack([FEATURES.of(view) for view in views], 1),
        groups=torch.arange(len(images)),
    )


TRAINING = patches_of(40, 0)
SEEN = seen_of(TRAINING)
HELD_OUT = patches_of(150, 1)


def case_of(drawn: Tensor) -> Case:
    count = len(HELD_OUT)
    return Case(
        as_pairs(drawn),
        as_pairs(HELD_OUT),
        torch.arange(count) + len(TRAINING),
        torch.ones(count, dtype=torch.bool),
        as_pairs(TRAINING[:10]),
    )


def audited(drawn: Tensor) -> Audit:
    return audit.audit({"a": case_of(drawn)}, SEEN, FEATURES, pixel_distance)


def test_samples_that_copy_nothing_pass() -> None:
    found = audited(patches_of(100, 2))
    assert found.passes
    assert found.verdict.startswith("passes")
    assert {finding.measure for finding in found.findings} == {"features", "lpips", "tokens"}
    for finding in found.findings:
        assert finding.share <= 0.03
        assert finding.caught == 1, "the audit would have seen copies"
        assert finding.floor <= 0.01


@pytest.mark.parametrize("copies", [5, 20])
def test_the_share_of_turned_copies_among_samples_is_found(copies: int) -> None:
    drawn = patches_of(40, 3)
    drawn[:copies] = turned(TRAINING[:copies], torch.arange(copies) % 8)
    found = audited(drawn)
    assert not found.passes
    for finding in found.findings:
        assert finding.share == pytest.approx(copies / 40)
        assert finding.interval[0] < finding.share < finding.interval[1]
        assert f"a by {audit.MEASURES[finding.measure]} {copies / 40:.1%}" in found.verdict


def test_noisy_copies_are_found_and_so_is_the_view_that_they_copy() -> None:
    views = torch.arange(40) % 8
    noise = 0.05 * torch.randn(TRAINING.shape, generator=torch.Generator().manual_seed(4))
    copies = as_pairs(turned(TRAINING, views) + noise)
    found = audit.nearest(copies, SEEN, FEATURES, pixel_distance)
    for measure, places in found.places.items():
        assert torch.equal(places, torch.arange(40) * 8 + views), measure
    assert all(finding.share == 1 for finding in audited(turned(TRAINING, views) + noise).findings)


def test_distances_of_exact_copies_are_zero() -> None:
    found = audit.nearest(as_pairs(TRAINING), SEEN, FEATURES, pixel_distance)
    for measure, away in found.distances.items():
        assert away.max() < 1e-5, measure


def test_a_patch_of_the_same_original_does_not_count_as_its_neighbour() -> None:
    originals = torch.arange(40) // 2  # each original gave two patches, nearly the same
    twins = TRAINING.clone()
    twins[1::2] = twins[::2] + 0.02
    seen = Seen(**{**seen_of(twins).__dict__, "groups": originals})
    found = audit.nearest(as_pairs(twins), seen, FEATURES, pixel_distance, originals)
    alone = audit.nearest(as_pairs(twins), seen, FEATURES, pixel_distance)
    for measure, places in found.places.items():
        assert (originals[places // 8] != originals).all()
        assert (found.distances[measure] > 5 * alone.distances[measure]).all()


def test_one_other_original_is_enough_and_none_is_an_error() -> None:
    seen, queries = seen_of(TRAINING[:3]), as_pairs(TRAINING[:2])
    groups = torch.tensor([0, 0, 1])
    seen = Seen(**{**seen.__dict__, "groups": groups})
    found = audit.nearest(queries, seen, FEATURES, pixel_distance, groups[:2])
    assert all((places // 8 == 2).all() for places in found.places.values())
    seen = Seen(**{**seen.__dict__, "groups": groups * 0})
    with pytest.raises(StageError, match="all of one original"):
        audit.nearest(queries, seen, FEATURES, pixel_distance, groups[:2])


def test_the_threshold_is_the_first_percentile_of_held_out_distances() -> None:
    assert audit.threshold(np.arange(1.0, 200.0)) == pytest.approx(2.0)  # 1% of 199 + 1
    assert audit.threshold(np.arange(1.0, 150.0)) == pytest.approx(1.5)
    assert audit.threshold(np.array([3.0, 2.0, 5.0])) == 2.0, "few patches give their least"


def test_chance_puts_one_percent_of_further_held_out_patches_under_the_threshold() -> None:
    random = np.random.default_rng(0)
    shares = [
        (random.normal(size=500) < audit.threshold(random.normal(size=150))).mean()
        for _ in range(400)
    ]
    assert np.mean(shares) == pytest.approx(0.01, abs=0.002)


def test_held_out_patches_cut_from_few_originals_widen_the_interval() -> None:
    random = np.random.default_rng(0)
    drawn, real = random.normal(size=200), np.repeat(random.normal(size=10), 20)
    many = audit._interval(drawn, real, np.arange(200))
    few = audit._interval(drawn, real, np.repeat(np.arange(10), 20))
    assert few[1] - few[0] > many[1] - many[0]


def test_an_audit_that_cannot_see_copies_says_so() -> None:
    blank = torch.zeros(20, 3, SIDE, SIDE)
    pairs = as_pairs(blank)
    held = Case(pairs, pairs, torch.arange(20) + 20, torch.ones(20, dtype=torch.bool), pairs)
    found = audit.audit({"a": held}, seen_of(blank), FEATURES, None)
    assert found.passes
    assert found.verdict.endswith("hardly sees: of copies the best measure catches a 0%")


def test_metrics_and_sheet_hold_every_label_and_measure() -> None:
    case = case_of(patches_of(12, 5))
    found = audit.audit({"a": case, "b": case}, SEEN, FEATURES, pixel_distance)
    metrics = {(metric.name, metric.label): metric for metric in found.metrics()}
    assert len(metrics) == 3 * 3 * 2
    share = metrics["memorised_features", "b"]
    assert share.features == "cells"
    assert share.n == 12
    assert share.interval is not None
    assert metrics["memorised_lpips_caught", "a"].n == 10
    near = metrics["nearest_tokens", "a"]
    assert near.floor == pytest.approx(near.value, abs=0.1)
    one = audit.audit({"a": case}, SEEN, FEATURES, pixel_distance)
    assert found.sheet.height == 2 * one.sheet.height


def test_the_sheet_shows_each_closest_sample_beside_the_view_that_it_copies() -> None:
    drawn = patches_of(8, 6)
    drawn[5] = patches.dihedral(TRAINING[7], 3)
    sheet = np.asarray(audited(drawn).sheet).astype(int)
    top, side = audit.CAPTION, audit.TILE
    ours, theirs, second = (
        sheet[top : top + side - 4, x : x + side - 4] for x in (0, side, 2 * side)
    )
    assert np.abs(ours - theirs).mean() < 1, "the closest pair comes first"
    assert np.abs(ours - second).mean() > 20


def test_no_sample_is_an_error_that_names_the_label() -> None:
    with pytest.raises(StageError, match="audit, a: drawn: got 0 patches"):
        audited(patches_of(0, 0))


def test_the_perceptual_network_compares_one_image_with_many(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {}
    for index, inputs, outputs, kernel, _, _ in CONVOLUTIONS:
        tensors[f"features.{index}.weight"] = torch.randn(outputs, inputs, kernel, kernel) * 0.05
        tensors[f"features.{index}.bias"] = torch.zeros(outputs)
    save_file(tensors, tmp_path / "alexnet.safetensors")
    large = F.interpolate(TRAINING[:6], (64, 64))
    found = audit.nearest(
        as_pairs(large), seen_of(large), FEATURES, Lpips(tmp_path / "alexnet.safetensors")
    )
    assert found.distances["lpips"].max() < 1e-5
    assert torch.equal(found.places["lpips"], torch.arange(6) * 8)


def test_a_dataset_becomes_cases_whose_learnt_copies_are_caught_by_their_tokens(
    tmp_path: Path,
) -> None:
    dataset = patches.read_dataset(write_phantoms(tmp_path), [], 64)
    torch.manual_seed(0)
    tokenizer = Tokenizer(NAMED_SIZES["test"][0]).eval()
    seen = audit.seen_in_training(dataset, tokenizer, FEATURES)
    assert seen.structure.shape == (len(dataset.training), 8, tokenizer.config.grid_size**2)
    cases = {}
    for label in dataset.labels:
        drawn = as_pairs(F.interpolate(patches_of(4, 7), (64, 64)))
        cases[label.name] = audit.case(dataset, label, drawn, seen, tokenizer)
    for held in cases.values():
        assert 0 < held.validation.sum() < len(held.held_out), "training patches stand beside"
        assert len(held.held_out) == 12
        # Two patches are of one original, and no original is on both sides.
        assert not set(held.groups[held.validation].tolist()) & set(seen.groups.tolist())
        assert set(held.groups[~held.validation].tolist()) <= set(seen.groups.tolist())
        # A tenth of the locations have the tokens of another patch, which may be the same ones.
        away = audit.nearest(held.learnt, seen, FEATURES, None).distances["tokens"]
        assert 0 < away.max() <= round(0.1 * tokenizer.config.grid_size**2) / 16
    found = audit.audit({"blood": cases["blood"]}, seen, FEATURES, None)
    assert isinstance(found.findings[0], CopyFinding)
