from pathlib import Path

import pytest
import torch

from model.checkpoint import Checkpoint, load_checkpoint
from model.engine import Engine
from model.request import ImageRequest, SamplingSettings

LABELS = ("cytology", "fluorescence", "histology", "blood", "cervix")


@pytest.fixture
def checkpoint(test_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(test_checkpoint)


@pytest.fixture
def engine(checkpoint: Checkpoint) -> Engine:
    return Engine(checkpoint, device="cpu", slots=8, threads=1)


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
