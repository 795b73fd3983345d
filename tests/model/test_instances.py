import numpy as np
import pytest
from scipy import ndimage  # type: ignore[import-untyped]

from model.instances import (
    FARTHEST,
    MOST,
    NECK,
    REACH,
    _squared_distances,
    borders,
    components,
    instances,
    separated,
    shortened,
)

SHAPES = ((1, 1), (1, 9), (7, 1), (40, 64), (64, 40))


def discs(size: int, *places: tuple[int, int, int]) -> np.ndarray:
    """Discs of (row, column, radius), numbered from 1; later ones lie below earlier ones."""
    y, x = np.mgrid[:size, :size]
    ids = np.zeros((size, size), np.int32)
    for number, (row, column, radius) in enumerate(places, start=1):
        ids[((y - row) ** 2 + (x - column) ** 2 < radius**2) & (ids == 0)] = number
    return ids


TOUCHING = discs(64, (20, 20, 10), (20, 37, 9), (45, 30, 12))


def same_regions(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two maps hold the same regions, whatever their numbers."""
    pairs = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1)
    return len(pairs.T) == len(np.unique(ours)) == len(np.unique(theirs))


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.int64])
def test_a_border_lies_where_two_nuclei_are_near_and_nowhere_else(kind: type) -> None:
    ids = np.zeros((20, 40), kind)
    ids[5:15, 5:15], ids[5:15, 15:25] = 1, 2
    found = borders(ids)
    assert found[10].nonzero()[0].tolist() == list(range(15 - REACH, 15 + REACH))
    assert not borders(np.where(ids == 2, 1, ids)).any()


def test_a_narrow_gap_is_a_border_and_a_wide_one_is_not() -> None:
    for gap in range(1, 8):
        ids = np.zeros((20, 40), np.int32)
        ids[:, 5:15], ids[:, 15 + gap : 30] = 1, 2
        assert borders(ids).any() == (gap < 2 * REACH)


def test_nuclei_that_touch_come_back_apart() -> None:
    mask = TOUCHING > 0
    assert components(mask).max() == 2
    found = instances(mask, borders(TOUCHING))
    assert found.max() == 3
    assert np.mean(found == TOUCHING) > 0.995


def test_ids_cover_the_mask_and_count_on_in_raster_order() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        mask, between = random.random((2, 32, 32)) > 0.5
        found = instances(mask, between)
        assert np.array_equal(found > 0, mask)
        assert np.array_equal(np.unique(found[mask]), np.arange(1, found.max() + 1))


def test_a_nucleus_that_is_all_border_keeps_an_id_of_its_own() -> None:
    mask = np.zeros((16, 16), bool)
    mask[2:4, 2:4] = mask[8:14, 8:14] = True
    between = np.zeros_like(mask)
    between[2:4, 2:4] = True
    assert instances(mask, between)[2:4, 2:4].tolist() == [[2, 2], [2, 2]]


def test_a_pixel_that_two_seeds_reach_at_once_goes_to_the_lowest_id() -> None:
    mask = np.ones((1, 7), bool)
    between = np.array([[0, 0, 1, 1, 1, 0, 0]], bool)
    assert instances(mask, between).tolist() == [[1, 1, 1, 1, 2, 2, 2]]


def test_where_there_is_no_border_ids_are_the_components() -> None:
    mask = TOUCHING > 0
    assert np.array_equal(instances(mask, np.zeros_like(mask)), components(mask))


def test_without_borders_nuclei_come_apart_at_their_necks() -> None:
    found = instances(TOUCHING > 0, None)
    assert found.max() == 3
    assert np.mean(found == TOUCHING) > 0.99


@pytest.mark.parametrize("half_width", [3, 4, 5, 6, 7, 8])
def test_a_neck_separates_where_it_is_narrower_than_both_sides_by_a_pixel(half_width: int) -> None:
    """Two discs of radius 8 with a bar between them. Its half width counts to the ground's
    pixel, as theirs does."""
    mask = discs(64, (32, 20, 8), (32, 44, 8)) > 0
    mask[33 - half_width : 32 + half_width, 20:44] = True
    assert separated(mask).max() == (2 if 8 - half_width >= NECK else 1)


@pytest.mark.parametrize("long", [12, 30, 60])
def test_a_long_nucleus_stays_one(long: int) -> None:
    y, x = np.mgrid[:64, :64]
    ellipse = ((y - 32) / 6) ** 2 + ((x - 32) / (long / 2)) ** 2 < 1
    assert separated(ellipse).max() == 1
    bar = np.zeros((64, 64), bool)
    bar[20:31, 2 : 2 + long] = True
    assert separated(bar).max() == 1


def test_the_patchs_edge_is_no_ground() -> None:
    """Half a nucleus that the edge cuts is as high at the edge as in the middle of a whole one."""
    whole = discs(64, (32, 32, 10)) > 0
    assert separated(whole[:, 32:]).max() == 1
    assert np.array_equal(distances(whole[:, 32:])[32, :10], distances(whole)[32, 32:42])


def distances(mask: np.ndarray) -> np.ndarray:
    return np.sqrt(_squared_distances(mask).astype(float))


@pytest.mark.parametrize("shape", [*SHAPES, (400, 30), (30, 400)])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999, 1.0])
def test_distances_to_ground_are_exact(shape: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(0).random(shape) < share
    known = np.full(shape, np.inf) if mask.all() else ndimage.distance_transform_edt(mask)
    assert np.array_equal(distances(mask), np.minimum(known, FARTHEST))


@pytest.mark.parametrize("shape", [*SHAPES, (380, 400)])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 1.0])
def test_components_are_those_of_scipy(shape: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(1).random(shape) < share
    assert np.array_equal(components(mask), ndimage.label(mask, np.ones((3, 3)))[0])


@pytest.mark.parametrize("shape", [*SHAPES, (256, 256), (500, 300)])
def test_separated_nuclei_cover_the_mask_are_connected_and_count_in_raster_order(
    shape: tuple[int, int],
) -> None:
    noise = np.random.default_rng(2).random(shape)
    mask = ndimage.gaussian_filter(noise, 3) > 0.5
    found = separated(mask)
    assert np.array_equal(found > 0, mask)
    numbers, first = np.unique(found[mask], return_index=True)
    assert numbers.tolist() == list(range(1, found.max() + 1))
    assert np.all(np.diff(first) > 0)
    for number in numbers[:50]:
        assert components(found == number).max() == 1


def test_more_nuclei_than_16_bits_count_share_the_last_id() -> None:
    ids = np.array([[0, 1, MOST, MOST + 1, 2 * MOST]], np.int32)
    assert shortened(ids).tolist() == [[0, 1, MOST, MOST, MOST]]
    assert shortened(ids).dtype == np.uint16


@pytest.mark.parametrize("turns", range(4))
def test_the_rule_turns_with_the_patch(turns: int) -> None:
    between = borders(TOUCHING)
    assert np.array_equal(borders(np.rot90(TOUCHING, turns)), np.rot90(between, turns))
    found = instances(np.rot90(TOUCHING > 0, turns), np.rot90(between, turns))
    upright = instances(TOUCHING > 0, between)
    assert same_regions(found, np.ascontiguousarray(np.rot90(upright, turns)))
    alone = separated(np.rot90(TOUCHING > 0, turns))
    upright = np.ascontiguousarray(np.rot90(separated(TOUCHING > 0), turns))
    assert alone.max() == upright.max() == 3
    assert np.mean((alone > 0) == (upright > 0)) == 1


def test_an_empty_mask_has_no_ids() -> None:
    nothing = np.zeros((8, 8), bool)
    assert not instances(nothing, nothing).any()
    assert not instances(nothing, None).any()
    assert not borders(nothing.astype(np.int32)).any()
