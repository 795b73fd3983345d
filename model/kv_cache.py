"""Preallocated keys and values of the pair decode, and attention over them.

Every image has the same number of tokens, so a lane reserves one row for its whole life: no
paging. Keys of a location's structure and appearance lie side by side, so that structure queries
read a strided view that holds no appearance and appearance queries read both without a copy.
Knows positions, not tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import PriorConfig
from model.token_layout import TokenLayout

CHUNK = 32
"""Positions by which a lane's attended length grows. It is fixed by the lane's own position, never
by its neighbours', so that sums are taken in the same order at any load."""


@dataclass(frozen=True)
class Run:
    """A lane as it is attended to: its row of the batch, its lane of the cache, how far it looks.

    The biases [1, length] and [1, 2 length] shut out what lies ahead.
    """

    rows: slice
    lanes: slice
    length: int
    structure_bias: Tensor
    appearance_bias: Tensor


@dataclass(frozen=True)
class Plan:
    """The lanes [M] of a step, their positions [M] and how each is attended to."""

    lanes: Tensor
    positions: Tensor
    runs: list[Run]


class KVCache:
    """Keys and values [layers, lanes, heads, N + 1, 2, head_width]; 2 = structure, appearance."""

    def __init__(
        self,
        config: PriorConfig,
        layout: TokenLayout,
        lanes: int,
        device: torch.device,
    ) -> None:
        head_width = config.width // config.heads
        shape = (config.layers, lanes, config.heads, layout.steps, 2, head_width)
        self.keys = torch.zeros(shape, device=device)
        self.values = torch.zeros(shape, device=device)
        self.steps = layout.steps
        p = torch.arange(layout.steps, device=device)
        seen = p[None] <= p[:, None]
        both = torch.stack([seen, seen & (p[None] >= 1)], 2).flatten(1)
        self.structure_bias = _bias(seen)
        self.appearance_bias = _bias(both)

    def plan(self, lanes: Tensor, positions: Tensor) -> Plan:
        """What every layer of one step has in common: ascending lanes [M], at positions [M]."""
        # Each lane by itself: given many, torch shares them out among its threads, and where a
        # thread's part begins shows in the last bits.
        runs = []
        attended = ((positions // CHUNK + 1) * CHUNK).clamp(max=self.steps)
        for row, (lane, length) in enumerate(zip(lanes.tolist(), attended.tolist(), strict=True)):
            at = positions[row : row + 1]
            biases = self.structure_bias[at, :length], self.appearance_bias[at, : 2 * length]
            runs.append(Run(slice(row, row + 1), slice(lane, lane + 1), length, *biases))
        return Plan(lanes, positions, runs)

    def write(self, layer: int, plan: Plan, keys: Tensor, values: Tensor) -> None:
        """Store [M, 2, heads, head_width] at each lane's position."""
        self.keys[layer][plan.lanes, :, plan.positions] = keys.transpose(1, 2)
        self.values[layer][plan.lanes, :, plan.positions] = values.transpose(1, 2)

    def attend(self, layer: int, plan: Plan, queries: Tensor) -> Tensor:
        """Attention of both queries [M, 2, heads, head_width] of each lane; the same shape."""
        mixed = torch.empty_like(queries)
        for run in plan.runs:
            keys = self.keys[layer, run.lanes, :, : run.length]
            values = self.values[layer, run.lanes, :, : run.length]
            mixed[run.rows, 0] = _attention(
                queries[run.rows, 0], keys[..., 0, :], values[..., 0, :], run.structure_bias
            )
            mixed[run.rows, 1] = _attention(
                queries[run.rows, 1], keys.flatten(2, 3), values.flatten(2, 3), run.appearance_bias
            )
        return mixed


def _bias(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, float("-inf"))


def _attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """[M, heads, d] over keys [M, heads, L, d] with bias [M, L] -> [M, heads, d]."""
    return F.scaled_dot_product_attention(
        queries[:, :, None], keys, values, attn_mask=bias[:, None, None]
    )[:, :, 0]
