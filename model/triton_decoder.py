"""The pair decode on an NVIDIA GPU, by `model/triton_step.py`.

On a GPU, a step is captured once for each of a few numbers of sequences, and replayed as one CUDA
graph. Spare sequences work on a row of the cache that no image uses. On a CPU, Triton's interpreter
launches the same kernels one by one (TRITON_INTERPRET=1), so the tests need no GPU.

All work on the device uses one stream of its own, so pixels can be rendered on another at the same
time. Knows no requests and no pixels.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import triton_step
from model.decoder import Row
from model.slots import (
    REALS,
    arrangement,
    given_by_position,
    log_likelihood_of,
    log_probability_of,
    tokens_of,
)
from model.transformer import MLP_RATIO, Prior
from model.triton_step import IMAGE, SEQUENCE, Step

GROUP = 64
"""Sequences by which the captured sizes grow from here on; below, they double."""
AHEAD = 2
"""Steps that the host may be ahead of the device."""
CAPABILITY, OVERLAPS = (8, 0), (9, 0)
"""The least that multiplies bf16; the least that sets up a kernel while another runs."""


def fits(prior: Prior, device: torch.device) -> bool:
    """Whether this is a GPU that runs the kernels, and they take a prior of these sizes."""
    return (
        device.type == "cuda"
        and find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= CAPABILITY
        and triton_step.takes(prior)
    )


def bytes_per_slot(prior: Prior) -> int:
    """GPU memory that each slot takes: two sequences of a bf16 cache and of the rows of a step."""
    width = prior.config.width
    cache = prior.config.layers * prior.layout.steps * 2 * 2 * width * 2
    rows = 2 * ((12 + 2 * MLP_RATIO) * width + 4 * prior.codebook_size)
    return 2 * (cache + rows)


class TritonDecoder:
    """A `Decoder` on Triton. The prior may lie anywhere: its weights are copied, matrices in bf16.

    `step` returns before the device is done, at most AHEAD steps ahead of it; `place` and `arrange`
    reach the device with the next step.
    """

    def __init__(self, prior: Prior, slots: int, device: torch.device) -> None:
        if not triton_step.takes(prior):
            raise RuntimeError("the Triton kernels do not support a prior of these sizes")
        self._device, self._prior = device, prior
        on_gpu = device.type == "cuda"
        self._capability = torch.cuda.get_device_capability(device) if on_gpu else (0, 0)
        self._sizes = _sizes(2 * slots)
        self._spare = {"sequence_slot": slots, "sequence_row": 2 * slots, "image_slot": -1}
        self._rows: dict[int, Row] = {}
        self._placed: set[int] = set()
        self._live: list[int] = []
        self._arranged = self._stepped = False
        self._sequences = 0
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._under_way: deque[torch.cuda.Event] = deque()
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(device))
        with self._queue():
            overlap = self._capability >= OVERLAPS
            self._step = Step(prior, slots, self._sizes[-1], device, overlap=overlap)
            if self._stream:
                self._capture(self._stream)

    @property
    def facts(self) -> dict[str, str]:
        """See `Decoder.facts`."""
        import triton

        tiles = (triton_step.ROW_TILE, triton_step.WIDE, triton_step.NARROW)
        return {
            "decoder": "triton",
            "precision": "bf16" if self._step.matrix == torch.bfloat16 else "fp32",
            "triton": triton.__version__,
            "capability": str(self._capability),
            "tile": str((*tiles, *triton_step.INNER_TILES)),
            "chunk": str(triton_step.CHUNK),
        }

    def place(self, slot: int, row: Row) -> None:
        """See `Decoder.place`."""
        self._rows[slot] = row
        self._placed.add(slot)

    def arrange(self, live: list[int]) -> None:
        """See `Decoder.arrange`."""
        self._live, self._arranged = list(live), False

    def step(self) -> None:
        """See `Decoder.step`."""
        with self._queue():
            self._settle()
            size = next(size for size in self._sizes if size >= self._sequences)
            if self._stream:
                self._replay(self._graphs[size], self._stream)
            else:
                self._step.launch(size)
        self._stepped = True

    def logits(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Decoder.logits`; waits for the device."""
        if not self._stepped:
            raise RuntimeError("no step has been made")
        with self._queue():
            both = self._step.logits[: 2 * self._sequences].cpu().numpy()
        return both[0::2].copy(), both[1::2].copy()

    def tokens(self, slot: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `Decoder.tokens`; waits for the device."""
        with self._queue():
            return tokens_of(self._step.inputs[slot].cpu().numpy(), self._prior.layout)

    def log_probability(self, slot: int) -> NDArray[np.float32]:
        """See `Decoder.log_probability`; waits for the device."""
        with self._queue():
            of_slot = self._step.log_probability[slot].cpu().numpy()
            return log_probability_of(of_slot, self._prior.layout)

    def log_likelihood(
        self, slot: int, counted: NDArray[np.bool_] | None = None
    ) -> tuple[float, float]:
        """See `Decoder.log_likelihood`; waits for the device."""
        return log_likelihood_of(self.log_probability(slot), counted)

    def _queue(self) -> AbstractContextManager[Any]:
        """Where device work is done: in the decoder's own stream, where there are streams."""
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def _capture(self, stream: torch.cuda.Stream) -> None:
        """Record a step of every size, after one launch that compiles: a capture must not."""
        self._settle()
        self._step.launch(self._sizes[0])
        for size in self._sizes:
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU at the same time.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._step.launch(size)
            self._graphs[size] = graph
        stream.synchronize()

    def _replay(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> None:
        if len(self._under_way) == AHEAD:
            self._under_way.popleft().synchronize()
        graph.replay()
        # A blocking event leaves the core to other threads while this one waits for it.
        self._under_way.append(torch.cuda.Event(blocking=True))
        self._under_way[-1].record(stream)

    def _settle(self) -> None:
        """Bring to the device what was placed and arranged since the last step."""
        if self._placed:
            slots = sorted(self._placed)
            given = [given_by_position(self._rows[slot], self._prior) for slot in slots]
            index = self._sent(np.array(slots))
            self._step.given.index_copy_(0, index, self._sent(np.array(given, np.int32)))
            self._step.position.index_fill_(0, index, 0)
            self._placed.clear()
        if not self._arranged:
            self._lay_out()
            self._arranged = True

    def _lay_out(self) -> None:
        """Fill the arrangement that the kernels read."""
        values = arrangement(self._live, self._rows, self._prior.null_label)
        self._sequences = len(values["sequence_row"])
        self._fill(self._step.integers, (*SEQUENCE, *IMAGE), values)
        self._fill(self._step.reals, REALS, values)

    def _fill(self, into: Tensor, names: tuple[str, ...], values: dict[str, list[Any]]) -> None:
        filled = np.zeros(into.shape, np.int64 if into.dtype == torch.int64 else np.float32)
        for row, name in zip(filled, names, strict=True):
            row[:] = self._spare.get(name, 0)
            flat = np.ravel(values[name])
            row[: len(flat)] = flat
        into.copy_(self._sent(filled))

    def _sent(self, values: NDArray[Any]) -> Tensor:
        """A copy on the device; the host does not wait for it."""
        there = torch.from_numpy(values)
        return there.pin_memory().to(self._device, non_blocking=True) if self._stream else there


def _sizes(sequences: int) -> list[int]:
    """The numbers of sequences that steps are captured for; the last holds `sequences`."""
    sizes = [1]
    while sizes[-1] < sequences:
        sizes.append(min(2 * sizes[-1], sizes[-1] + GROUP))
    return sizes
