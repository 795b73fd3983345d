"""Outlines of instances give the same pixels back, by the packages that read them elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pathar.outlines import Instance, instances_in, polygons, run_lengths

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools

MAPS = arrays(
    np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)
)
"""Small enough for corners that touch, holes, and what lies in holes; at every edge."""
ONE_EACH = {
    "a pixel": ["#"],
    "two that touch at a corner": ["#.", ".#"],
    "holes that touch at a corner": ["####", "#.##", "##.#", "####"],
    "a hole that touches the outside": ["###.", "#.##", "##.#", ".###"],
    "a ring around a ring": [
        *("#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"),
    ],
    "a ring cut at a corner": ["##.", "#.#", "###"],
}


def shape_of(instance: Instance) -> Any:
    return shapely.MultiPolygon([(rings[0], rings[1:]) for rings in polygons(instance)])


def inside(shape: Any, height: int, width: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[:height, :width]
    covered: NDArray[np.bool_] = shapely.contains_xy(shape, x + 0.5, y + 0.5)
    return covered


def check(ids: NDArray[np.uint16]) -> None:
    height, width = ids.shape
    found = {instance.number: instance for instance in instances_in(ids)}
    assert set(found) == set(np.unique(ids)) - {0}
    for number, instance in found.items():
        pixels = ids == number
        assert instance.area == pixels.sum()
        runs = {"counts": run_lengths(instance, height, width), "size": [height, width]}
        packed = coco_mask.frPyObjects(runs, height, width)
        assert np.array_equal(coco_mask.decode(packed), pixels)
        assert coco_mask.toBbox(packed).tolist() == list(instance.box)
        shape = shape_of(instance)
        assert shape.is_valid
        assert shape.area == instance.area
        assert np.array_equal(inside(shape, height, width), pixels)
        for polygon in shape.geoms:
            assert polygon.exterior.is_ccw
            assert not any(hole.is_ccw for hole in polygon.interiors)


@given(MAPS)
def test_run_lengths_and_polygons_hold_the_pixels_of_an_instance_and_no_others(
    ids: NDArray[np.uint16],
) -> None:
    check(ids)


@pytest.mark.parametrize("name", ONE_EACH)
def test_corners_and_holes(name: str) -> None:
    check(np.array([[char == "#" for char in row] for row in ONE_EACH[name]], np.uint16))


def test_straight_lines_have_two_corners() -> None:
    [instance] = instances_in(np.full((3, 5), 7, np.uint16))
    assert polygons(instance) == [[[(0, 0), (5, 0), (5, 3), (0, 3)]]]
    assert run_lengths(instance, 3, 5) == [0, 15]
