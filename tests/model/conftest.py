from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.checkpoint import Checkpoint, load_checkpoint
from model.engine import Engine, Kernel
from model.native_decoder import library
from model.request import ImageRequest, SamplingSettings

LABELS = ("cytology", "fluorescence", "histology", "blood", "cervix")


@pytest.fixture
def checkpoint(test_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(test_checkpoint)


@pytest.fixture(params=["torch", "native"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Every promise of the engine holds for both decoders."""
    if request.param == "native" and library() is None:
        pytest.skip("the compiled decode step is not built, or this processor has no AVX-512 BF16")
    chosen: Kernel = request.param
    return chosen


@pytest.fixture
def make_engine(checkpoint: Checkpoint, kernel: Kernel) -> Callable[[int], Engine]:
    """Makes an engine with so many slots."""

    def make(slots: int) -> Engine:
        return Engine(checkpoint, device="cpu", slots=slots, threads=1, kernel=kernel)

    return make


@pytest.fixture
def engine(make_engine: Callable[[int], Engine]) -> Engine:
    return make_engine(8)


@pytest.fixture
def mixed_rows() -> list[ImageRequest]:
    """Eight rows with different labels, seeds, guidance, temperature, top-k and top-p."""
    settings = [
        SamplingSettings(),
        SamplingSettings(cfg_scale=2.0, temperature=0.0),
        SamplingSettings(cfg_scale=1.5, top_k=5),
        SamplingSettings(top_p=0.7),
        SamplingSettings(cfg_scale=3.0, temperature=0.6, top_k=20, top_p=0.9),
        SamplingSettings(temperature=2.0),
        SamplingSettings(temperature=0.0),
        SamplingSettings(cfg_scale=1.2, temperature=1.3, top_p=0.95),
    ]
    return [ImageRequest(LABELS[i % 5], 1000 + i, s) for i, s in enumerate(settings)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
