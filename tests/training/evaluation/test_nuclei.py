import math

import numpy as np
import pytest
import torch
from torch import Tensor

from training.evaluation import nuclei
from training.evaluation.metric import Metric
from training.evaluation.nuclei import Shapes
from training.run import StageError

SIDE = 128


def discs(centres: list[tuple[int, int]], axes: tuple[float, float] = (8, 8)) -> Tensor:
    """A mask [H, W] with one ellipse of half-axes `axes` at every centre (y, x)."""
    y, x = np.mgrid[:SIDE, :SIDE]
    mask = np.zeros((SIDE, SIDE), bool)
    for cy, cx in centres:
        mask |= ((y - cy) / axes[0]) ** 2 + ((x - cx) / axes[1]) ** 2 <= 1
    return torch.from_numpy(mask)


def bars(lengths: list[int]) -> Tensor:
    """A mask with a bar 10 pixels high of each length, well apart."""
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[20 * row : 20 * row + 10, 5 : 5 + length] = True
    return mask


def figures(metrics: list[Metric]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


def test_drawn_discs_are_counted_and_measured() -> None:
    shapes = nuclei.measure(discs([(20, 20), (20, 60), (60, 20), (100, 100)])[None])[0]
    assert shapes.count.tolist() == [4]
    assert np.allclose(shapes.area, math.pi * 64, rtol=0.03)
    assert (shapes.eccentricity < 0.1).all()
    assert np.allclose(sorted(shapes.spacing), [40, 40, 40, math.hypot(80, 40)])


def test_an_ellipse_has_the_eccentricity_of_its_axes() -> None:
    shapes = nuclei.measure(discs([(60, 60)], axes=(10, 20))[None])[0]
    assert shapes.eccentricity[0] == pytest.approx(math.sqrt(1 - 0.5**2), abs=0.01)
    assert len(shapes.spacing) == 0, "one nucleus has no neighbour"


def test_nuclei_that_meet_at_a_corner_are_one_and_an_empty_mask_has_none() -> None:
    mask = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    mask[0, 10:20, 10:20] = mask[0, 20:30, 20:30] = True
    met, empty = nuclei.measure(mask)
    assert met.count.tolist() == [1]
    assert empty.count.tolist() == [0]


def test_the_distance_is_in_deviations_of_real_nuclei() -> None:
    real = nuclei.measure(bars([10, 30, 10, 30])[None])  # areas 100 and 300: deviation 100
    drawn = nuclei.measure(bars([30, 30, 30])[None])
    found = figures(nuclei.nuclei_metrics(drawn, real, real, "histology"))
    assert found["nuclei_area"].value == 300
    assert found["nuclei_area"].floor == 200
    assert found["nuclei_area_distance"].value == pytest.approx(1.0)
    assert found["nuclei_area_distance"].floor == pytest.approx(0.0)
    assert found["nuclei_count"].value == 3
    assert found["nuclei_count"].floor == 4
    assert found["nuclei_area"].label == "histology"


def scattered(count: int, radius: float, seed: int) -> list[Shapes]:
    random = np.random.default_rng(seed)
    masks = []
    for _ in range(count):
        places = random.integers(10, SIDE - 10, (int(random.integers(3, 8)), 2))
        masks.append(discs([(int(y), int(x)) for y, x in places], (radius, radius)))
    return nuclei.measure(torch.stack(masks))


def test_samples_like_real_ones_stay_near_the_floor_and_swollen_nuclei_do_not() -> None:
    real, training = scattered(20, 6, 0), scattered(60, 6, 1)
    alike = figures(nuclei.nuclei_metrics(scattered(20, 6, 2), real, training, "a"))
    swollen = figures(nuclei.nuclei_metrics(scattered(20, 9, 2), real, training, "a"))
    area, bad = alike["nuclei_area_distance"], swollen["nuclei_area_distance"]
    assert area.floor is not None
    assert area.value < 3 * area.floor
    assert bad.value > 4 * area.floor


def test_no_nucleus_at_all_is_no_number_and_no_patch_is_an_error() -> None:
    real = scattered(5, 6, 0)
    empty = nuclei.measure(torch.zeros(3, SIDE, SIDE, dtype=torch.bool))
    found = figures(nuclei.nuclei_metrics(empty, real, real, "a"))
    assert found["nuclei_count"].value == 0
    assert found["nuclei_area"].as_json()["value"] is None
    with pytest.raises(StageError, match="nuclei, a: training: got 0 patches"):
        nuclei.nuclei_metrics(real, real, [], "a")


def test_the_picture_has_a_row_a_label_and_shows_both_sets() -> None:
    real, drawn = scattered(5, 6, 0), scattered(5, 9, 1)
    one = nuclei.histograms({"a": drawn}, {"a": real})
    two = nuclei.histograms({"a": drawn, "b": []}, {"a": real, "b": real})
    assert two.height > 1.5 * one.height
    # A label whose samples have no nucleus has a row all the same.
    colours = {colour for _, colour in one.getcolors(1 << 24) or []}
    assert (0xBB, 0xBB, 0xBB) in colours
    assert (0xD5, 0x5E, 0x00) in colours
