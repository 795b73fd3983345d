import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.checkpoint import Checkpoint, load_checkpoint
from model.engine import Engine, Kernel
from model.native_decoder import libraries
from model.request import ByStream, ImageRequest, SamplingSettings

if not torch.cuda.is_available():
    # Triton reads this when it is imported: its kernels run on the CPU, slowly.
    os.environ["TRITON_INTERPRET"] = "1"

LABELS = ("cytology", "fluorescence", "histology", "blood", "cervix")


@pytest.fixture
def checkpoint(test_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(test_checkpoint)


@pytest.fixture(params=["torch", "native", "triton"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Every promise of the engine holds for every decoder."""
    if request.param == "native" and not libraries():
        pytest.skip("the compiled decode step is not built")
    if request.param == "triton" and not torch.cuda.is_available():
        pytest.skip("no GPU; test_triton_decoder.py runs the kernels in Triton's interpreter")
    chosen: Kernel = request.param
    return chosen


@pytest.fixture
def make_engine(checkpoint: Checkpoint, kernel: Kernel) -> Callable[[int], Engine]:
    """Makes an engine with so many slots."""

    device = "cuda" if kernel == "triton" else "cpu"

    def make(slots: int) -> Engine:
        return Engine(checkpoint, device=device, slots=slots, threads=1, kernel=kernel)

    return make


@pytest.fixture
def engine(make_engine: Callable[[int], Engine]) -> Engine:
    return make_engine(8)


@pytest.fixture
def mixed_rows() -> list[ImageRequest]:
    """Eight rows with different labels, seeds, guidance, temperature, top-k and top-p, two of them
    with others for each stream."""
    settings = [
        SamplingSettings(),
        SamplingSettings(cfg_scale=2.0, temperature=0.0),
        SamplingSettings(cfg_scale=1.5, top_k=5),
        SamplingSettings(top_p=0.7),
        SamplingSettings(cfg_scale=3.0, temperature=0.6, top_k=20, top_p=0.9),
        SamplingSettings(
            ByStream(1.0, 2.0), ByStream(2.0, 0.8), ByStream(0, 9), ByStream(0.9, 1.0)
        ),
        SamplingSettings(temperature=ByStream(0.0, 1.0), cfg_scale=ByStream(1.5, 1.0)),
        SamplingSettings(cfg_scale=1.2, temperature=1.3, top_p=0.95),
    ]
    return [ImageRequest(LABELS[i % 5], 1000 + i, s) for i, s in enumerate(settings)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
