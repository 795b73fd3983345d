"""Random requests have the same bytes alone, at any load, in any order and after a restart.

Draws as `benchmarks.identity` does, which shows the same of 200 at the sizes that ship.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.identity import Setup, differing, random_requests, replay
from model import torch_decoder
from model.checkpoint import Checkpoint, load_checkpoint
from model.decoder import FREE, Decoder, Row, Sequences
from model.engine import Kernel
from model.given import Given
from model.native.build import VARIANTS
from model.native_decoder import NativeDecoder, libraries
from model.request import ImageRequest
from model.torch_decoder import TorchDecoder
from pathar.contract import FILE_NAMES

ALL, SEED = 14, 141
"""So many requests, from this seed, reach every end of every range."""
THREADS = 2
"""More than one, since which thread does what may matter."""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kernel", "threads", "requests", "slots"),
    [("torch", 1, ALL, [16]), ("torch", THREADS, 3, [3]), ("native", THREADS, ALL, [3, 16])],
    indirect=["kernel"],
)
def test_every_file_is_the_same_in_every_replay(
    test_checkpoint: Path, kernel: Kernel, threads: int, requests: int, slots: list[int]
) -> None:
    """Torch's threads wait for each other at each of its small products, so two draw few."""
    setup = Setup(test_checkpoint, "cpu", threads=threads, kernel=kernel, seed=SEED)
    alone, *others = replay(setup, requests, slots)
    assert alone.name == "alone"
    assert [other.name for other in others] == [
        *(f"{count} slots{order}" for count in slots for order in ("", ", random order")),
        f"{slots[-1]} slots, restarted",
    ]
    for other in others:
        assert differing(alone.drawn, other.drawn) == [], other.name
    for files in alone.drawn:
        assert tuple(files) == FILE_NAMES


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["torch", "torch_bf16", *VARIANTS])
def test_not_one_bit_of_a_logit_depends_on_the_load(
    slow_checkpoint: Path, variant: str, mixed_rows: list[ImageRequest]
) -> None:
    """Sharper than tokens, which rarely show the last bits of a sum."""
    if variant in VARIANTS and variant not in libraries():
        pytest.skip(f"the {variant} decode step is not built or not for this processor")
    if variant == "torch_bf16" and not torch_decoder.has_bf16():
        pytest.skip("this processor does not multiply bf16")
    prior = load_checkpoint(slow_checkpoint).prior
    torch.set_num_threads(THREADS)

    def decoder(slots: int) -> Decoder:
        if variant in VARIANTS:
            return NativeDecoder(prior, slots, THREADS, variant=variant)
        return TorchDecoder(prior, slots, in_bf16=variant == "torch_bf16")

    steps, given = prior.layout.steps, np.full((256, 2), FREE)
    rows = [Row(n % 5, row.settings, row.seed, given) for n, row in enumerate(mixed_rows[:3])]
    together = logits_by_step(decoder(8), rows, steps)
    for number, row in enumerate(rows):
        [alone] = logits_by_step(decoder(1), [row], steps)
        assert len(alone) == len(together[number]) == steps
        for step, (one, other) in enumerate(zip(alone, together[number], strict=True)):
            assert np.array_equal(one, other), f"row {number}, step {step}"


def logits_by_step(decoder: Decoder, rows: Sequence[Row], steps: int) -> list[list[np.ndarray]]:
    """Both streams' logits of each row at each of its steps, before guidance.

    A row joins every 30 steps, so the last joins while the first is still there.
    """
    found: list[list[np.ndarray]] = [[] for _ in rows]
    for now in range(30 * (len(rows) - 1) + steps):
        if now % 30 == 0 and now // 30 < len(rows):
            decoder.place(now // 30, rows[now // 30])
        live = [n for n in range(len(rows)) if 30 * n <= now < 30 * n + steps]
        decoder.arrange(live)
        decoder.step()
        logits = np.stack(decoder.logits())
        sequences = Sequences.of(live, [rows[n].settings for n in live])
        for n, label, null in zip(live, sequences.label_row, sequences.null_row, strict=True):
            found[n].append(logits[:, [label, null]])
    return found


def test_the_requests_are_all_over_the_range(checkpoint: Checkpoint) -> None:
    requests = random_requests(ALL, checkpoint.config, SEED)
    assert len(set(requests)) == ALL
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
        [row.given is None for row in requests],
        [row.size is None for row in requests],
        [row.rivals == () for row in requests],
        *given_in_kinds(requests),
    ):
        assert 0 < sum(kind) < len(kind)


def given_in_kinds(requests: Sequence[ImageRequest]) -> list[list[bool]]:
    """What tells requests apart that are given something: of which streams, how, and how much."""
    given = [row.given for row in requests if isinstance(row.given, Given)]
    streams = [stream for each in given for stream in vars(each).values() if stream is not None]
    return [
        [each.structure is None for each in given],
        [each.appearance is None for each in given],
        [None not in (each.structure, each.appearance) for each in given],
        *([stream.kind == kind for stream in streams] for kind in ("mask", "image", "tokens")),
        [stream.keep is None for stream in streams],
    ]


def test_one_other_byte_is_noticed() -> None:
    first = [{"image.png": "a", "tokens.json": "b"}, {"image.png": "c", "tokens.json": "d"}]
    second = [first[0], {**first[1], "image.png": "e"}]
    assert differing(first, first) == []
    assert differing(first, second) == [1]
