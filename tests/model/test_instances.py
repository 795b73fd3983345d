import numpy as np
import pytest

from model.instances import REACH, borders, components, instances


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


def test_without_borders_ids_are_the_components() -> None:
    mask = TOUCHING > 0
    assert np.array_equal(instances(mask, np.zeros_like(mask)), components(mask))


@pytest.mark.parametrize("turns", range(4))
def test_the_rule_turns_with_the_patch(turns: int) -> None:
    between = borders(TOUCHING)
    assert np.array_equal(borders(np.rot90(TOUCHING, turns)), np.rot90(between, turns))
    found = instances(np.rot90(TOUCHING > 0, turns), np.rot90(between, turns))
    upright = instances(TOUCHING > 0, between)
    assert same_regions(found, np.ascontiguousarray(np.rot90(upright, turns)))


def test_an_empty_mask_has_no_ids() -> None:
    nothing = np.zeros((8, 8), bool)
    assert not instances(nothing, nothing).any()
    assert not borders(nothing.astype(np.int32)).any()
