"""An image that is admitted while others decode starts at the next step; no clock is read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from model.engine import Engine
from model.request import ImageRequest, SamplingSettings
from tests.model.decoding import draw

HALF_WAY = 32
GUIDED = SamplingSettings(cfg_scale=2.0)
OTHERS = [ImageRequest("blood", seed, GUIDED) for seed in range(15)]
JOINING = ImageRequest("histology", 99, GUIDED)

pytestmark = pytest.mark.parametrize("kernel", ["torch", "native"], indirect=True)


def test_the_16th_image_starts_at_the_next_step_and_15_others_miss_none(
    make_engine: Callable[[int], Engine],
) -> None:
    """One more token of each is there after every step: its own, as drawn alone."""
    alone = [draw(make_engine(1), [row])[0].structure.flatten() for row in [*OTHERS, JOINING]]
    engine = make_engine(16)
    last = engine.steps_per_image
    slots = [engine.admit(row) for row in OTHERS]
    ended: dict[int, list[int]] = {}
    for step in range(1, HALF_WAY + last + 1):
        if step == HALF_WAY + 1:
            slots.append(engine.admit(JOINING))
            assert drawn(engine, slots[-1], alone[-1]) == 0, "it would be seen to start"
        for slot in engine.step():
            ended.setdefault(step, []).append(slot)
        for number, slot in enumerate(slots):
            age = step - HALF_WAY if number == 15 else step
            assert drawn(engine, slot, alone[number]) >= min(age, last - 1)
    assert ended == {last: slots[:15], HALF_WAY + last: slots[15:]}


def drawn(engine: Engine, slot: int, tokens: np.ndarray) -> int:
    """How many tokens of a slot are those, from the first on."""
    different = np.flatnonzero(engine.decoder.tokens(slot)[0] != tokens)
    return int(different[0]) if len(different) else len(tokens)


def test_the_16th_image_has_its_sequences_at_the_next_step(
    make_engine: Callable[[int], Engine],
) -> None:
    engine = make_engine(16)
    sequences = []
    for row in OTHERS:
        engine.admit(row)
    for step in range(HALF_WAY):
        if step == HALF_WAY - 1:
            engine.admit(JOINING)
        engine.step()
        sequences.append(len(engine.decoder.logits()[0]))
    assert sequences == [30] * (HALF_WAY - 1) + [32]
