"""The windows of a large image: together they decide every location, each from what lies before."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.canvas import Canvas
from model.decoder import FREE
from model.tiles import blended
from model.windows import Overlap, cost, plan

SIDES = st.integers(1, 20)


@settings(deadline=None)
@given(SIDES, st.integers(0, 24), st.integers(0, 24), st.integers(0, 2**32))
def test_every_location_is_decided_once_with_all_before_it_in_view(
    side: int, more_rows: int, more_columns: int, order: int
) -> None:
    rows, columns = side + more_rows, side + more_columns
    chance, dense = random.Random(order), random.Random(order).choice([0, 0.9, 1])
    kept = np.array([chance.random() < dense for _ in range(rows * columns * 2)])
    kept = kept.reshape(rows, columns, 2)
    kept[: rows // 2] |= dense > 0
    canvas = Canvas(rows, columns, Overlap.of(side), kept)
    drawn_at, decided = ~kept.all(2), np.zeros((rows, columns), int)
    begun: list[tuple[int, np.ndarray]] = []
    while not canvas.complete:
        while canvas.ready and (not begun or chance.random() < 0.5):
            window, table = canvas.begin()
            view = table.reshape(side, side, 2)
            assert 0 <= window.top <= rows - side
            assert 0 <= window.left <= columns - side
            first, last = (row - window.top for row in window.rows)
            begin, end = (column - window.left for column in window.columns)
            assert 0 <= first < last <= side
            assert 0 <= begin < end <= side
            assert (view[:first] != FREE).all(), "the rows above are known"
            assert (view[first:last, :begin] != FREE).all(), "the columns before are known"
            steps = (last - 1) * side + end - 1 + 2
            before = drawn_at[window.top : window.rows[0], window.left : window.left + side]
            own = drawn_at[slice(*window.rows), window.left : window.columns[1]]
            if not before.any() and not own.any():
                steps = 0
            assert steps == window.steps <= side * side + 1, "its last location is drawn with them"
            begun.append((window.number, view))
        number, view = begun.pop(chance.randrange(len(begun)))
        window = canvas.windows[number]
        decided[slice(*window.rows), slice(*window.columns)] += 1
        drawn = np.where(view == FREE, number + 1, view)
        of_drawn = np.full((side, side, 2), -1.0, np.float32) if window.steps else None
        canvas.take(window, drawn, of_drawn)
    assert (decided == 1).all()
    structure, appearance = canvas.tokens
    assert (structure != FREE).all()
    assert (structure == appearance).all()
    seen = np.zeros((rows, columns), bool)
    for window in canvas.windows:
        seen[slice(*window.rows), slice(*window.columns)] = window.steps > 0
    whole = (-rows * columns, -rows * columns) if seen.all() else None
    assert canvas.log_likelihood == whole
    assert canvas.kept_log_likelihood == tuple(-(kept & seen[..., None]).sum((0, 1)))
    assert seen[drawn_at].all()


def test_windows_that_do_not_need_each_other_are_ready_together() -> None:
    canvas = Canvas(64, 64, Overlap.of(16))
    most, waves = 0, 0
    while not canvas.complete:
        wave = [canvas.begin() for _ in range(canvas.ready)]
        most, waves = max(most, len(wave)), waves + 1
        for window, table in wave:
            canvas.take(window, table.reshape(16, 16, 2), np.zeros((16, 16, 2), np.float32))
    assert most == 4
    assert waves == 21


def test_the_seed_of_a_window_is_of_its_place_alone() -> None:
    small, large = plan(32, 32, Overlap.of(16)), plan(48, 64, Overlap.of(16))
    places = {(w.rows[0], w.left): w.seed(7) for w in large}
    assert len(set(places.values())) == len(large)
    assert all(places[w.rows[0], w.left] == w.seed(7) for w in small)
    assert all(w.seed(7) != w.seed(8) for w in small)


@pytest.mark.parametrize(("rows", "columns"), [(17, 16), (64, 64), (128, 128)])
def test_the_cost_is_that_of_the_steps(rows: int, columns: int) -> None:
    steps = sum(window.steps for window in plan(rows, columns, Overlap.of(16)))
    assert (cost(rows, columns, 16) - 1) * 257 < steps <= cost(rows, columns, 16) * 257
    whole = [True] * (rows * columns)
    assert sum(window.steps for window in plan(rows, columns, Overlap.of(16), whole)) == 0
    assert cost(rows, columns, 16, whole) == -(-rows * columns // 256), "its area"


@given(st.integers(1, 17), st.integers(0, 40), st.integers(0, 40), st.integers(1, 4))
def test_tiles_that_agree_make_the_whole(
    side: int, more_rows: int, more_columns: int, cell: int
) -> None:
    rows, columns = side + more_rows, side + more_columns
    whole = np.random.default_rng(rows).random((2, rows * cell, columns * cell), np.float32)

    def tile(down: slice, across: slice) -> np.ndarray:
        assert down.stop - down.start == across.stop - across.start == side
        y, x = (slice(at.start * cell, at.stop * cell) for at in (down, across))
        return whole[:, y, x]

    assert np.allclose(blended((rows, columns), side, cell, tile), whole, atol=1e-6)
