"""Which pixels outlines enclose, in each of the three ways; numbers, overlaps and classes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from skimage.draw import polygon

from training.layouts.outlines import (
    NO_PIXEL,
    Classes,
    Outline,
    Piece,
    Shape,
    centres_inside,
    drawn,
    inside_or_on,
    paint,
)
from training.pictures import UNRULED, Rules
from training.rasters import SourceError

SHAPE = (20, 30)
SQUARE = np.array([(5, 4), (12, 4), (12, 9), (5, 9)], dtype=float)


def whole(pieces: list[Piece], shape: Shape = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for piece in pieces:
        height, width = piece.mask.shape
        mask[piece.top : piece.top + height, piece.left : piece.left + width] |= piece.mask
    return mask


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_the_rules_differ_in_the_pixels_on_the_edge() -> None:
    assert np.array_equal(whole(inside_or_on(SQUARE, SHAPE)), box(4, 5, 10, 13))
    assert np.array_equal(whole(centres_inside([SQUARE], SHAPE)), box(4, 5, 9, 12))
    assert np.array_equal(whole(drawn(SQUARE + 0.7, SHAPE)), box(4, 5, 10, 13))


def test_a_centre_on_an_edge_belongs_to_one_side_alone() -> None:
    left, right = (np.array([(a, 2), (b, 2), (b, 8), (a, 8)]) for a, b in ((3, 6.5), (6.5, 10)))
    masks = [whole(centres_inside([each], SHAPE)) for each in (left, right)]
    assert np.array_equal(masks[0], box(2, 3, 8, 6))
    assert np.array_equal(masks[1], box(2, 6, 8, 10))


def test_holes_are_cut_out_of_an_outline() -> None:
    hole = np.array([(7, 5), (9, 5), (9, 7), (7, 7)])
    expected = box(4, 5, 9, 12) & ~box(5, 7, 7, 9)
    assert np.array_equal(whole(centres_inside([SQUARE, hole], SHAPE)), expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-40, 140), st.integers(-40, 120)), min_size=3, max_size=9))
def test_outlines_through_pixels_enclose_what_the_organisers_code_fills(
    quarters: list[tuple[int, int]],
) -> None:
    points = np.array(quarters) / 4
    assume(shapely.Polygon(points).is_valid)
    expected = np.zeros(SHAPE, dtype=bool)
    expected[polygon(points[:, 1], points[:, 0], SHAPE)] = True
    assert np.array_equal(whole(inside_or_on(points, SHAPE)), expected)


def test_what_lies_outside_is_cut_off_and_two_points_enclose_nothing() -> None:
    outside = SQUARE + np.array((20, 13))
    assert np.array_equal(whole(inside_or_on(outside, SHAPE)), box(17, 25, 20, 30))
    assert np.array_equal(whole(centres_inside([outside], SHAPE)), box(17, 25, 20, 30))
    assert np.array_equal(whole(drawn(outside, SHAPE)), box(17, 25, 20, 30))
    for points in (SQUARE[:2], SQUARE + 1000, SQUARE - 1000, SQUARE[:0]):
        assert not whole(inside_or_on(points, SHAPE)).any()
        assert not whole(centres_inside([points], SHAPE)).any()
        assert not whole(drawn(points, SHAPE)).any()


def test_nuclei_are_numbered_in_order_and_the_earlier_keeps_its_pixels() -> None:
    def outline(label: str, move: int, doubt: str = "") -> Outline:
        return Outline(label, lambda shape: inside_or_on(SQUARE + move, shape), doubt)

    outlines = [
        outline("a", 0),
        outline("a", 0),  # wholly beneath the first
        outline("b", 5),
        outline("a", 100),
        outline("a", 2),
        outline("a", 9, "unclear regions"),
    ]
    ids, doubtful, left_out = paint(outlines, SHAPE, frozenset({"a"}))
    assert np.array_equal(ids == 1, box(4, 5, 10, 13))
    assert np.array_equal(ids == 2, box(6, 7, 12, 15) & ~box(4, 5, 10, 13))
    assert ids.max() == 2
    assert doubtful is not None
    assert np.array_equal(doubtful, box(13, 14, 19, 22))
    assert left_out == {NO_PIXEL: 2, "annotations of class b": 1, "unclear regions": 1}


def test_classes_are_chosen_by_name_or_number_and_never_guessed() -> None:
    classes = Classes(Counter(nucleus=3, cytoplasm=2), {"7": {"nucleus"}, "9": {"unseen"}})
    source = Path("data")
    assert classes.nuclei(source, Rules(nuclei=("nucleus",))) == {"nucleus"}
    assert classes.nuclei(source, Rules(nuclei=("7", "cytoplasm"))) == {"nucleus", "cytoplasm"}
    assert Classes(Counter(thing=1)).nuclei(source, UNRULED) == {"thing"}
    assert classes.nuclei(source, UNRULED, ["nucleus", "cytoplasm"]) == {"nucleus", "cytoplasm"}
    with pytest.raises(
        SourceError,
        match=r"data: .* 2 classes: nucleus \(3\), cytoplasm \(2\); --nuclei .*nucleus$",
    ):
        classes.nuclei(source, UNRULED)
    for word in ("nuclei", "9", "8"):
        with pytest.raises(SourceError, match=rf"got {word}, but .* nucleus \(3\), cytoplasm"):
            classes.nuclei(source, Rules(nuclei=(word,)))
