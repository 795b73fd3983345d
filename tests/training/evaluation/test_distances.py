import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from torch import Tensor

from training.evaluation.distances import (
    DistanceError,
    distribution_metrics,
    diversity,
    frechet_distance,
    kernel_distance,
    mean_distance,
    neighbourhoods,
)
from training.evaluation.pair_tensors import Pairs
from training.losses import CONVOLUTIONS, Lpips

DIM = 32


def gaussian(count: int, seed: int, shift: float = 0.0, dim: int = DIM) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


def covariance(x: Tensor) -> Tensor:
    return torch.cov(x.double().T)


def test_equal_sets_are_at_no_distance() -> None:
    x = gaussian(400, 0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-4)
    # An unbiased estimate over a set and itself is a little below zero.
    assert -0.05 < kernel_distance(x, x)[0] < 0
    shares = neighbourhoods(x, x)
    assert (shares["precision"], shares["recall"], shares["coverage"]) == (1, 1, 1)


def test_shifted_gaussians_give_the_closed_form() -> None:
    wide = 1.5 * gaussian(20_000, 0, dim=6) + 0.8
    assert frechet_distance(wide, gaussian(20_000, 1, dim=6)) == pytest.approx(
        6 * (0.8**2 + 0.5**2), rel=0.02
    )


def test_fid_agrees_with_a_matrix_square_root() -> None:
    x, y = gaussian(90, 0, dim=12) * 2 + 1, gaussian(70, 1, dim=12)
    a, b = covariance(x), covariance(y)
    root = torch.from_numpy(sqrtm((a @ b).numpy()).real)
    means = x.double().mean(0) - y.double().mean(0)
    expected = float(means.square().sum() + (a + b - 2 * root).trace())
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_fid_is_exact_with_fewer_patches_than_features() -> None:
    # tr (AB)^(1/2) is then the nuclear norm of the product of the two centred sets.
    x, y = gaussian(20, 0, dim=200).double() * 2, gaussian(25, 1, dim=200).double()
    a, b = ((s - s.mean(0)) / (len(s) - 1) ** 0.5 for s in (x, y))
    cross = float(torch.linalg.svdvals(a @ b.T).sum())
    means = float((x.mean(0) - y.mean(0)).square().sum())
    expected = means + float(a.square().sum() + b.square().sum()) - 2 * cross
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-5)


def kernel_mean(x: Tensor, y: Tensor, *, same: bool) -> float:
    k = (x.double() @ y.double().T / x.shape[1] + 1) ** 3
    if same:
        return float((k.sum() - k.trace()) / (len(x) * (len(x) - 1)))
    return float(k.mean())


def test_kid_is_the_unbiased_estimate_over_the_whole_sets() -> None:
    x, y = gaussian(50, 0, shift=0.3), gaussian(50, 1)
    whole = kernel_mean(x, x, same=True) + kernel_mean(y, y, same=True)
    whole -= 2 * kernel_mean(x, y, same=False)
    kernel, deviation = kernel_distance(x, y)
    assert kernel == pytest.approx(whole, abs=4 * deviation / 200**0.5)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_the_interval_of_kid_holds_what_gaussians_have_in_closed_form(shift: float) -> None:
    square = DIM * shift**2
    third = (square**3 + 6 * square**2 + 3 * square * DIM + 6 * square) / DIM**3
    truth = third + 3 * square**2 / DIM**2 + 3 * square / DIM
    held = []
    for seed in range(40):
        kernel, deviation = kernel_distance(gaussian(40, seed, shift), gaussian(40, 1000 + seed))
        held.append(abs(kernel - truth) < 1.96 * deviation)
    assert sum(held) >= 36


