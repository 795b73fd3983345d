"""The priors of the ablations: one plain causal transformer with a token order, and the full model.

Both give logits of ids [B, S, N] and draw ids by seed, with the same noise for the same seed,
location and stream. Width, layers, rotary positions and learned positions are alike; what differs
is the order and what a prediction may see.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checkpoint import Checkpoint, build
from model.config import ModelConfig
from model.engine import Engine
from model.request import ImageRequest
from model.sampling import SamplingRows, guide, noise_table, sample
from model.token_layout import NOWHERE, TokenLayout
from model.transformer import INIT_STD, ROPE_BASE, Block, plain_linear, rotary_table, rotate
from pathar.contract import STREAMS
from training.ablation.settings import Order, Positions

TOGETHER = 64
"""Images drawn at once."""


class StreamPrior(nn.Module, ABC):
    """What training and drawing use of a prior. `streams` are those that it models, of the S in
    ids [B, S, N]; `config` names its sizes, its labels and how it is sampled.
    """

    config: ModelConfig
    streams: tuple[int, ...]
    null_label: int

    @abstractmethod
    def logits(self, labels: Tensor, ids: Tensor) -> list[Tensor]:
        """Teacher-forced logits [B, N, K] of each modelled stream; labels [B]."""

    @abstractmethod
    def draw(self, label: str, seeds: Sequence[int]) -> Tensor:
        """One image a seed: ids [M, S, N] on the CPU, 0 in a stream that is not modelled."""


def sequence(order: Order, locations: int) -> list[tuple[int, int]]:
    """(stream, location) of every token of a plain causal sequence, in the order drawn."""
    structure, appearance = ([(s, i) for i in range(locations)] for s in (0, 1))
    pairs = [token for pair in zip(structure, appearance, strict=True) for token in pair]
    lines = {
        "one": structure,
        "appearance": appearance,
        "structure_appearance": structure + appearance,
        "appearance_structure": appearance + structure,
        "interleaved": pairs,
    }
    return lines[order]


def line_table(length: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length + 1, head_width / 2] of RoPE along a sequence (Su et al. 2021)."""
    half = head_width // 2
    frequency = ROPE_BASE ** (-torch.arange(half).float() / half)
    angle = torch.arange(length + 1).float()[:, None] * frequency
    return angle.cos(), angle.sin()


