"""The tables of the token layout, against the sequence y, s_1, a_1, ..., s_N, a_N itself."""

from __future__ import annotations

import numpy as np

from model.checkpoint import Checkpoint
from model.decoder import FREE, Row
from model.engine import Engine
from model.kv_cache import seen_keys
from model.request import SamplingSettings
from model.slots import given_by_position
from model.token_layout import NOWHERE, TokenLayout

LAYOUT = TokenLayout(3)
STRUCTURE = ["y", *(f"s{i}" for i in range(1, 10))]
"""The input of each structure position."""
APPEARANCE = ["", "begin", *(f"a{i}" for i in range(1, 9))]
"""The input of each appearance position; position 0 does not exist."""
SEQUENCE = ["y", *(f"{stream}{i}" for i in range(1, 10) for stream in "sa")]


def seen(stream: int, position: int) -> set[str]:
    structure, appearance = LAYOUT.seen(stream, position)
    return {*(STRUCTURE[p] for p in structure), *(APPEARANCE[p] for p in appearance)}


def test_a_structure_query_sees_the_structure_before_its_token_and_nothing_else() -> None:
    for p in range(LAYOUT.locations):
        before = SEQUENCE[: SEQUENCE.index(f"s{p + 1}")]
        assert seen(0, p) == {name for name in before if name[0] != "a"}


def test_an_appearance_query_sees_all_that_comes_before_its_token() -> None:
    for p in range(1, LAYOUT.steps):
        assert seen(1, p) - {"begin"} == set(SEQUENCE[: SEQUENCE.index(f"a{p}")])


def test_the_mask_has_the_keys_that_the_layout_names() -> None:
    mask = seen_keys(LAYOUT)
    inputs = (STRUCTURE, APPEARANCE)
    for stream in (0, 1):
        for p in range(LAYOUT.steps):
            found = {inputs[of][key] for key, of in mask[stream, p].nonzero().tolist()}
            assert found == seen(stream, p)


def test_targets_and_contents_are_the_locations_of_the_tokens_there() -> None:
    def location(name: str) -> int:
        return int(name[1:]) - 1 if name[1:].isdigit() else NOWHERE

    targets, contents = LAYOUT.targets, LAYOUT.contents
    assert [s for s, _ in targets[:-1]] == [location(name) for name in STRUCTURE[1:]]
    assert [a for _, a in targets[1:]] == [location(f"a{i}") for i in range(1, 10)]
    assert [s for s, _ in contents] == [location(name) for name in STRUCTURE]
    assert [a for _, a in contents[1:]] == [location(name) for name in APPEARANCE[1:]]


def test_given_tokens_stand_where_their_step_draws_and_the_begin_token_before_them(
    checkpoint: Checkpoint,
) -> None:
    prior = checkpoint.prior
    count = prior.layout.locations
    given = np.stack([np.arange(count), np.full(count, FREE)], 1)
    given[0, 1] = 5
    table = given_by_position(Row(0, SamplingSettings(), 0, given), prior)
    assert table[:-1, 0].tolist() == list(range(count))
    assert table[:, 1].tolist() == [prior.begin, 5, *[FREE] * (count - 1)]


def test_service_and_engine_count_the_same_steps(engine: Engine) -> None:
    assert engine.info("").steps == engine.steps_per_image == engine.layout.locations + 1
