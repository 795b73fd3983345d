"""The pair decode in torch: in fp32 on any device, in bf16 on processors that multiply it.

Linears run in tiles of a constant number of rows and attention over lengths fixed by each row's
own position, so that a row's bits are the same at any load. Knows no requests and no pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.decoder import FREE, Lanes, Row
from model.kv_cache import CHUNK, KVCache
from model.request import SamplingSettings
from model.sampling import SamplingRows, guide, noise_table, sample
from model.transformer import Linear, Prior

TILE = 16
"""Rows that every linear layer is given at once. A matrix product of another row count may sum in
another order, so a constant one keeps a row's bits at any load."""


def bytes_per_slot(prior: Prior) -> int:
    """Memory that each slot takes: two lanes of an fp32 cache; the rows of a step are small."""
    config = prior.config
    return 2 * config.layers * prior.layout.steps * 2 * 2 * config.width * 4


def has_bf16() -> bool:
    """Whether this processor multiplies bf16, so that bf16 is faster and not slower."""
    return bool(torch.cpu._is_avx512_bf16_supported()) and torch.backends.mkldnn.is_available()


class TorchDecoder:
    """A `Decoder` on torch; `in_bf16` (CPU only) multiplies matrices in bf16, the rest is fp32."""

    def __init__(self, prior: Prior, slots: int, *, in_bf16: bool = False) -> None:
        self._prior, self._steps = prior, prior.layout.steps
        self._device = device = prior.position.device
        self._precision = "bf16" if in_bf16 else "fp32"
        # oneDNN's attention in bf16 is three times slower than in fp32 for a single query.
        self._linear = packed_linear(prior) if in_bf16 else tiled_linear
        self._cache = KVCache(prior.config, prior.layout, 2 * slots, device)
        # Column p of a slot holds what step p drew: s_(p+1) and a_p.
        self._structure = torch.zeros(slots, self._steps, dtype=torch.long, device=device)
        self._appearance = torch.full_like(self._structure, prior.begin)
        self._given = torch.full((slots, self._steps, 2), FREE, device=device)
        self._noise = torch.zeros(slots, self._steps, 2, device=device)
        self._position = torch.zeros(slots, dtype=torch.long, device=device)
        self._label = torch.full((2 * slots,), prior.null_label, device=device)
        self._settings = [SamplingSettings()] * slots
        self._logits: tuple[Tensor, Tensor] | None = None
        self.arrange([])

    @property
    def facts(self) -> dict[str, str]:
        """See `Decoder.facts`."""
        tiles = {"tile": str(TILE), "chunk": str(CHUNK)}
        return {"decoder": "torch", "precision": self._precision, **tiles}

    @torch.inference_mode()
    def place(self, slot: int, row: Row) -> None:
        """See `Decoder.place`."""
        self._label[2 * slot] = row.label
        noise = noise_table(row.seed, self._steps - 1)
        self._noise[slot, :-1] = noise.to(self._device)
        self._given[slot, :-1] = torch.from_numpy(row.given).to(self._device)
        self._settings[slot] = row.settings
        self._position[slot] = 0

    def arrange(self, live: list[int]) -> None:
        """See `Decoder.arrange`: builds the index tensors, so that steps need not."""
        settings = [self._settings[slot] for slot in live]
        rows = Lanes.of(live, settings)
        self._slots, self._lanes = self._index(live), self._index(rows.lanes)
        self._label_row, self._null_row = self._index(rows.label_row), self._index(rows.null_row)
        scales = [of_row.cfg_scale for of_row in settings]
        self._cfg_scale = torch.tensor(scales, device=self._device)
        both = [of_row for of_row in settings for _ in (0, 1)]
        self._sampling = SamplingRows.of(both, self._device)

    @torch.inference_mode()
    def step(self) -> None:
        """See `Decoder.step`."""
        slots = self._lanes // 2
        at = self._position[slots]
        before = (at - 1).clamp_min(0)
        structure, appearance = self._structure[slots, before], self._appearance[slots, before]
        x = self._prior.embed_pair(self._label[self._lanes], structure, appearance, at)
        self._logits = self._prior.step(x, self._lanes, at, self._cache, self._linear)
        self._emit(self._draw(*self._logits))

    def logits(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Decoder.logits`."""
        if self._logits is None:
            raise RuntimeError("no step has been made")
        structure, appearance = self._logits
        return structure.float().cpu().numpy(), appearance.float().cpu().numpy()

    def tokens(self, slot: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `Decoder.tokens`."""
        structure, appearance = self._structure[slot, :-1], self._appearance[slot, 1:]
        return structure.cpu().numpy().copy(), appearance.cpu().numpy().copy()

    def _index(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    def _draw(self, structure: Tensor, appearance: Tensor) -> Tensor:
        """Guide and sample both streams: ids [rows, 2]."""
        at = self._position[self._slots]
        guided = torch.stack(
            [
                guide(logits[self._label_row], logits[self._null_row], self._cfg_scale)
                for logits in (structure.float(), appearance.float())
            ],
            1,
        )
        noise = torch.stack(
            [
                self._noise[self._slots, at, 0],
                self._noise[self._slots, (at - 1).clamp_min(0), 1],
            ],
            1,
        )
        return sample(guided.flatten(0, 1), self._sampling, noise.flatten()).view(-1, 2)

    def _emit(self, ids: Tensor) -> None:
        """Write one step's tokens; given tokens stand, and a_0 stays the begin token."""
        slots, at = self._slots, self._position[self._slots]
        given = torch.stack(
            [self._given[slots, at, 0], self._given[slots, (at - 1).clamp_min(0), 1]], 1
        )
        ids = torch.where(given == FREE, ids, given)
        begin = torch.full_like(ids[:, 1], self._prior.begin)
        self._structure[slots, at] = ids[:, 0]
        self._appearance[slots, at] = torch.where(at == 0, begin, ids[:, 1])
        self._position[slots] += 1


def tiled_linear(layer: nn.Linear, rows: Tensor) -> Tensor:
    """Apply a linear layer to [..., in] in tiles of TILE rows, the last one padded."""
    return _in_tiles(layer, rows)


def packed_linear(prior: Prior) -> Linear:
    """`tiled_linear` in bf16, with the matrices laid out once as oneDNN wants them."""
    packed = {}
    for layer in prior.modules():
        if isinstance(layer, nn.Linear):
            bias = None if layer.bias is None else layer.bias.detach().bfloat16()
            weight = layer.weight.detach().bfloat16()
            packed[layer] = torch.ops.mkldnn._reorder_linear_weight(weight, TILE), bias

    def apply(layer: nn.Linear, rows: Tensor) -> Tensor:
        weight, bias = packed[layer]

        def product(tile: Tensor) -> Tensor:
            done: Tensor = torch.ops.mkldnn._linear_pointwise(tile, weight, bias, "none", [], "")
            return done

        return _in_tiles(product, rows.bfloat16()).float()

    return apply


def _in_tiles(product: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    flat = rows.flatten(0, -2)
    count = len(flat)
    if spare := -count % TILE:
        flat = F.pad(flat, (0, 0, 0, spare))
    tiles = [product(tile) for tile in flat.split(TILE)]
    out = tiles[0] if len(tiles) == 1 else torch.cat(tiles)
    return out[:count].view(*rows.shape[:-1], -1)
