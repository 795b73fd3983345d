"""The engine: slots on one device, and the images that fill them.

Its interface is `admit`, `step`, `retire` and `render`; another family of models can replace it. A
row joins at the next step, whatever the other rows are doing; one whose tokens are all given takes
no step. Its tokens and pixels never depend on
them: the decoders see to the tokens, and pixels are decoded one image at a time. Knows no HTTP,
Redis or PNG.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import native_decoder, torch_decoder, triton_decoder
from model.checkpoint import Checkpoint, load_checkpoint
from model.decoder import FREE, Decoder, Row
from model.encoding import Encoding, Ids
from model.given import Given, GivenRef, Size, Stream
from model.instances import instances, shortened
from model.layout import EncodedPlane, Layout, Pixels, Plane
from model.memory import check_slots, free_memory
from model.native_decoder import NativeDecoder
from model.processors import usable_cores
from model.request import (
    ImageRequest,
    ModelInfo,
    RequestError,
    SamplingSettings,
    check_given,
)
from model.segmenter import dice
from model.tiles import blended
from model.torch_decoder import TorchDecoder
from model.transformer import Prior
from model.triton_decoder import TritonDecoder

BUILD = "12"
"""Raise whenever a change alters tokens, pixels or bytes of files: `tests/golden.py` pins some."""
BUILD_SINCE = "0.1.0"
"""The first version of the software with this BUILD. Files name it, and not the version that runs,
so that the next version with the same BUILD gives the same bytes."""

TRIED_STEPS = 4
"""Decode steps by which processors are told apart: all but the first have both streams."""

LEAST_SLOTS, SLOTS_ON_A_GPU = 4, 16
"""Of engines that were not told how many; see `default_slots`."""

Kernel = Literal["auto", "torch", "torch_bf16", "native", "triton"]
"""Which decoder: `auto` takes Triton's on a GPU and the compiled one on a processor, where they fit
the prior and what is there, else torch's, in bf16 where the processor multiplies it."""


@dataclass(frozen=True)
class LogLikelihood:
    """Of one image's tokens by the prior, in nats, as in `Decoder.log_likelihood`."""

    structure: float
    appearance: float


@dataclass(frozen=True)
class TokenGrids:
    """The token ids of one image, int64 [rows, columns] each, row-major: as many a side as the
    trained grid, or more. `log_likelihood` is None where the prior did not see all of them at once.
    `kept_log_likelihood` is that of the tokens which were given, where a stream was given in part.
    """

    structure: NDArray[np.int64]
    appearance: NDArray[np.int64]
    log_likelihood: LogLikelihood | None = None
    kept_log_likelihood: LogLikelihood | None = None


