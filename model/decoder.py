"""The interface that the engine uses to decode: the tokens of many rows, one step at a time.

There are three decoders. `model/torch_decoder.py` runs on every device that torch supports.
`model/native_decoder.py` runs on CPUs and is several times faster. `model/triton_decoder.py` runs
on NVIDIA GPUs. In all of them a row depends only on its label, its settings and its noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.request import SamplingSettings

FREE = -1
"""A location whose token is drawn, in a row's table of given tokens."""


@dataclass(frozen=True)
class Row:
    """One image as a decoder sees it.

    `label` indexes the label embedding; `seed` keys the noise (`model.sampling.noise_table`);
    `given` int64 [N, 2] is a token's id, or FREE, by location and stream.
    """

    label: int
    settings: SamplingSettings
    seed: int
    given: NDArray[np.int64]


@dataclass(frozen=True)
class Sequences:
    """Which sequences some live slots take: sequence 2 i is slot i under its label, 2 i + 1 without
    one.

    `label_row` and `null_row` give each slot's places in `sequences`, the same one without
    guidance.
    """

    sequences: list[int]
    label_row: list[int]
    null_row: list[int]

    @classmethod
    def of(cls, live: list[int], settings: list[SamplingSettings]) -> Sequences:
        """One sequence a slot, two with guidance."""
        made = cls([], [], [])
        for slot, of_row in zip(live, settings, strict=True):
            made.label_row.append(len(made.sequences))
            made.sequences.append(2 * slot)
            if of_row.guided:
                made.sequences.append(2 * slot + 1)
            made.null_row.append(len(made.sequences) - 1)
        return made


class Decoder(Protocol):
    """Slots 0..slots - 1, each for one row of N + 1 steps."""

    @property
    def facts(self) -> dict[str, str]:
        """What decides the bits of its tokens."""

    def place(self, slot: int, row: Row) -> None:
        """Put a row into a slot, at its beginning; it is drawn once it is live."""

    def arrange(self, live: list[int]) -> None:
        """From now on a step advances these slots, given in ascending order."""

    def step(self) -> None:
        """Advance every live row by one step."""

    def logits(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Structure and appearance logits [sequences, K] of the last step, before guidance.

        They go as in `Sequences`.
        """

    def tokens(self, slot: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Structure and appearance ids [N] of a slot, as far as they are drawn."""

    def log_probability(self, slot: int) -> NDArray[np.float32]:
        """Of the ids of a slot's locations, as far as they are drawn, [N, 2]: log p(id | label,
        what came before), in nats, before guidance, temperature, top-k and top-p.
        """

    def log_likelihood(
        self, slot: int, counted: NDArray[np.bool_] | None = None
    ) -> tuple[float, float]:
        """The sums of `log_probability` over a complete slot's locations, of structure and of
        appearance. Given ids count too; with `counted` [N, 2] those that it names do, and no
        others.
        """
