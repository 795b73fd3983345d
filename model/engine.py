"""The engine: slots on one device, and the pair decode that fills them.

Its surface is `admit`, `step`, `retire` and `paint`; another family of models can take its place
behind it. One step processes two queries for each lane and emits s_(p+1) and a_p together
(docs/method.md, section 3). A row joins at the next step whatever the others are doing, and its
tokens never depend on them: linears run in tiles of a constant number of rows, attention in
chunks fixed by the row's own length, and pixels are decoded one image at a time. Knows no HTTP,
Redis or PNG.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.checkpoint import Checkpoint, load_checkpoint
from model.kv_cache import CHUNK, KVCache
from model.request import ImageRequest, ModelInfo, RequestError, SamplingSettings
from model.sampling import SamplingRows, guide, noise_table, sample

BUILD = "1"
"""Raise whenever a change alters tokens or pixels."""

TILE = 16
"""Rows that every linear layer is given at once. A matrix product of another row count may sum in
another order, so a constant one keeps a row's bits at any load."""

FREE = -1
"""A location whose token is sampled, in the table of given tokens."""


@dataclass(frozen=True)
class TokenGrids:
    """The token ids of one image, int64 [grid_size, grid_size] each, row-major."""

    structure: NDArray[np.int64]
    appearance: NDArray[np.int64]