@dataclass(frozen=True)
class Patch:
    """One drawn pair: `image` uint8 [H, W, 3], `mask` uint8 [H, W] of 0 and 255, and `instances`
    uint16 [H, W], the ids of the mask's nuclei from 1, 0 elsewhere. `agreement`: the Dice of mask
    and what the checkpoint's segmenter finds in the image (`segmenter.dice`); None without one.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    agreement: float | None = None


class Engine:
    """`slots` images decode at once, each in N + 1 steps; SlotsError when they do not fit."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str,
        slots: int,
        threads: int,
        kernel: Kernel = "auto",
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots: got {slots}, expected at least 1")
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = True  # of pixels on a GPU
        self.config, self.version = checkpoint.config, checkpoint.version
        self._learned = checkpoint.learned
        self.device = torch.device(device)
        self.slots = slots
        self.threads = threads
        self.layout = checkpoint.prior.layout
        self.steps_per_image = self.layout.steps
        self.decoder = _make_decoder(kernel, checkpoint.prior, self.device, slots, threads)
        self.pixels_in = _pixel_dtype(self.device)
        self._tokenizer = copy.deepcopy(checkpoint.tokenizer).to(self.device, self.pixels_in)
        self._tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        of_checkpoint = checkpoint.segmenter
        self._segmenter = of_checkpoint and of_checkpoint.to(self.device, self.pixels_in)
        self._encoding = Encoding(checkpoint)
        self._rows: list[ImageRequest | None] = [None] * slots
        self._ages = [0] * slots
        self._ends = [0] * slots
        self._live: list[int] = []
        self._kept: dict[int, NDArray[np.bool_]] = {}
        """What was given of rows of which a stream was given in part, [N, 2], by slot."""
        self._whole: dict[int, TokenGrids] = {}
        """The tokens of rows that were given whole, by slot; they take no steps."""
        self._told: list[int] = []
        """The slots of those that the next step tells as complete."""
        self._tried = self._try() if self.device.type == "cpu" else {}

    @property
    def free(self) -> int:
        """How many slots are free now."""
        return self._rows.count(None)

    @property
    def live(self) -> int:
        """How many rows the next step advances."""
        return len(self._live)

    @property
    def facts(self) -> dict[str, str]:
        """What decides the bits beside the model's version."""
        on_gpu = self.device.type == "cuda"
        return {
            "engine": BUILD,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "isa": torch.backends.cpu.get_cpu_capability(),
            "pixels": str(self.pixels_in),
            **({"segmenter": self._segmenter.digest[:12]} if self._segmenter else {}),
            **self._threads_matter(),
            **self._tried,
            **self.decoder.facts,
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
            takes_masks=self.config.tokenizer.structure_input != "image_mask",
            segments=self._segmenter is not None,
            learned=self._learned,
        )

    def admit(
        self, row: ImageRequest, window: NDArray[np.int64] | None = None, steps: int | None = None
    ) -> int:
        """Give the row a slot; it joins at the next step, or is complete then where all of its
        tokens are given. RuntimeError when no slot is free.

        A `window` of a large image has a table of given tokens of its own, [N, 2], and is complete
        after `steps`; where these are 0, its tokens are those of the table.
        """
        names = [label.name for label in self.config.labels]
        if row.label not in names:
            raise RequestError("label", row.label, f"one of {', '.join(names)}")
        given = self._given(row) if window is None else window
        if None not in self._rows:
            raise RuntimeError(f"all {self.slots} slots are taken")
        slot = self._rows.index(None)
        whole = bool((given != FREE).all()) if window is None else steps == 0
        self._rows[slot], self._ages[slot] = row, self.layout.steps if whole else 0
        self._ends[slot] = self.layout.steps if steps is None else steps
        if whole:
            self._whole[slot] = TokenGrids(self._grid(given[:, 0]), self._grid(given[:, 1]))
            self._told.append(slot)
            return slot
        self.decoder.place(slot, Row(names.index(row.label), row.settings, row.seed, given))
        kept = given != FREE
        if window is None and (kept.any(0) & ~kept.all(0)).any():
            self._kept[slot] = kept
        self._arrange()
        return slot

    def step(self) -> list[int]:
        """Advance every live row by one step; the slots whose rows are complete now."""
        whole, self._told = self._told, []
        if not self._live:
            return whole
        self.decoder.step()
        for slot in self._live:
            self._ages[slot] += 1
        done = [slot for slot in self._live if self._ages[slot] == self._ends[slot]]
        if done:
            self._arrange()
        return whole + done

    def age(self, slot: int) -> int:
        """How many steps the image in a slot has made."""
        return int(self._ages[slot])

    def log_probability(self, slot: int) -> NDArray[np.float32]:
        """Of the tokens of a row in a slot, as far as they are drawn, by location and stream:
        [grid_size, grid_size, 2]."""
        grid = (self.layout.grid_size, self.layout.grid_size, 2)
        return self.decoder.log_probability(slot).reshape(grid)

    def log_likelihood(self, slot: int) -> LogLikelihood:
        """Of a complete image in a slot that was drawn in steps."""
        return LogLikelihood(*self.decoder.log_likelihood(slot))

    def retire(self, slot: int) -> TokenGrids:
        """Free the slot and return its tokens; those of an incomplete row mean nothing."""
        if self._rows[slot] is None:
            raise ValueError(f"slot {slot} holds no row")
        if slot in self._whole:
            self._rows[slot] = None
            self._told = [told for told in self._told if told != slot]
            return self._whole.pop(slot)
        complete = self._ages[slot] == self.layout.steps
        likelihood = self.log_likelihood(slot) if complete else None
        kept, of_kept = self._kept.pop(slot, None), None
        if complete and kept is not None:
            of_kept = LogLikelihood(*self.decoder.log_likelihood(slot, kept))
        structure, appearance = self.decoder.tokens(slot)
        self._rows[slot] = None
        self._arrange()
        return TokenGrids(self._grid(structure), self._grid(appearance), likelihood, of_kept)

    @torch.inference_mode()
    def render(self, tokens: TokenGrids) -> Patch:
        """Decode one image's tokens to pixels; always a batch of one, so bits never vary. A large
        image is decoded in tiles of the size of a patch."""
        side = self.layout.grid_size
        if tokens.structure.shape == (side, side):
            image, logits = self._decoded(tokens, slice(None), slice(None))
        else:
            image, logits = self._in_tiles(tokens)
        pixels = ((image.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
        planes, seen = (logits > 0).cpu().numpy(), pixels.cpu().numpy()
        nuclei = instances(planes[0], planes[1] if len(planes) > 1 else None)
        agreement = dice(self._found(seen), planes[0]) if self._segmenter else None
        return Patch(seen, planes[0] * np.uint8(255), shortened(nuclei), agreement)

    def _decoded(self, tokens: TokenGrids, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Image [3, H, W] and mask logits [P, H, W] of a part of the grids."""
        grids = (tokens.structure[rows, columns], tokens.appearance[rows, columns])
        ids = [torch.from_numpy(grid)[None].to(self.device) for grid in grids]
        image, logits = self._tokenizer.decode(*ids)
        return image[0], logits[0]

    def _in_tiles(self, tokens: TokenGrids) -> tuple[Tensor, Tensor]:
        """The same of the whole grids of a large image."""

        def tile(rows: slice, columns: slice) -> NDArray[np.float32]:
            return torch.cat(self._decoded(tokens, rows, columns)).float().cpu().numpy()

        config = self.config.tokenizer
        grid = (tokens.structure.shape[0], tokens.structure.shape[1])
        whole = torch.from_numpy(blended(grid, config.grid_size, config.downsample, tile))
        return whole[:3], whole[3:]

    def _found(self, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The nuclei [H, W] that the segmenter finds in an image [H, W, 3], in the same tiles."""
        assert self._segmenter is not None
        segmenter, config = self._segmenter, self.config.tokenizer
        if image.shape[:2] == (config.image_size, config.image_size):
            return segmenter.find(image)
        cell = config.downsample

        def tile(rows: slice, columns: slice) -> NDArray[np.float32]:
            y, x = (slice(at.start * cell, at.stop * cell) for at in (rows, columns))
            return segmenter.logits(image[y, x])[None].float().cpu().numpy()

        grid = (image.shape[0] // cell, image.shape[1] // cell)
        found: NDArray[np.bool_] = blended(grid, config.grid_size, cell, tile)[0] > 0
        return found

    def warm_up(self) -> None:
        """Draw a few steps and one image, so that the first request pays for no set-up."""
        label = self.config.labels[0].name
        slot = self.admit(ImageRequest(label, 0, SamplingSettings(cfg_scale=2.0)))
        for _ in range(4):
            self.step()
        tokens = self.retire(slot)
        self.render(TokenGrids(tokens.structure * 0, tokens.appearance * 0))

    @torch.inference_mode()
    def _try(self) -> dict[str, str]:
        """The fact that tells processors apart which nothing else does: a hash of what this one
        makes of a row's first steps, of fixed tokens and of a fixed image, before any rounding to
        ids and bytes.

        Libraries choose code by more than the name of an instruction set, such as matrix units and
        sizes of caches, and other code sums in another order.
        """
        count, size = self.layout.locations, self.config.tokenizer.codebook_size
        free = np.full((count, 2), FREE, np.int64)
        self.decoder.place(0, Row(0, SamplingSettings(cfg_scale=2.0), 0, free))
        self.decoder.arrange([0])
        for _ in range(min(TRIED_STEPS, self.layout.steps)):
            self.decoder.step()
        logits = self.decoder.logits()
        likelihoods = np.array(self.decoder.log_likelihood(0))
        self.decoder.arrange([])
        ids = torch.arange(count).view(1, self.layout.grid_size, -1) % size
        pixels = [made.float().numpy() for made in self._tokenizer.decode(ids, ids.flip(1))]
        if self._segmenter:
            side = self.config.tokenizer.image_size
            image = np.arange(side * side * 3).reshape(side, side, 3).astype(np.uint8)
            pixels.append(self._segmenter.logits(image).float().numpy())
        made = b"".join(values.tobytes() for values in (*logits, likelihoods, *pixels))
        return {"tried": hashlib.sha256(made).hexdigest()[:12]}

    def _threads_matter(self) -> dict[str, str]:
        """The number of threads, where bits depend on it: torch's decoder and convolutions in fp32
        sum by threads. If anything else did, `tried` would differ.
        """
        sums_by_threads = self.decoder.facts["decoder"] == "torch" or self.pixels_in.itemsize > 2
        on_cpu = self.device.type == "cpu"
        return {"threads": str(self.threads)} if on_cpu and sums_by_threads else {}

    def _arrange(self) -> None:
        """Tell the decoder which rows are live, when rows come, go or complete."""
        live = [s for s, row in enumerate(self._rows) if row and self._ages[s] < self._ends[s]]
        self._live = live
        self.decoder.arrange(live)

    def _given(self, row: ImageRequest) -> NDArray[np.int64]:
        """The row's table of given tokens, [N, 2]."""
        count, given = self.layout.locations, row.given
        table = np.full((count, 2), FREE, np.int64)
        if isinstance(given, GivenRef):
            raise RequestError("given", "a digest", "what the job keeps of it")
        if given is None:
            return table
        check_given(given, self.info(""))
        encoded = ((given.structure, self._encoding.structure),
                   (given.appearance, self._encoding.appearance))  # fmt: skip
        for column, (stream, encode) in enumerate(encoded):
            if stream is not None:
                kept = np.array(stream.kept(count))
                table[kept, column] = np.array(encode(given))[kept]
        return table

    def layout_of(self, image: ImageRequest) -> Layout:
        """What is given of a large image. RequestError where this model does not take it."""
        given = image.given
        if not isinstance(given, Given):
            raise RequestError("given", "a digest", "what the job keeps of it")
        check_given(given, self.info(""), image.size)
        appearance, encoding = given.appearance, self._encoding

        def of_mask(patch: Pixels) -> Ids:
            return encoding.structure(Given(Stream("mask", np.packbits(patch).tobytes())))

        def of_segmented(patch: Pixels) -> Ids:
            return encoding.structure(Given(Stream("segmented"), Stream("image", patch.tobytes())))

        def of_image(patch: Pixels) -> Ids:
            return encoding.appearance(Given(None, Stream("image", patch.tobytes())))

        segmented = given.structure is not None and given.structure.kind == "segmented"
        structure = self._plane(given.structure, image.size, of_segmented if segmented else of_mask,
                                appearance if segmented else given.structure)  # fmt: skip
        planes = structure, self._plane(appearance, image.size, of_image, appearance)
        return Layout(*planes, self.layout.grid_size)

    def _plane(
        self,
        stream: Stream | None,
        size: Size | None,
        encode: Callable[[Pixels], Ids],
        source: Stream | None,
    ) -> Plane | None:
        """What is given of one stream of a large image, from its tokens or from the pixels of
        `source`."""
        if stream is None or source is None:
            return None
        rows, columns = self.info("").grid(size)
        side, cell = self.layout.grid_size, self.config.tokenizer.downsample
        kept = np.array(stream.kept(rows * columns)).reshape(rows, columns)
        if isinstance(source.content, tuple):
            ids = np.array(source.content, np.int64).reshape(rows, columns)
            return Plane(np.where(kept, ids, FREE), side)
        values = np.frombuffer(source.content, np.uint8)
        pixels: Pixels = (
            values.reshape(rows * cell, columns * cell, -1)
            if source.kind == "image"
            else np.unpackbits(values).astype(bool).reshape(rows * cell, columns * cell)
        )
        return EncodedPlane(
            pixels, kept, side, cell, lambda patch: self._grid(np.array(encode(patch)))
        )

    def _grid(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return ids.reshape(self.layout.grid_size, self.layout.grid_size)


def _make_decoder(
    kernel: Kernel, prior: Prior, device: torch.device, slots: int, threads: int
) -> Decoder:
    """The decoder that was asked for; SlotsError when its slots do not fit into memory."""
    chosen = _fitting(prior, device) if kernel == "auto" else kernel
    free = free_memory(device)
    if chosen == "triton":
        check_slots(slots, triton_decoder.bytes_per_slot(prior), free)
        return TritonDecoder(prior, slots, device)
    if chosen == "native":
        check_slots(slots, native_decoder.bytes_per_slot(prior), free)
        return NativeDecoder(prior, slots, threads)
    check_slots(slots, torch_decoder.bytes_per_slot(prior), free)
    return TorchDecoder(prior.to(device), slots, in_bf16=chosen == "torch_bf16")


def _fitting(prior: Prior, device: torch.device) -> Kernel:
    """The fastest decoder that there is for a device."""
    if triton_decoder.fits(prior, device):
        return "triton"
    if device.type == "cpu" and native_decoder.fits(prior):
        return "native"
    if device.type == "cpu" and torch_decoder.has_bf16():
        return "torch_bf16"
    return "torch"


def _pixel_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies it: pixels move by one of 256 levels at most."""
    in_bf16 = device.type == "cuda" or torch_decoder.has_bf16()
    return torch.bfloat16 if in_bf16 else torch.float32


def choose_device(name: str) -> str:
    """`auto` is the GPU where torch sees one, else the CPU; ValueError on an absent device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not (name.startswith("cuda") and torch.cuda.is_available()):
        raise ValueError(f"device: got {name!r}, expected auto or cpu (torch sees no such GPU)")
    return name


def default_slots(device: str, threads: int) -> int:
    """The slots of an engine that was not told how many, for a device and threads as of
    `load_engine`.

    On a processor few that draw nearly as fast as many: of images that come at once, some are there
    early then, instead of all late (docs/performance.md). A step also needs rows for every thread.
    """
    if choose_device(device) != "cpu":
        return SLOTS_ON_A_GPU
    return max(LEAST_SLOTS, threads or usable_cores())


def load_engine(
    path: str | Path, *, device: str = "auto", slots: int = 0, threads: int = 0
) -> Engine:
    """An engine on a checkpoint folder; `slots` 0 takes `default_slots`, `threads` 0 every core
    this process may use.
    """
    return Engine(
        load_checkpoint(Path(path)),
        device=choose_device(device),
        slots=slots or default_slots(device, threads),
        threads=threads or usable_cores(),
    )
