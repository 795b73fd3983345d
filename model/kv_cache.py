"""The preallocated key/value cache of the pair decode, and attention over it.

Every image has the same number of tokens, so a lane reserves one row for its whole life: no
paging. A location's keys of structure and appearance are side by side, so that one pass over them
serves both queries. For the structure query, appearance has a weight of exactly zero. Knows
positions, not tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import PriorConfig
from model.token_layout import TokenLayout

CHUNK = 32
"""Positions by which a lane's attended length grows. It is fixed by the lane's own position, never
by its neighbours', so that sums are taken in the same order at any load."""


@dataclass(frozen=True)
class Run:
    """One image's lanes as they are attended to: rows of the batch, lanes of the cache, how far.

    The bias [2, 2 length] shuts out what lies ahead and, for the structure query, appearance.
    """

    rows: slice
    lanes: slice
    length: int
    bias: Tensor


@dataclass(frozen=True)
class Plan:
    """The lanes [M] of a step, their positions [M] and how each image is attended to."""

    lanes: Tensor
    positions: Tensor
    runs: list[Run]


def seen_keys(layout: TokenLayout) -> Tensor:
    """Bool [query's stream, its position, key's position, its stream]: whether it is seen."""
    mask = torch.zeros(2, layout.steps, layout.steps, 2, dtype=torch.bool)
    for stream in (0, 1):
        for p in range(layout.steps):
            for of_keys, keys in enumerate(layout.seen(stream, p)):
                mask[stream, p, keys.start : keys.stop, of_keys] = True
    return mask


class KVCache:
    """Keys and values [layers, lanes, heads, N + 1, 2, head_width]; 2 = structure, appearance."""

    def __init__(
        self, config: PriorConfig, layout: TokenLayout, lanes: int, device: torch.device
    ) -> None:
        head_width = config.width // config.heads
        shape = (config.layers, lanes, config.heads, layout.steps, 2, head_width)
        self.keys = torch.zeros(shape, device=device)
        self.values = torch.zeros(shape, device=device)
        self.steps = layout.steps
        seen = seen_keys(layout).permute(1, 0, 2, 3).flatten(2).to(device)
        self.bias = torch.zeros(seen.shape, device=device).masked_fill(~seen, float("-inf"))

    def plan(self, lanes: Tensor, positions: Tensor) -> Plan:
        """What every layer of one step has in common: ascending lanes [M], at positions [M].

        Lanes 2 n and 2 n + 1 belong to one image and stand at one position.
        """
        # Each image by itself, though together would be faster: given a matrix product for every
        # lane, torch shares them out among its threads, and how may show in the last bits.
        runs, row = [], 0
        attended = ((positions // CHUNK + 1) * CHUNK).clamp(max=self.steps).tolist()
        of_lanes = lanes.tolist()
        while row < len(of_lanes):
            lane, length = of_lanes[row], attended[row]
            count = 2 if of_lanes[row + 1 : row + 2] == [lane + 1] and lane % 2 == 0 else 1
            bias = self.bias[positions[row], :, : 2 * length]
            runs.append(Run(slice(row, row + count), slice(lane, lane + count), length, bias))
            row += count
        return Plan(lanes, positions, runs)

    def write(self, layer: int, plan: Plan, keys: Tensor, values: Tensor) -> None:
        """Store [M, 2, heads, head_width] at each lane's position."""
        self.keys[layer][plan.lanes, :, plan.positions] = keys.transpose(1, 2)
        self.values[layer][plan.lanes, :, plan.positions] = values.transpose(1, 2)

    def attend(self, layer: int, plan: Plan, queries: Tensor) -> Tensor:
        """Attention of both queries [M, 2, heads, head_width] of each lane; the same shape."""
        mixed, scale = torch.empty_like(queries), queries.shape[-1] ** -0.5
        for run in plan.runs:
            # Both queries at once, so that each key and value is read once; [lanes * heads, ...].
            of_run = queries[run.rows].transpose(1, 2)
            keys = self.keys[layer, run.lanes, :, : run.length].flatten(2, 3).flatten(0, 1)
            values = self.values[layer, run.lanes, :, : run.length].flatten(2, 3).flatten(0, 1)
            scores = torch.baddbmm(
                run.bias, of_run.flatten(0, 1), keys.transpose(1, 2), alpha=scale
            )
            weights = scores.softmax(-1)
            mixed[run.rows] = torch.bmm(weights, values).view(of_run.shape).transpose(1, 2)
        return mixed
