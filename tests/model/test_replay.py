"""200 random requests have the same bytes alone, at any load, in any order and after a restart.

Draws as `benchmarks.identity` does, which shows the same at the sizes that ship.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.identity import Setup, differing, random_requests, replay
from model.checkpoint import Checkpoint
from model.engine import Kernel

REQUESTS = 200


@pytest.mark.parametrize("kernel", ["torch", "native"], indirect=True)
def test_every_file_is_the_same_in_every_replay(test_checkpoint: Path, kernel: Kernel) -> None:
    setup = Setup(test_checkpoint, "cpu", threads=1, kernel=kernel)
    alone, *others = replay(setup, REQUESTS, [3, 16])
    assert alone.name == "alone"
    assert [other.name for other in others] == [
        "3 slots",
        "3 slots, random order",
        "16 slots",
        "16 slots, random order",
        "16 slots, restarted",
    ]
    for other in others:
        assert differing(alone.drawn, other.drawn) == [], other.name
    for files in alone.drawn:
        assert files.keys() == {"image.png", "mask.png", "tokens.json"}


def test_the_requests_are_all_over_the_range(checkpoint: Checkpoint) -> None:
    requests = random_requests(REQUESTS, checkpoint.config)
    assert len(set(requests)) == REQUESTS
    assert {row.label for row in requests} == {label.name for label in checkpoint.config.labels}
    for kind in (
        [row.settings.cfg_scale == 1 for row in requests],
        [row.settings.cfg_scale == 10 for row in requests],
        [row.settings.temperature == 0 for row in requests],
        [row.settings.temperature == 2 for row in requests],
        [row.settings.top_k == 0 for row in requests],
        [row.settings.top_k == 1 for row in requests],
        [row.settings.top_p == 1 for row in requests],
        [row.settings.top_p < 1 for row in requests],
        [row.structure is None for row in requests],
    ):
        assert 0 < sum(kind) < REQUESTS


def test_one_other_byte_is_noticed() -> None:
    first = [{"image.png": "a", "tokens.json": "b"}, {"image.png": "c", "tokens.json": "d"}]
    second = [first[0], {**first[1], "image.png": "e"}]
    assert differing(first, first) == []
    assert differing(first, second) == [1]
