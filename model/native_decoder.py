"""The pair decode on CPUs, in 8 bits, by `model/native/decode.cpp`.

Passes each step's rows to C++ as flat arrays, built once for each arrangement of live rows. Knows
no requests and no pixels.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.native.build import built
from model.slots import REALS, HostSlots
from model.transformer import MLP_RATIO, Block, Prior

MULTIPLE = 32
"""Widths and codebook sizes must be multiples of this: one register block of output columns."""
HEAD_MULTIPLE = 16
VECTOR = 16
"""Lanes of a vector, `VEC` of decode.cpp."""
SCALE_BYTES = 4
MAX_HEAD_WIDTH = 256

INPUTS = ("position", "structure", "appearance")
INTEGERS = ("sequence_row", *INPUTS, "sequence_label", "label_row", "null_row")
OF_STREAMS = ("uniform", "given", "ids", "log_probability")
POINTERS = (*INTEGERS, *REALS, "top_k", *OF_STREAMS)
"""The arrays of `PatharBatch` in its order."""
SIZES = ("layers", "heads", "width", "hidden", "codebook_size", "steps", "sequences", "threads")
WEIGHTS = (
    *("norm_scale", "norm_shift", "structure_head", "appearance_head"),
    *("label", "structure", "appearance", "structure_position", "appearance_position"),
    *("cosine", "sine"),
)


class _Model(ctypes.Structure):
    """`PatharModel` of decode.cpp."""

    _fields_: ClassVar[Any] = [
        *((name, ctypes.c_int32) for name in SIZES),
        *((name, ctypes.c_void_p) for name in ("blocks", *WEIGHTS)),
    ]


class _Batch(ctypes.Structure):
    """`PatharBatch` of decode.cpp."""

    _fields_: ClassVar[Any] = [
        *((name, ctypes.c_int32) for name in ("sequences", "images")),
        *((name, ctypes.c_void_p) for name in POINTERS),
    ]


@cache
def libraries() -> dict[str, ctypes.CDLL]:
    """The compiled steps that were built and that this processor runs, by variant, best first."""
    loaded = {variant: ctypes.CDLL(str(path)) for variant, path in built().items()}
    return {name: _typed(library) for name, library in loaded.items() if library.pathar_supported()}


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    library.pathar_create.restype = ctypes.c_void_p
    library.pathar_destroy.argtypes = [ctypes.c_void_p]
    library.pathar_step.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.pathar_logits.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.pathar_logits.restype = ctypes.POINTER(ctypes.c_float)
    return library


def fits(prior: Prior) -> bool:
    """Whether the compiled step is there and takes a prior of these sizes."""
    width, head_width = prior.config.width, prior.config.width // prior.config.heads
    return (
        bool(libraries())
        and prior.position.device.type == "cpu"
        and width % MULTIPLE == 0
        and prior.codebook_size % MULTIPLE == 0
        and head_width % HEAD_MULTIPLE == 0
        and head_width <= MAX_HEAD_WIDTH
    )


def bytes_per_slot(prior: Prior) -> int:
    """Memory that each slot takes: two sequences of an 8-bit cache with its scales, its positions
    padded to a vector, and of the rows that a step computes, two a sequence.
    """
    config, width = prior.config, prior.config.width
    steps = -(-prior.layout.steps // VECTOR) * VECTOR
    cache = 2 * config.layers * steps * (2 * width + 2 * config.heads * SCALE_BYTES)
    row = 4 * (5 + MLP_RATIO) * width + 2 * MLP_RATIO * width + 4 * prior.codebook_size
    return 2 * (cache + 2 * row)


class NativeDecoder(HostSlots):
    """A `Decoder` on the compiled step: the same tokens on every processor, by any threads."""

    def __init__(
        self, prior: Prior, slots: int, threads: int, *, variant: str | None = None
    ) -> None:
        if not fits(prior) or variant not in (None, *libraries()):
            raise RuntimeError("the compiled decode step cannot be used here")
        super().__init__(prior, slots)
        self._library = libraries()[variant or next(iter(libraries()))]
        self._kept: list[NDArray[Any]] = []
        model = self._model(prior, 2 * slots, threads)
        self._handle = self._library.pathar_create(ctypes.byref(model))
        self.arrange([])

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._library.pathar_destroy(handle)

    @property
    def facts(self) -> dict[str, str]:
        """See `Decoder.facts`."""
        return {"decoder": "native", "precision": "int8"}

    def arrange(self, live: list[int]) -> None:
        """See `Decoder.arrange`: lays out the arrays that steps fill."""
        filled: dict[str, Any] = dict(self._arranged(live))
        sequences = len(filled["sequence_row"])
        filled |= {name: [0] * sequences for name in INPUTS}
        filled |= {name: [[0, 0]] * len(live) for name in OF_STREAMS}
        reals = (*REALS, "uniform", "log_probability")
        self._arrays = {
            name: np.array(filled[name], np.float32 if name in reals else np.int32)
            for name in POINTERS
        }
        pointers = [self._arrays[name].ctypes.data for name in POINTERS]
        self._batch = _Batch(sequences, len(live), *pointers)
        self._batch_pointer = ctypes.byref(self._batch)

    def step(self) -> None:
        """See `Decoder.step`."""
        arrays = self._arrays
        arrays["position"][:], tokens, arrays["uniform"][:], arrays["given"][:] = self._next()
        arrays["structure"][:], arrays["appearance"][:] = tokens.T
        self._library.pathar_step(self._handle, self._batch_pointer)
        self._take(arrays["ids"], arrays["log_probability"])

    def logits(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Decoder.logits`."""
        shape = (self._batch.sequences, self._prior.codebook_size)
        structure, appearance = (
            np.ctypeslib.as_array(self._library.pathar_logits(self._handle, stream), shape).copy()
            for stream in (0, 1)
        )
        return structure, appearance

    def _model(self, prior: Prior, sequences: int, threads: int) -> _Model:
        config = prior.config
        blocks = [self._pointer(t) for block in prior.layers() for t in _block_weights(block)]
        addresses = np.array(blocks, np.uint64)
        self._kept.append(addresses)
        weights = (
            *(prior.norm.weight, prior.norm.bias),
            *(prior.structure_head.weight, prior.appearance_head.weight),
            *(prior.label.weight, prior.structure.weight, prior.appearance.weight),
            *(*prior.places_by_position(), *prior.rotary_by_position()),
        )
        sizes = (config.layers, config.heads, config.width, MLP_RATIO * config.width)
        return _Model(
            *(*sizes, prior.codebook_size, prior.layout.steps, sequences, threads),
            addresses.ctypes.data,
            *(self._pointer(t) for t in weights),
        )

    def _pointer(self, tensor: Tensor) -> int:
        """The address of an fp32 copy that lives as long as this decoder."""
        self._kept.append(np.ascontiguousarray(tensor.detach().float().numpy()))
        return int(self._kept[-1].ctypes.data)


def _block_weights(block: Block) -> tuple[Tensor, ...]:
    """One layer's tensors in the order of `PatharModel.blocks`."""
    return (
        *(block.norm1.weight, block.norm1.bias, block.qkv.weight, block.out.weight),
        *(block.norm2.weight, block.norm2.bias, block.up.weight, block.up.bias),
        *(block.down.weight, block.down.bias),
    )