class SequentialPrior(StreamPrior):
    """A GPT over one sequence: position t has token t - 1 as input (the label for t = 0), sees
    positions 0..t and predicts token t.

    Positions are the full model's: a query is turned by the location that it predicts, a key by
    the location of its content, and a learned position and stream of the content are added. Under
    `line` positions the place in the sequence stands for the location in all of it.
    """

    token_stream: Tensor
    token_location: Tensor
    token_place: Tensor
    content_stream: Tensor
    content_place: Tensor
    offset: Tensor
    cosine: Tensor
    sine: Tensor

    def __init__(self, config: ModelConfig, order: Order, positions: Positions = "grid") -> None:
        super().__init__()
        width, size = config.prior.width, config.tokenizer.codebook_size
        layout = TokenLayout(config.tokenizer.grid_size)
        line = sequence(order, layout.locations)
        self.config, self.layout = config, layout
        self.streams = tuple(sorted({stream for stream, _ in line}))
        self.null_label = len(config.labels)
        self.label = nn.Embedding(len(config.labels) + 1, width)
        self.tokens = nn.Embedding(len(self.streams) * size, width)
        self.stream = nn.Parameter(torch.zeros(2, width))
        places = layout.locations if positions == "grid" else len(line)
        self.position = nn.Parameter(torch.zeros(places + 1, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(config.prior.layers))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, size, bias=False) for _ in self.streams)
        self._register_tables(line, positions)
        self._initialise()

    def _register_tables(self, line: list[tuple[int, int]], positions: Positions) -> None:
        config = self.config
        head_width = config.prior.width // config.prior.heads
        if positions == "grid":
            cosine, sine = rotary_table(self.layout, head_width)
            # Row 0 of positions and turns is the label's; row i + 1 is location i.
            places = [location + 1 for _, location in line]
        else:
            cosine, sine = line_table(len(line), head_width)
            places = list(range(1, len(line) + 1))
        content = [(0, NOWHERE), *line[:-1]]
        tables = {
            "token_stream": [stream for stream, _ in line],
            "token_location": [location for _, location in line],
            "token_place": places,
            "content_stream": [stream for stream, _ in content],
            "content_place": [0, *places[:-1]],
            "offset": [self.streams.index(s) * config.tokenizer.codebook_size for s, _ in line],
        }
        for name, values in tables.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def _initialise(self) -> None:
        """As the full model's prior starts."""
        deep = INIT_STD / math.sqrt(2 * self.config.prior.layers)
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(parameter, std=deep)
            elif parameter.ndim == 2 and name not in ("stream", "position"):
                nn.init.normal_(parameter, std=INIT_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def logits(self, labels: Tensor, ids: Tensor) -> list[Tensor]:
        """See `StreamPrior`."""
        tokens = ids[:, self.token_stream, self.token_location] + self.offset
        content = torch.cat([self.label(labels)[:, None], self.tokens(tokens[:, :-1])], 1)
        hidden = self._through(content, 0, None)
        return [
            head(hidden[:, self.token_stream == stream])
            for head, stream in zip(self.heads, self.streams, strict=True)
        ]

    def _through(self, content: Tensor, start: int, cache: _Cache | None) -> Tensor:
        """Embeddings of the content of positions from `start` on -> hidden, [M, L, width] each."""
        at = slice(start, start + content.shape[1])
        place, heads = self.content_place[at], self.config.prior.heads
        x = content + self.stream[self.content_stream[at]] + self.position[place]
        wanted = self.token_place[at]
        for layer, block in enumerate(cast(list[Block], list(self.blocks))):
            turned = block.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            q = rotate(turned[0], self.cosine[wanted], self.sine[wanted])
            k, v = rotate(turned[1], self.cosine[place], self.sine[place]), turned[2]
            if cache is not None:
                k, v = cache.extend(layer, start, k, v)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
            x = x + block.out(mixed.transpose(1, 2).flatten(2))
            x = x + block.mlp(x, plain_linear)
        return self.norm(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def draw(self, label: str, seeds: Sequence[int]) -> Tensor:
        """See `StreamPrior`."""
        together = [seeds[i : i + TOGETHER] for i in range(0, len(seeds), TOGETHER)]
        return torch.cat([self._draw(label, some) for some in together]).cpu()

    def _draw(self, label: str, seeds: Sequence[int]) -> Tensor:
        count, settings, device = len(seeds), self.config.settings(label), self.position.device
        noise = torch.stack([noise_table(seed, self.layout.locations) for seed in seeds]).to(device)
        rows = [SamplingRows.of([settings] * count, stream, device) for stream in STREAMS]
        scales = [settings.of_stream(stream)["cfg_scale"] for stream in STREAMS]
        ids = torch.zeros(count, max(self.streams) + 1, self.layout.locations, dtype=torch.long)
        ids = ids.to(device)
        # A row with the label and one without for each image.
        labels = torch.tensor([self.config.label_index(label), self.null_label], device=device)
        content = self.label(labels.repeat_interleave(count))[:, None]
        cache = _Cache(self, 2 * count)
        line = zip(self.token_stream.tolist(), self.token_location.tolist(), strict=True)
        for t, (stream, location) in enumerate(line):
            hidden = self._through(content, t, cache)[:, 0]
            logits = self.heads[self.streams.index(stream)](hidden).float()
            uniform = noise[:, location, stream]
            wanted, null = logits.chunk(2)
            scale = torch.full((count,), scales[stream], device=device)
            token = sample(guide(wanted, null, scale), rows[stream], uniform)
            ids[:, stream, location] = token
            content = self.tokens(token + self.offset[t]).repeat(2, 1)[:, None]
        return ids


class _Cache:
    """Keys and values of a sequence as it is drawn, [layers, rows, heads, T, head_width] each."""

    def __init__(self, prior: SequentialPrior, rows: int) -> None:
        sizes = prior.config.prior
        shape = (sizes.layers, rows, sizes.heads, len(prior.offset), sizes.width // sizes.heads)
        self.keys = torch.zeros(shape, device=prior.position.device)
        self.values = torch.zeros_like(self.keys)

    def extend(self, layer: int, at: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the position `at` of a layer, [rows, heads, 1, head_width]; all up to it."""
        self.keys[layer, :, :, at] = keys[:, :, 0]
        self.values[layer, :, :, at] = values[:, :, 0]
        return self.keys[layer, :, :, : at + 1], self.values[layer, :, :, : at + 1]


class AsymmetricPrior(StreamPrior):
    """The product's prior, drawn from by the product's engine."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.prior = build(config)[1]
        self.streams = (0, 1)
        self.null_label = self.prior.null_label

    def logits(self, labels: Tensor, ids: Tensor) -> list[Tensor]:
        """See `StreamPrior`."""
        return list(self.prior(labels, ids[:, 0], ids[:, 1]))

    def draw(self, label: str, seeds: Sequence[int]) -> Tensor:
        """See `StreamPrior`."""
        # The engine wants a tokenizer to paint with; only its tokens are taken here.
        unused = build(self.config)[0].eval()
        engine = Engine(
            Checkpoint(self.config, "unsaved", unused, self.prior),
            device=str(self.prior.position.device),
            slots=min(len(seeds), TOGETHER),
            threads=torch.get_num_threads(),
        )
        ids = torch.zeros(len(seeds), 2, self.prior.layout.locations, dtype=torch.long)
        waiting = list(enumerate(seeds))[::-1]
        places: dict[int, int] = {}
        while waiting or places:
            while waiting and engine.free:
                place, seed = waiting.pop()
                places[engine.admit(ImageRequest(label, seed, self.config.settings(label)))] = place
            for slot in engine.step():
                grids = engine.retire(slot)
                for stream, grid in enumerate((grids.structure, grids.appearance)):
                    ids[places[slot], stream] = torch.from_numpy(grid).flatten()
                del places[slot]
        return ids


def build_prior(order: Order, config: ModelConfig, positions: Positions = "grid") -> StreamPrior:
    """A row's prior with fresh weights."""
    if order == "asymmetric":
        return AsymmetricPrior(config)
    return SequentialPrior(config, order, positions)
