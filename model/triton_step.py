"""One decode step on a GPU as a list of kernel launches, with the memory that they work on.

Packs a prior's weights for `model/triton_kernels.py`. Owns what is on the device: the state of
every slot, the arrangement of live rows, the caches and the activations. Of a launch's arguments,
only the number of sequences can change, so a step can be captured and replayed. Knows no streams,
no graphs and no rows' settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.decoder import FREE
from model.slots import REALS
from model.transformer import MLP_RATIO, Block, Prior

ROW_TILE = 64
WIDE, NARROW = 64, 32
"""Output columns of one program: of most layers; of those that add to the residual stream, which
have fewer columns and would keep fewer multiprocessors busy."""
INNER_TILES = (128, 64, 32)
"""The largest that divides the inner dimension is taken."""
STAGES = {WIDE: 3, NARROW: 4}
"""Tiles of the inner dimension under way at once, by output columns."""
CHUNK, CHUNK_STAGES = 32, 3
"""Positions that attention takes at once; chunks under way."""
EMBED_ROWS = 16
DRAW_WARPS = 8

HEAD_WIDTHS = (16, 32, 64, 128)
CODEBOOK_SIZES = tuple(2**bits for bits in range(5, 13))

SEQUENCE = ("sequence_slot", "sequence_row", "sequence_label")
"""The arrangement, as the kernels name it: slot, cache row and label of each sequence."""
IMAGE = ("image_slot", "label_row", "null_row", "seed", "top_k")
"""Slot of each image (below 0: none), its sequences with and without the label, its settings; then
REALS."""


def takes(prior: Prior) -> bool:
    """Whether the kernels take a prior of these sizes.

    Its width must be a multiple of a column tile, its head width and codebook size powers of two
    within a range, since one program holds a whole head, another a whole codebook.
    """
    return (
        prior.config.width % NARROW == 0
        and prior.config.width // prior.config.heads in HEAD_WIDTHS
        and prior.codebook_size in CODEBOOK_SIZES
    )


@dataclass(frozen=True)
class Launch:
    """One kernel of a step; `grid` gives its programs for a number of sequences."""

    kernel: Any
    grid: Callable[[int], tuple[int, ...]]
    arguments: dict[str, Any]

    def __call__(self, sequences: int) -> None:
        """Launch it."""
        rows = {"rows": 2 * sequences} if "rows" in self.kernel.arg_names else {}
        self.kernel[self.grid(sequences)](**rows, **self.arguments)


class Step:
    """A step of up to `sequences` sequences over `slots` slots and a spare one, with a spare cache
    row.

    `integers` int64 [SEQUENCE + IMAGE, .] and `reals` fp32 [REALS, .] are the arrangement (what
    goes by image and stream is flat),
    `position` int32 [slots + 1] each slot's next step. `inputs` int32 [slots + 1, N + 2, 2] and
    `given` int32 [slots + 1, N + 1, 2] go by position, as in `model/slots.py`, and so does
    `log_probability` fp32 [slots + 1, N + 2, 2]. `logits` fp32 [2
    sequences, K], structure and appearance of sequence 0, of sequence 1 and so on. `overlap`: set
    each kernel up while the one before it runs (programmatic dependent launch), for GPUs that can.
    """

    def __init__(
        self, prior: Prior, slots: int, sequences: int, device: torch.device, *, overlap: bool
    ) -> None:
        self._device = device
        self._overlap: dict[str, Any] = {"OVERLAP": overlap}
        if overlap:
            self._overlap["launch_pdl"] = True
        # Triton's interpreter, which runs on the CPU, multiplies no bf16.
        self.matrix = torch.float32 if device.type == "cpu" else torch.bfloat16
        self._steps = steps = prior.layout.steps
        self._width, self._heads = width, heads = prior.config.width, prior.config.heads
        self._head_width = width // heads
        # At least 16 wide, so that every row of them is aligned alike for the compiler.
        places = max(2 * sequences, 16)
        self.integers = self._zeros(len(SEQUENCE + IMAGE), places, dtype=torch.int64)
        self.reals = self._zeros(len(REALS), places)
        self.position = self._zeros(slots + 1, dtype=torch.int32)
        self.inputs = self._zeros(slots + 1, steps + 1, 2, dtype=torch.int32)
        self.inputs[:, 0, 1] = prior.begin
        self.given = torch.full_like(self.inputs[:, :-1], FREE)
        self.log_probability = self._zeros(slots + 1, steps + 1, 2)
        cache = (prior.config.layers, 2 * slots + 1, heads, 2, steps, self._head_width)
        self._keys = self._zeros(*cache, dtype=self.matrix)
        self._values = self._zeros(*cache, dtype=self.matrix)
        self._at = self._zeros(sequences, dtype=torch.int32)
        self._x = self._zeros(2 * sequences, width)
        self._scaled = self._zeros(2 * sequences, width, dtype=self.matrix)
        self._moments = self._zeros(2 * sequences, 2, width // NARROW)
        self._queries = self._zeros(2 * sequences, width)
        self._mixed = self._zeros(2 * sequences, width, dtype=self.matrix)
        self._hidden = self._zeros(2 * sequences, MLP_RATIO * width, dtype=self.matrix)
        self.logits = self._zeros(2 * sequences, prior.codebook_size)
        self.launches = self._make_launches(prior)

    def launch(self, sequences: int) -> None:
        """Launch every kernel for the first `sequences` sequences of the arrangement."""
        for launch in self.launches:
            launch(sequences)

    @torch.no_grad()
    def _make_launches(self, prior: Prior) -> list[Launch]:
        """Five a layer and three more."""
        layers = prior.layers()
        norms = [*(block.norm1 for block in layers), prior.norm]
        tables = [self._kept(table) for table in prior.rotary_by_position()]
        launches = [self._embed(prior, norms[0])]
        for number, block in enumerate(layers):
            launches += [
                self._qkv(number, block, *tables),
                self._attend(number),
                self._residual(self._mixed, block.out, block.norm2),
                self._normed(block.norm2, [block.up.weight], block.up.bias, self._hidden),
                self._residual(self._hidden, block.down, norms[number + 1]),
            ]
        heads = [prior.structure_head.weight, prior.appearance_head.weight]
        return [*launches, self._normed(prior.norm, heads, None, self.logits), self._draw(prior)]

    # Each of these packs one kernel's arguments under the kernel's own names for them. Triton comes
    # with torch for GPUs; without one, nobody needs it.

    def _embed(self, prior: Prior, norm: nn.LayerNorm) -> Launch:
        from model.triton_kernels import embed

        width = self._width
        tables = [prior.label.weight, prior.structure.weight, prior.appearance.weight]
        arguments = dict(
            **self._overlap,
            **self._arrangement("sequence_slot", "sequence_label"),
            position=self.position,
            inputs=self.inputs,
            table=self._kept(torch.cat(tables), self.matrix),
            places=self._kept(prior.places_by_position()),
            at=self._at,
            **self._residual_stream(norm),
            STEPS=self._steps,
            WIDTH=width,
            STRUCTURE=len(tables[0]),
            APPEARANCE=len(tables[0]) + len(tables[1]),
            ROW_TILE=EMBED_ROWS,
            COLUMN_TILE=NARROW,
        )
        return Launch(
            embed, lambda sequences: (_up(2 * sequences, EMBED_ROWS), width // NARROW), arguments
        )

    def _qkv(self, layer: int, block: Block, cosine: Tensor, sine: Tensor) -> Launch:
        from model.triton_kernels import qkv_linear

        width, head_width = self._width, self._head_width
        # The two halves of a head turn in pairs. Paired columns become neighbours, in queries and
        # keys alike: a score does not mind the order.
        halves = block.qkv.weight[: 2 * width].view(-1, 2, head_width // 2, width)
        paired = halves.transpose(1, 2).reshape(2 * width, width)
        tiles = _tiles(width, width)
        arguments = dict(
            **self._overlap,
            **self._after_norm(block.norm1, torch.cat([paired, block.qkv.weight[2 * width :]])),
            **self._arrangement("sequence_row"),
            at=self._at,
            cosine=cosine,
            sine=sine,
            queries=self._queries,
            keys=self._keys[layer],
            values=self._values[layer],
            STEPS=self._steps,
            HEAD_WIDTH=head_width,
            SCALE=math.log2(math.e) / math.sqrt(head_width),
            **tiles,
        )
        columns = width // tiles["COLUMN_TILE"]
        return Launch(
            qkv_linear, lambda sequences: (columns, _up(2 * sequences, ROW_TILE), 3), arguments
        )

    def _attend(self, layer: int) -> Launch:
        from model.triton_kernels import attend

        heads = self._heads
        arguments = dict(
            **self._overlap,
            at=self._at,
            **self._arrangement("sequence_row"),
            queries=self._queries,
            keys=self._keys[layer],
            values=self._values[layer],
            mixed=self._mixed,
            STEPS=self._steps,
            HEADS=heads,
            HEAD_WIDTH=self._head_width,
            CHUNK=CHUNK,
            STAGES=CHUNK_STAGES,
        )
        return Launch(attend, lambda sequences: (sequences, heads), arguments)

    def _normed(
        self, norm: nn.LayerNorm, weights: list[Tensor], bias: Tensor | None, out: Tensor
    ) -> Launch:
        """A layer norm, then a linear layer, or one for each stream."""
        from model.triton_kernels import normed_linear

        (columns, inner), streams = weights[0].shape, len(weights)
        tiles = _tiles(columns, inner)
        arguments = dict(
            **self._overlap,
            **self._after_norm(norm, torch.cat(weights), bias),
            out=out,
            COLUMNS=columns,
            STREAMS=streams,
            SQUARED_RELU=out is self._hidden,
            **tiles,
        )
        across = columns // tiles["COLUMN_TILE"]
        rows = streams * ROW_TILE
        return Launch(
            normed_linear, lambda sequences: (across, _up(2 * sequences, rows), streams), arguments
        )

    def _residual(self, branch: Tensor, layer: nn.Linear, norm: nn.LayerNorm) -> Launch:
        """A linear layer onto the residual stream; `norm` is the layer norm that comes next."""
        from model.triton_kernels import residual_linear

        columns, inner = layer.weight.shape
        bias = layer.weight.new_zeros(columns) if layer.bias is None else layer.bias
        arguments = dict(
            **self._overlap,
            branch=branch,
            weight=self._kept(layer.weight, self.matrix),
            bias=self._kept(bias),
            **self._residual_stream(norm),
            COLUMNS=columns,
            INNER=inner,
            **_tiles(columns, inner, NARROW),
        )
        return Launch(
            residual_linear,
            lambda sequences: (columns // NARROW, _up(2 * sequences, ROW_TILE)),
            arguments,
        )

    def _draw(self, prior: Prior) -> Launch:
        from model.triton_kernels import draw

        size = prior.codebook_size
        arguments = dict(
            **self._overlap,
            **self._arrangement(*IMAGE, *REALS),
            at=self._at,
            logits=self.logits,
            targets=self._kept(torch.tensor(prior.layout.targets), torch.int32),
            given=self.given,
            inputs=self.inputs,
            log_probability=self.log_probability,
            position=self.position,
            STEPS=self._steps,
            SIZE=size,
            BITS=size.bit_length() - 1,
            num_warps=DRAW_WARPS,
        )
        return Launch(draw, lambda sequences: (sequences, 2), arguments)

    def _residual_stream(self, norm: nn.LayerNorm) -> dict[str, Any]:
        """What a kernel that writes the residual stream is given."""
        gain = self._kept(norm.weight)
        return dict(gain=gain, x=self._x, scaled=self._scaled, moments=self._moments)

    def _after_norm(
        self, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None = None
    ) -> dict[str, Any]:
        """What a linear layer after a layer norm is given."""
        exact = weight.to(self.matrix).double()
        shift = exact @ norm.bias.double()
        moments = self._moments.shape[2]
        return dict(
            scaled=self._scaled,
            moments=self._moments,
            weight=self._kept(weight, self.matrix),
            weight_sum=self._kept(exact @ norm.weight.double()),
            shift=self._kept(shift if bias is None else shift + bias.double()),
            INNER=weight.shape[1],
            MOMENTS=moments,
            MOMENTS_TILE=1 << (moments - 1).bit_length(),
        )

    def _arrangement(self, *names: str) -> dict[str, Tensor]:
        rows = dict(zip((*SEQUENCE, *IMAGE, *REALS), (*self.integers, *self.reals), strict=True))
        return {name: rows[name] for name in names}

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _kept(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return tensor.detach().to(self._device, dtype).contiguous()


def _tiles(columns: int, inner: int, widest: int = WIDE) -> dict[str, int]:
    """The tiles of a product, a function of the layer's sizes alone."""
    tile = widest if columns % widest == 0 else NARROW
    return {
        "ROW_TILE": ROW_TILE,
        "COLUMN_TILE": tile,
        "INNER_TILE": next(tile for tile in INNER_TILES if inner % tile == 0),
        "num_stages": STAGES[tile],
    }


def _up(count: int, tile: int) -> int:
    """How many tiles hold so many rows."""
    return -(-count // tile)
