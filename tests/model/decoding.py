"""How tests draw with an engine: admit some rows, step until all are complete."""

from collections.abc import Sequence

import numpy as np

from model.engine import Engine, TokenGrids
from model.request import ImageRequest


def draw(engine: Engine, rows: Sequence[ImageRequest]) -> list[TokenGrids]:
    numbers = {engine.admit(row): number for number, row in enumerate(rows)}
    return finish(engine, numbers)


def finish(engine: Engine, numbers: dict[int, int]) -> list[TokenGrids]:
    """Step until the rows in `numbers` (slot -> number) are complete."""
    drawn: dict[int, TokenGrids] = {}
    while len(drawn) < len(numbers):
        for slot in engine.step():
            drawn[numbers[slot]] = engine.retire(slot)
    return [drawn[number] for number in sorted(drawn)]


def same(a: TokenGrids, b: TokenGrids) -> bool:
    return np.array_equal(a.structure, b.structure) and np.array_equal(a.appearance, b.appearance)