def test_kid_leaves_the_random_state_alone_and_repeats() -> None:
    x, y = gaussian(30, 0), gaussian(30, 1)
    state = torch.random.get_rng_state()
    assert kernel_distance(x, y) == kernel_distance(x, y)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_neighbourhoods_agree_with_their_definitions() -> None:
    real, fake = gaussian(40, 0, dim=5), gaussian(30, 1, shift=0.6, dim=5)

    def reach(x: Tensor, k: int) -> Tensor:
        return torch.cdist(x.double(), x.double()).sort(1).values[:, k]

    apart = torch.cdist(real.double(), fake.double())
    inside = apart < reach(real, 5)[:, None]
    expected = {
        "precision": (apart < reach(real, 3)[:, None]).any(0).double().mean(),
        "recall": (apart < reach(fake, 3)[None]).any(1).double().mean(),
        "density": inside.double().sum(0).mean() / 5,
        "coverage": inside.any(1).double().mean(),
    }
    assert neighbourhoods(fake, real) == pytest.approx({k: float(v) for k, v in expected.items()})


def test_samples_of_half_of_what_is_real_are_precise_and_recall_half() -> None:
    modes = torch.cat([gaussian(60, 0, 10.0, dim=3), gaussian(60, 1, -10.0, dim=3)])
    shares = neighbourhoods(gaussian(120, 2, 10.0, dim=3), modes)
    assert shares["precision"] > 0.9
    assert 0.3 < shares["recall"] <= 0.5
    assert 0.3 < shares["coverage"] <= 0.5


def test_each_figure_carries_its_floor_its_features_and_its_number() -> None:
    near, far = gaussian(30, 0), gaussian(50, 1, shift=2.0)
    metrics = distribution_metrics(far, gaussian(40, 2), near, "Net", "blood")
    by_name = {metric.name: metric for metric in metrics}
    assert list(by_name) == ["fid", "kid", "precision", "recall", "density", "coverage"]
    assert {(m.features, m.label, m.n) for m in metrics} == {("Net", "blood", 30)}
    assert by_name["fid"].value == pytest.approx(frechet_distance(far[:30], gaussian(40, 2)))
    for name in ("fid", "kid"):
        assert by_name[name].floor is not None
        assert by_name[name].value > 2 * by_name[name].floor
    assert by_name["precision"].value < (by_name["precision"].floor or 0)
    low, high = by_name["kid"].interval or (0, 0)
    assert low < by_name["kid"].value < high
    assert all(metric.interval is None for metric in metrics if metric.name != "kid")


def test_too_few_patches_are_named() -> None:
    with pytest.raises(DistanceError, match=r"blood: real: got 7 patches, expected 8 or more"):
        distribution_metrics(gaussian(9, 0), gaussian(7, 1), gaussian(9, 2), "Net", "blood")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for index, inputs, outputs, kernel, _, _ in CONVOLUTIONS:
        shape = (outputs, inputs, kernel, kernel)
        scale = (inputs * kernel**2 / 2) ** -0.5
        weight = torch.randn(shape, generator=generator) * scale
        tensors[f"features.{index}.weight"] = weight
        tensors[f"features.{index}.bias"] = torch.zeros(outputs)
    path: Path = tmp_path_factory.mktemp("weights") / "alexnet.safetensors"
    save_file(tensors, path)
    return Lpips(path)


def noise(count: int, seed: int, contrast: float = 1.0) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 64, 64, 3), generator=generator, dtype=torch.uint8)
    images = ((images.float() - 127.5) * contrast + 127.5).byte()
    ids = torch.zeros(count, 1, dtype=torch.long)
    return Pairs(images, images[..., 0] > 127, ids, ids)


def test_diversity_is_the_mean_over_all_pairs(network: Lpips) -> None:
    pairs = noise(19, 0)
    pixels = pairs.pixels()
    first, second = zip(*itertools.combinations(range(19), 2), strict=True)
    with torch.no_grad():
        expected = float(network(pixels[list(first)], pixels[list(second)]).mean())
    assert mean_distance(pairs, network) == pytest.approx(expected, rel=1e-4)
    metric = diversity(noise(10, 1, contrast=0.2), pairs, network, "blood")
    assert (metric.name, metric.features, metric.n) == ("lpips_diversity", "AlexNet", 10)
    assert metric.floor == pytest.approx(expected, rel=1e-4)


def test_copies_of_one_picture_have_no_diversity(network: Lpips) -> None:
    same = noise(1, 0)[torch.zeros(6, dtype=torch.long)]
    assert mean_distance(same, network) == pytest.approx(0, abs=1e-4)
    with pytest.raises(DistanceError, match="got 1 patches"):
        mean_distance(same[:1], network)
