"""`pathar.torch`: a training's pairs, drawn while it runs."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pathar import Client
from pathar.errors import UsageError
from pathar.torch import DrawnPairs
from tests.running import Up

COUNTS = {"histology": 120, "blood": 30}


def drawn(pairs: DrawnPairs, workers: int) -> list[tuple[int, str]]:
    """Label and digest of the pixels of each pair, sorted."""
    found: list[tuple[int, str]] = []
    for batch in DataLoader(pairs, batch_size=8, num_workers=workers):
        assert batch["image"].dtype == batch["mask"].dtype == torch.uint8
        assert batch["mask"].shape[1] == 1
        assert set(batch["mask"].unique().tolist()) <= {0, 1}
        for label, image in zip(batch["label"].tolist(), batch["image"], strict=True):
            found.append(
                (label, hashlib.sha256(image.permute(1, 2, 0).numpy().tobytes()).hexdigest())
            )
    return sorted(found)


def pulled(folder: Path) -> list[tuple[int, str]]:
    """The same of a data set in plain folders."""
    found = []
    for place, label in enumerate(COUNTS):
        for path in (folder / label / "images").iterdir():
            pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())))
            found.append((place, hashlib.sha256(pixels.tobytes()).hexdigest()))
    return sorted(found)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_each_epoch_draws_its_own_pairs_once_with_any_number_of_workers(
    client: Client, stack: Up, tmp_path: Path
) -> None:
    pairs = DrawnPairs(COUNTS, url=stack.run()["url"], seed=11, temperature=(0.8, 1.0))
    first = drawn(pairs, workers=2)
    out = client.pull(
        COUNTS, out=tmp_path / "out", seed=11, format="folder", temperature=(0.8, 1.0)
    )
    assert first == pulled(out)
    pairs.set_epoch(1)
    second = drawn(pairs, workers=0)
    assert len(second) == len(first)
    assert not set(second) & set(first)


def test_pairs_that_are_drawn_during_a_training_are_not_filtered(stack: Up) -> None:
    with pytest.raises(UsageError, match="only pull filters"):
        DrawnPairs({"blood": 1}, url=stack.run()["url"], min_agreement=0.5)


def test_labels_are_mixed_and_what_is_left_early_is_dropped(client: Client, stack: Up) -> None:
    pairs = iter(DrawnPairs(COUNTS, url=stack.run()["url"], seed=12))
    assert {next(pairs)["label"] for _ in range(4)} == {0, 1}
    del pairs
    ours = [job for job in client.jobs() if job.priority == "bulk" and job.n in (100, 30, 20)]
    assert all(job.ended for job in ours)
    states = [stack.http.get(f"/jobs/{job.id}/images/0/image.png").status_code for job in ours]
    assert set(states) == {404}