@dataclass(frozen=True)
class Patch:
    """One drawn pair: `image` uint8 [H, W, 3], `mask` uint8 [H, W] of 0 and 255."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


class Engine:
    """`slots` images decode at once; lane 2 i is slot i under its label, 2 i + 1 without one."""

    def __init__(self, checkpoint: Checkpoint, *, device: str, slots: int, threads: int) -> None:
        if slots < 1:
            raise ValueError(f"slots: got {slots}, expected at least 1")
        torch.set_num_threads(threads)
        self._threads = threads
        self.config, self.version = checkpoint.config, checkpoint.version
        self.device = torch.device(device)
        self.tokenizer = checkpoint.tokenizer.to(self.device)
        self.prior = checkpoint.prior.to(self.device)
        self.slots = slots
        self.layout = self.prior.layout
        self.steps_per_image = self.layout.steps
        self._rows: list[ImageRequest | None] = [None] * slots
        self._ages = [0] * slots
        self._allocate()
        self._arrange()

    def _allocate(self) -> None:
        """Buffers for all slots, made once. Token column p holds s_(p+1) and a_p."""
        slots, steps, device = self.slots, self.layout.steps, self.device
        self._cache = KVCache(self.prior.config, self.layout, 2 * slots, device)
        self._structure = torch.zeros(slots, steps, dtype=torch.long, device=device)
        self._appearance = torch.full_like(self._structure, self.prior.begin)
        self._given = torch.full_like(self._structure, FREE)
        self._noise = torch.zeros(slots, steps, 2, device=device)
        self._position = torch.zeros(slots, dtype=torch.long, device=device)
        self._label = torch.zeros(2 * slots, dtype=torch.long, device=device)

    @property
    def free(self) -> int:
        """How many slots are free now."""
        return self._rows.count(None)

    @property
    def facts(self) -> dict[str, str]:
        """What decides the bits beside the model's version."""
        on_gpu = self.device.type == "cuda"
        return {
            "engine": BUILD,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "isa": torch.backends.cpu.get_cpu_capability(),
            "precision": "fp32",
            "tile": str(TILE),
            "chunk": str(CHUNK),
            "threads": str(self._threads),
        }

    def info(self, numerics: str) -> ModelInfo:
        """What the service publishes of this model."""
        return ModelInfo(
            name=self.config.name,
            version=self.version,
            numerics=numerics,
            labels=self.config.labels,
            defaults=self.config.defaults,
            codebook_size=self.config.tokenizer.codebook_size,
            grid_size=self.layout.grid_size,
            image_size=self.config.tokenizer.image_size,
        )

    @torch.inference_mode()
    def admit(self, row: ImageRequest) -> int:
        """Give the row a slot; it joins at the next step. RuntimeError when no slot is free."""
        given = self._checked_structure(row)
        if None not in self._rows:
            raise RuntimeError(f"all {self.slots} slots are taken")
        slot = self._rows.index(None)
        self._label[2 * slot] = self._label_index(row.label)
        self._label[2 * slot + 1] = self.prior.null_label
        self._noise[slot, :-1] = noise_table(row.seed, self.layout.locations).to(self.device)
        self._given[slot] = FREE
        if given is not None:
            self._given[slot, :-1] = given.to(self.device)
        self._position[slot] = 0
        self._rows[slot], self._ages[slot] = row, 0
        self._arrange()
        return slot

    @torch.inference_mode()
    def step(self) -> list[int]:
        """Advance every live row by one step; the slots whose rows are complete now."""
        if not self._live:
            return []
        slots, position = self._live_slots, self._position[self._live_slots]
        structure, appearance = self._logits(position)
        self._emit(slots, position, structure, appearance)
        self._position[slots] += 1
        for slot in self._live:
            self._ages[slot] += 1
        done = [slot for slot in self._live if self._ages[slot] == self.layout.steps]
        if done:
            self._arrange()
        return done

    def retire(self, slot: int) -> TokenGrids:
        """Free the slot and return its tokens; those of an incomplete row mean nothing."""
        if self._rows[slot] is None:
            raise ValueError(f"slot {slot} holds no row")
        grid = (self.layout.grid_size, self.layout.grid_size)
        structure = self._structure[slot, :-1].view(grid).cpu().numpy().copy()
        appearance = self._appearance[slot, 1:].view(grid).cpu().numpy().copy()
        self._rows[slot] = None
        self._arrange()
        return TokenGrids(structure, appearance)

    @torch.inference_mode()
    def paint(self, tokens: TokenGrids) -> Patch:
        """Decode one image's tokens to pixels; always a batch of one, so bits never vary."""
        ids = [torch.from_numpy(grid)[None] for grid in (tokens.structure, tokens.appearance)]
        image, logits = self.tokenizer.decode(*(grid.to(self.device) for grid in ids))
        pixels = ((image[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
        mask = (logits[0, 0] > 0).byte() * 255
        return Patch(pixels.cpu().numpy(), mask.cpu().numpy())

    def warm_up(self) -> None:
        """Draw a few steps and one image, so that the first request pays for no set-up."""
        label = self.config.labels[0].name
        slot = self.admit(ImageRequest(label, 0, SamplingSettings(cfg_scale=2.0)))
        for _ in range(4):
            self.step()
        tokens = self.retire(slot)
        self.paint(TokenGrids(tokens.structure * 0, tokens.appearance * 0))

    def _arrange(self) -> None:
        """Index tensors of the live rows; rebuilt only when rows come, go or complete."""
        live = [s for s, row in enumerate(self._rows) if row and self._ages[s] < self.layout.steps]
        rows = [row for s in live if (row := self._rows[s])]
        guided = [row.settings.cfg_scale != 1 for row in rows]
        lanes: list[int] = []
        first: list[int] = []
        for slot, with_null in zip(live, guided, strict=True):
            first.append(len(lanes))
            lanes += [2 * slot, 2 * slot + 1] if with_null else [2 * slot]
        null = [lane + int(g) for lane, g in zip(first, guided, strict=True)]
        self._live = live
        self._live_slots = self._index(live)
        self._lanes, self._label_lane, self._null_lane = map(self._index, (lanes, first, null))
        self._cfg_scale = torch.tensor([r.settings.cfg_scale for r in rows], device=self.device)
        self._settings = SamplingRows.of([r.settings for r in rows for _ in (0, 1)], self.device)

    def _index(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _logits(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Guided fp32 logits of both streams, [rows, K] each."""
        slots = self._lanes // 2
        at = self._position[slots]
        structure = self._structure[slots, (at - 1).clamp_min(0)]
        appearance = self._appearance[slots, (at - 1).clamp_min(0)]
        x = self.prior.embed_pair(self._label[self._lanes], structure, appearance, at)
        streams = self.prior.step(x, self._lanes, at, self._cache, tiled_linear)
        label, null = self._label_lane, self._null_lane
        structure, appearance = (
            guide(logits.float()[label], logits.float()[null], self._cfg_scale)
            for logits in streams
        )
        return structure, appearance

    def _emit(self, slots: Tensor, position: Tensor, structure: Tensor, appearance: Tensor) -> None:
        """Sample both streams and write them; given tokens stand, and a_0 stays `begin`."""
        noise = torch.stack(
            [self._noise[slots, position, 0], self._noise[slots, (position - 1).clamp_min(0), 1]],
            1,
        )
        logits = torch.stack([structure, appearance], 1).flatten(0, 1)
        ids = sample(logits, self._settings, noise.flatten()).view(-1, 2)
        given = self._given[slots, position]
        self._structure[slots, position] = torch.where(given == FREE, ids[:, 0], given)
        begin = torch.full_like(ids[:, 1], self.prior.begin)
        self._appearance[slots, position] = torch.where(position == 0, begin, ids[:, 1])

    def _label_index(self, name: str) -> int:
        names = [label.name for label in self.config.labels]
        if name not in names:
            raise RequestError("label", name, f"one of {', '.join(names)}")
        return names.index(name)

    def _checked_structure(self, row: ImageRequest) -> Tensor | None:
        if row.structure is None:
            return None
        size, count = self.config.tokenizer.codebook_size, self.layout.locations
        fits = len(row.structure) == count and all(0 <= t < size for t in row.structure)
        if not fits:
            raise RequestError(
                "structure", f"{len(row.structure)} tokens", f"{count} ids from 0 to {size - 1}"
            )
        return torch.tensor(row.structure, dtype=torch.long)


def tiled_linear(layer: nn.Linear, rows: Tensor) -> Tensor:
    """Apply a linear layer to [..., in] in tiles of TILE rows, the last one padded."""
    flat = rows.flatten(0, -2)
    count = len(flat)
    if spare := -count % TILE:
        flat = F.pad(flat, (0, 0, 0, spare))
    tiles = [layer(tile) for tile in flat.split(TILE)]
    out = tiles[0] if len(tiles) == 1 else torch.cat(tiles)
    return out[:count].view(*rows.shape[:-1], -1)


def choose_device(name: str) -> str:
    """`auto` is the GPU where torch sees one, else the CPU; ValueError on an absent device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not (name.startswith("cuda") and torch.cuda.is_available()):
        raise ValueError(f"device: got {name!r}, expected auto or cpu (torch sees no such GPU)")
    return name


def load_engine(
    path: str | Path, *, device: str = "auto", slots: int = 16, threads: int = 0
) -> Engine:
    """An engine on a checkpoint folder; `threads` 0 takes every core this process may use."""
    return Engine(
        load_checkpoint(Path(path)),
        device=choose_device(device),
        slots=slots,
        threads=threads or len(os.sched_getaffinity(0)),
    )
