"""Reference decoders: slow and plain, the truth that the engine is tested against.

`sequential` runs one query at a time, with a cache that simply grows. `recompute` runs the whole
teacher-forced pass for every token. Both use the engine's noise, so all three must give the same
tokens. `sequential` computes each position's inputs and keys itself: it does not read the tables of
`TokenLayout`, so a wrong table shows. Knows no slots and no caches of the decoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.request import ImageRequest
from model.sampling import SamplingRows, guide, noise_table, sample
from model.transformer import Prior, plain_linear, rotate
from pathar.contract import STREAMS

Tokens = tuple[Tensor, Tensor]
"""Structure and appearance ids [B, N]."""


class _Canvas:
    """The tokens drawn so far of B images, each with a label sequence and a null sequence."""

    def __init__(self, prior: Prior, rows: Sequence[ImageRequest], labels: Sequence[int]) -> None:
        count, locations = len(rows), prior.layout.locations
        device = prior.position.device
        wanted = torch.tensor(list(labels), device=device)
        self.labels = torch.cat([wanted, torch.full_like(wanted, prior.null_label)])
        settings = [row.settings for row in rows]
        self.settings = [SamplingRows.of(settings, stream, device) for stream in STREAMS]
        self.cfg_scale = [
            torch.tensor([row.of_stream(stream)["cfg_scale"] for row in settings], device=device)
            for stream in STREAMS
        ]
        noise = [noise_table(row.seed, locations) for row in rows]
        self.noise = torch.stack(noise).to(device)
        self.ids = torch.zeros(2, count, locations, dtype=torch.long, device=device)

    def both_sequences(self, stream: int) -> Tensor:
        """Ids [2 B, N] of one stream, label sequences first."""
        return self.ids[stream].repeat(2, 1)

    def take(self, stream: int, location: int, logits: Tensor) -> None:
        """Sample one token an image from the logits [2 B, K] of both sequences."""
        label, null = logits.float().chunk(2)
        scale = self.cfg_scale[stream]
        guided = torch.where(scale[:, None] == 1, label, guide(label, null, scale))
        uniform = self.noise[:, location, stream]
        self.ids[stream, :, location] = sample(guided, self.settings[stream], uniform)

    def tokens(self) -> Tokens:
        return self.ids[0], self.ids[1]


@torch.inference_mode()
def recompute(prior: Prior, rows: Sequence[ImageRequest], labels: Sequence[int]) -> Tokens:
    """Draw with no cache: every token from a whole forward pass."""
    canvas = _Canvas(prior, rows, labels)
    for location in range(prior.layout.locations):
        for stream in (0, 1):
            logits = prior(canvas.labels, canvas.both_sequences(0), canvas.both_sequences(1))[
                stream
            ]
            canvas.take(stream, location, logits[:, location])
    return canvas.tokens()


@torch.inference_mode()
def sequential(prior: Prior, rows: Sequence[ImageRequest], labels: Sequence[int]) -> Tokens:
    """Draw one query at a time: structure p, then appearance p, 2 N + 1 in all."""
    canvas = _Canvas(prior, rows, labels)
    grown = _GrowingCache.empty(prior)
    for p in range(prior.layout.steps):
        at = prior.position.new_full((len(canvas.labels),), p, dtype=torch.long)
        structure = canvas.both_sequences(0)[:, p - 1]
        appearance = canvas.both_sequences(1)[:, p - 2] if p > 1 else at * 0 + prior.begin
        inputs = prior.embed_pair(canvas.labels, structure, appearance, at)
        hidden = _advance(prior, inputs[:, :1], 0, p, grown)
        if p < prior.layout.locations:
            canvas.take(0, p, prior.structure_head(hidden))
        if p > 0:
            hidden = _advance(prior, inputs[:, 1:], 1, p, grown)
            canvas.take(1, p - 1, prior.appearance_head(hidden))
    return canvas.tokens()


@dataclass
class _GrowingCache:
    """Keys and values by layer and stream, each [2, 2 B, heads, length, head_width]."""

    layers: list[list[Tensor | None]]

    @classmethod
    def empty(cls, prior: Prior) -> _GrowingCache:
        return cls([[None, None] for _ in prior.layers()])

    def append(self, layer: int, stream: int, pair: Tensor) -> None:
        held = self.layers[layer][stream]
        self.layers[layer][stream] = pair if held is None else torch.cat([held, pair], 3)

    def seen(self, layer: int, stream: int) -> Tensor:
        """All that a query of `stream` may see."""
        streams = self.layers[layer][: stream + 1]
        return torch.cat([held for held in streams if held is not None], 3)


def _advance(prior: Prior, x: Tensor, stream: int, p: int, cache: _GrowingCache) -> Tensor:
    """One query [2 B, 1, width] of one stream through all layers -> [2 B, width]."""
    layout = prior.layout
    if stream == 0:
        query, key = layout.structure_query_location(p), layout.structure_key_location(p)
    else:
        query, key = layout.appearance_query_location(p), layout.appearance_key_location(p)
    for layer, block in enumerate(prior.layers()):
        heads = block.qkv(block.norm1(x)).unflatten(-1, (3, prior.config.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in heads.unbind(2))
        q = rotate(q, prior.cosine[query + 1], prior.sine[query + 1])
        k = rotate(k, prior.cosine[key + 1], prior.sine[key + 1])
        cache.append(layer, stream, torch.stack([k, v]))
        keys, values = cache.seen(layer, stream)
        mixed = F.scaled_dot_product_attention(q, keys, values)
        x = x + block.out(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(x, plain_linear)
    return prior.norm(x)[:, 0]  # type: ignore[no-any-return]
