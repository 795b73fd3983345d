import math

import pytest
import torch

from model.config import NAMED_SIZES
from model.tokenizer import Tokenizer
from tests.training.phantoms import write_phantoms
from training import data as patches
from training.evaluation import reconstruction
from training.evaluation.pair_tensors import Pairs, real_pairs
from training.tokenizer import evaluate


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> patches.Dataset:
    return patches.read_dataset(write_phantoms(tmp_path_factory.mktemp("phantoms")), [], 64)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(NAMED_SIZES["test"][0]).eval()


def test_a_patch_against_itself_is_perfect(dataset: patches.Dataset) -> None:
    images, masks = patches.batch(dataset, torch.arange(4), torch.zeros(4, dtype=torch.long))
    found = reconstruction.fidelity(images, masks[:, 0] > 0, images, masks[:, 0] > 0, None)
    assert torch.allclose(found.ssim, torch.ones(4))
    assert torch.allclose(found.mask_dice, torch.ones(4))
    assert (found.psnr > 100).all()
    assert found.lpips is None


def test_similarity_of_a_flat_shift_has_its_closed_form() -> None:
    a, b = torch.full((1, 3, 32, 32), 0.5), torch.full((1, 3, 32, 32), 0.1)
    steady = (0.01 * 2) ** 2  # the constant of the luminance term at a range of 2
    expected = (2 * 0.5 * 0.1 + steady) / (0.5**2 + 0.1**2 + steady)
    assert reconstruction.ssim(a, b).item() == pytest.approx(expected, abs=1e-4)


def test_noise_costs_similarity_and_more_noise_costs_more() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    noise = torch.randn(1, 3, 64, 64, generator=generator)
    scores = [reconstruction.ssim(image + sigma * noise, image).item() for sigma in (0.1, 0.3)]
    assert 1 > scores[0] > scores[1]


def test_figures_agree_with_those_that_training_prints(
    dataset: patches.Dataset, tokenizer: Tokenizer
) -> None:
    held_out = real_pairs(dataset, dataset.validation, tokenizer)
    found = reconstruction.reconstruct(tokenizer, held_out, None)
    rows = reconstruction.rows_by_label(dataset, dataset.validation)
    metrics = reconstruction.reconstruction_metrics(found, rows)
    for label, chosen in rows.items():
        metrics += reconstruction.codebook_metrics(
            held_out[chosen.nonzero()[:, 0]], tokenizer.config.codebook_size, label
        )
    ours = {(metric.name, metric.label): metric.value for metric in metrics}
    names = {
        "reconstruction_psnr": "psnr",
        "reconstruction_mask_dice": "mask_dice",
        "structure_use": "use_s",
        "structure_perplexity": "perplexity_s",
        "appearance_use": "use_a",
        "appearance_perplexity": "perplexity_a",
    }
    printed = evaluate(tokenizer, None, dataset, dataset.validation)
    assert set(printed) == set(rows)
    for label, figures in printed.items():
        for name, theirs in names.items():
            assert ours[name, label] == pytest.approx(figures[theirs], rel=1e-4), (name, label)


def test_use_and_perplexity_of_known_streams() -> None:
    uniform = torch.arange(64).view(4, 16)
    one = torch.zeros(4, 16, dtype=torch.long)
    pairs = Pairs(torch.zeros(4, 8, 8, 3), torch.zeros(4, 8, 8), uniform, one)
    metrics = reconstruction.codebook_metrics(pairs, 128, "all", "_training")
    found = {metric.name: metric.value for metric in metrics}
    assert found["structure_use_training"] == 0.5
    assert found["structure_perplexity_training"] == pytest.approx(64, rel=1e-5)
    assert found["appearance_use_training"] == 1 / 128
    assert found["appearance_perplexity_training"] == pytest.approx(1)


def test_labels_without_a_patch_are_left_out_and_n_is_counted_by_label() -> None:
    figures = torch.tensor([20.0, 30.0, 40.0])
    found = reconstruction.Fidelity(figures, figures / 40, figures / 40, None)
    rows = {"a": torch.tensor([True, True, False]), "none": torch.zeros(3, dtype=torch.bool)}
    metrics = reconstruction.reconstruction_metrics(found, rows)
    assert {metric.label for metric in metrics} == {"a"}
    assert metrics[0].value == 25
    assert metrics[0].n == 2
    assert all(math.isfinite(metric.value) for metric in metrics)


def test_the_originals_that_hold_a_mean_up_are_named_with_what_is_left_without_them() -> None:
    lpips = torch.tensor([0.1, 0.5, 0.1, 0.4, 0.2])
    decibels = torch.tensor([30.0, 20.0, 30.0, 22.0, 27.0])
    found = reconstruction.Fidelity(decibels, decibels / 40, decibels / 40, lpips)
    sentence, named = reconstruction.hardest(found, ["calm", "noise", "calm", "grain", "mild"])
    assert "(2 of 5 patches)" in sentence
    assert named == "These originals are noise, grain."
    assert "0.450 and 21.00 dB" in sentence
    assert "0.133 and 29.00 dB" in sentence
    assert "All patches" in reconstruction.hardest(found, ["one"] * 5)[0]
