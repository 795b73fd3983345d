"""Originals that are drawn for tests of the import, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.data import Dataset, read_dataset
from training.importing import Import, import_patches
from training.tiles import tile_places

SIZE = 64
LICENCE = "CC-BY-4.0"
PAPER, INK = (230, 190, 210), (90, 30, 120)


def patch(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose pixels all differ from their neighbours, and labelled nuclei: 0 is none.

    The red channel of a nucleus is below 128 and that of the ground above, so that the image
    tells where the mask must be.
    """
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), dtype=np.uint16)
    for number in range(1, 12):
        row, column = random.integers(0, (height, width))
        labels[(y - row) ** 2 + (x - column) ** 2 < random.integers(3, 9) ** 2] = number * 300
    image = np.where(labels[..., None] > 0, INK, PAPER) + random.integers(-20, 20, (*y.shape, 3))
    return image.clip(0, 255).astype(np.uint8), labels


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path)


def bring_in(layout: str, source: Path, out: Path, organ: str = "", **more: Any) -> Dataset:
    settings = {"size": SIZE} | more
    import_patches(Import(layout, source, out, "histology", organ, LICENCE, **settings))
    return read_dataset(out, [LICENCE], settings["size"])


def of_group(dataset: Dataset, group: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The tiles of one original, in the manifest's order."""
    return [
        (image.numpy(), mask.numpy())
        for image, mask, sample in zip(dataset.images, dataset.masks, dataset.samples, strict=True)
        if sample.group == group
    ]


def assert_cut_from(
    tiles: list[tuple[np.ndarray, np.ndarray]], image: np.ndarray, labels: np.ndarray
) -> None:
    """The tiles are what stands in the original at their places, and cover all of it."""
    places = tile_places(labels.shape, SIZE)
    assert len(tiles) == len(places)
    seen = np.zeros(labels.shape, dtype=bool)
    for (tile, mask), (top, left) in zip(tiles, places, strict=True):
        there = np.s_[top : top + SIZE, left : left + SIZE]
        assert np.array_equal(tile, image[there])
        assert np.array_equal(mask, labels[there] > 0)
        assert np.array_equal(mask, tile[..., 0] < 128)
        seen[there] = True
    assert seen.all()


def write_slides(source: Path, *names: str) -> None:
    """Originals of one tile each, by their names without the folder images."""
    for seed, name in enumerate(names):
        image, labels = patch(seed, SIZE, SIZE)
        folder, _, stem = name.rpartition("/")
        save(source / folder / f"images/{stem}.png", image)
        save(source / folder / f"masks/{stem}.png", (labels > 0).astype(np.uint8) * 255)


SLIDES = ("slide-7/p1_0", "slide-7/p1_1", "slide-8/p1_2", "slide-8/p2_3")
