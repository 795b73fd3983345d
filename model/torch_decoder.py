"""The pair decode in torch: in fp32 on any device, in bf16 on CPUs with bf16 instructions.

Linear layers run in tiles of a constant number of rows. Attention runs over lengths fixed by each
row's own position. So a row's bits are the same at any load. Knows no requests and no pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.decoder import FREE
from model.kv_cache import CHUNK, KVCache
from model.sampling import SamplingRows, guide, sample
from model.slots import REALS, HostSlots
from model.transformer import Linear, Prior

TILE = 16
"""Rows that every linear layer is given at once. A matrix product of another row count may sum in
another order, so a constant one keeps a row's bits at any load."""


def bytes_per_slot(prior: Prior) -> int:
    """Memory that each slot takes: two sequences of an fp32 cache; the rows of a step are small."""
    config = prior.config
    return 2 * config.layers * prior.layout.steps * 2 * 2 * config.width * 4


def has_bf16() -> bool:
    """Whether this processor multiplies bf16, so that bf16 is faster and not slower."""
    return bool(torch.cpu._is_avx512_bf16_supported()) and torch.backends.mkldnn.is_available()


class TorchDecoder(HostSlots):
    """A `Decoder` on torch; `in_bf16` (CPU only) multiplies matrices in bf16, the rest is fp32."""

    def __init__(self, prior: Prior, slots: int, *, in_bf16: bool = False) -> None:
        super().__init__(prior, slots)
        self._device = device = prior.position.device
        self._precision = "bf16" if in_bf16 else "fp32"
        # oneDNN's attention in bf16 is three times slower than in fp32 for a single query.
        self._linear = packed_linear(prior) if in_bf16 else tiled_linear
        self._cache = KVCache(prior.config, prior.layout, 2 * slots, device)
        self._logits: tuple[Tensor, Tensor] | None = None
        self.arrange([])

    @property
    def facts(self) -> dict[str, str]:
        """See `Decoder.facts`."""
        tiles = {"tile": str(TILE), "chunk": str(CHUNK)}
        return {"decoder": "torch", "precision": self._precision, **tiles}

    def arrange(self, live: list[int]) -> None:
        """See `Decoder.arrange`: builds the index tensors, so that steps need not."""
        self._columns = {
            name: self._sent(np.array(values, np.float32 if name in REALS else np.int64))
            for name, values in self._arranged(live).items()
        }
        of_images = (self._columns[name] for name in ("temperature", "top_k", "top_p"))
        self._sampling = SamplingRows(*(values.flatten() for values in of_images))

    @torch.inference_mode()
    def step(self) -> None:
        """See `Decoder.step`."""
        at, tokens, noise, given = (self._sent(values) for values in self._next())
        columns, (structure, appearance) = self._columns, tokens.unbind(1)
        x = self._prior.embed_pair(columns["sequence_label"], structure, appearance, at)
        self._logits = self._prior.step(x, columns["sequence_row"], at, self._cache, self._linear)
        label, null, cfg_scale = (columns[n] for n in ("label_row", "null_row", "cfg_scale"))
        streams = [logits.float() for logits in self._logits]
        guided = torch.stack(
            [
                guide(of[label], of[null[:, stream]], cfg_scale[:, stream])
                for stream, of in enumerate(streams)
            ],
            1,
        )
        drawn = sample(guided.flatten(0, 1), self._sampling, noise.flatten()).view(-1, 2)
        ids = torch.where(given == FREE, drawn, given)
        log_probability = torch.stack([of[label] for of in streams], 1).log_softmax(-1)
        # The begin token is no entry of the codebook; nobody reads its probability.
        entries = ids.clamp(max=self._prior.codebook_size - 1)[..., None]
        of_ids = log_probability.gather(-1, entries)[..., 0]
        self._take(ids.cpu().numpy(), of_ids.cpu().numpy())

    def logits(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Decoder.logits`."""
        if self._logits is None:
            raise RuntimeError("no step has been made")
        structure, appearance = self._logits
        return structure.float().cpu().numpy(), appearance.float().cpu().numpy()

    def _sent(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


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
