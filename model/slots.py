"""The slots of decoders that keep tokens on the host, and how every decoder lays out its rows.

Tables go by position, as in `TokenLayout`; the begin token counts as a given token. Knows no
logits, no caches and no devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.decoder import FREE, Row, Sequences
from model.sampling import noise_table
from model.token_layout import TokenLayout
from model.transformer import Prior
from pathar.contract import STREAMS

Ids = NDArray[np.int64]
REALS = ("cfg_scale", "temperature", "top_p")


def arrangement(live: list[int], rows: Mapping[int, Row], null_label: int) -> dict[str, list[Any]]:
    """Live slots as columns: `sequence_...` of each sequence (`sequence_row`: in the cache), else
    of each slot; of each slot and stream [live, 2] are `null_row` and the settings.

    See `Sequences` for their order.
    """
    settings = [rows[slot].settings for slot in live]
    sequences = Sequences.of(live, settings)
    of_streams = [[of_row.of_stream(stream) for stream in STREAMS] for of_row in settings]
    by_stream = {
        name: [[stream[name] for stream in pair] for pair in of_streams]
        for name in ("top_k", *REALS)
    }
    return {
        "sequence_slot": [sequence // 2 for sequence in sequences.sequences],
        "sequence_row": sequences.sequences,
        "sequence_label": [
            null_label if sequence % 2 else rows[sequence // 2].label
            for sequence in sequences.sequences
        ],
        "image_slot": live,
        "label_row": sequences.label_row,
        "null_row": [
            # Without guidance the stream's logits are those of the label, to the bit.
            [null if scale != 1 else label for scale in scales]
            for label, null, scales in zip(
                sequences.label_row, sequences.null_row, by_stream["cfg_scale"], strict=True
            )
        ],
        "seed": [rows[slot].seed for slot in live],
        **by_stream,
    }


def given_by_position(row: Row, prior: Prior) -> Ids:
    """What stands whatever a step draws, else FREE: [N + 1, 2]; for a_0 the begin token."""
    given: Ids = row.given[prior.layout.targets, (0, 1)]
    given[0, 1] = prior.begin
    return given


def log_probability_of(
    by_position: NDArray[np.float32], layout: TokenLayout
) -> NDArray[np.float32]:
    """Log probabilities by location [N, 2], from a slot's by position [N + 2, 2]."""
    structure, appearance = layout.token_rows
    return np.stack([by_position[structure, 0], by_position[appearance, 1]], 1)


def log_likelihood_of(
    log_probability: NDArray[np.float32], counted: NDArray[np.bool_] | None
) -> tuple[float, float]:
    """Of structure and appearance, from log probabilities by location [N, 2], of the ids `counted`
    [N, 2] or of all. The sums are exact, so their order does not matter."""
    structure, appearance = log_probability.T
    if counted is not None:
        structure, appearance = structure[counted[:, 0]], appearance[counted[:, 1]]
    return math.fsum(structure), math.fsum(appearance)


def tokens_of(inputs: NDArray[Any], layout: TokenLayout) -> tuple[Ids, Ids]:
    """Structure and appearance ids [N] from a slot's inputs by position [N + 2, 2]."""
    structure, appearance = layout.token_rows
    return inputs[structure, 0].astype(np.int64), inputs[appearance, 1].astype(np.int64)


class HostSlots:
    """The half of a `Decoder` that knows what each of `slots` rows asks for and has drawn."""

    def __init__(self, prior: Prior, slots: int) -> None:
        steps = prior.layout.steps
        self._prior = prior
        self._rows: dict[int, Row] = {}
        self._position = np.zeros(slots, np.int64)
        self._inputs = np.zeros((slots, steps + 1, 2), np.int64)
        self._inputs[:, 0, 1] = prior.begin
        self._given = np.full((slots, steps, 2), FREE)
        self._noise = np.zeros((slots, steps, 2), np.float32)
        self._log_probability = np.zeros((slots, steps + 1, 2), np.float32)

    def place(self, slot: int, row: Row) -> None:
        """See `Decoder.place`."""
        layout = self._prior.layout
        noise = noise_table(row.seed, layout.locations).numpy()
        self._noise[slot] = noise[layout.targets, (0, 1)]
        self._given[slot] = given_by_position(row, self._prior)
        self._rows[slot], self._position[slot] = row, 0

    def tokens(self, slot: int) -> tuple[Ids, Ids]:
        """See `Decoder.tokens`."""
        return tokens_of(self._inputs[slot], self._prior.layout)

    def log_probability(self, slot: int) -> NDArray[np.float32]:
        """See `Decoder.log_probability`."""
        return log_probability_of(self._log_probability[slot], self._prior.layout)

    def log_likelihood(
        self, slot: int, counted: NDArray[np.bool_] | None = None
    ) -> tuple[float, float]:
        """See `Decoder.log_likelihood`."""
        return log_likelihood_of(self.log_probability(slot), counted)

    def _arranged(self, live: list[int]) -> dict[str, list[Any]]:
        """Take these slots as live from now on; their `arrangement`."""
        columns = arrangement(live, self._rows, self._prior.null_label)
        self._live, self._sequence_slots = (
            np.array(live, int),
            np.array(columns["sequence_slot"], int),
        )
        return columns

    def _next(self) -> tuple[Ids, Ids, NDArray[np.float32], Ids]:
        """Of the next step: positions [sequences], input tokens [sequences, 2], noise [live, 2],
        given tokens [live, 2].
        """
        at, of_images = self._position[self._sequence_slots], self._position[self._live]
        noise, given = self._noise[self._live, of_images], self._given[self._live, of_images]
        return at, self._inputs[self._sequence_slots, at], noise, given

    def _take(self, ids: NDArray[Any], log_probability: NDArray[Any]) -> None:
        """Keep a step's tokens and their log probabilities, [live, 2] each, and advance."""
        at = self._position[self._live] + 1
        self._inputs[self._live, at], self._log_probability[self._live, at] = ids, log_probability
        self._position[self._live] = at
