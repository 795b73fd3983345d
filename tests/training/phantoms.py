"""Patches that tests draw for themselves: discs on a ground, coloured by label."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {
    "cytology": ((210, 180, 200), (90, 40, 150)),
    "fluorescence": ((10, 10, 10), (200, 200, 200)),
    "histology": ((230, 190, 210), (120, 40, 120)),
}
COLUMNS = ("image", "mask", "modality", "organ", "group", "licence")


def write_phantoms(root: Path, each: int = 12, size: int = 64, a_group: int = 2) -> Path:
    """`each` patches a modality, `a_group` a group, with a manifest; cytology is also blood."""
    random = np.random.default_rng(0)
    rows = []
    for modality, (ground, nucleus) in COLOURS.items():
        for number in range(each):
            image, mask = _patch(random, size, ground, nucleus)
            names = [f"{modality}/{kind}/{number:03d}.png" for kind in ("images", "masks")]
            for name, pixels in zip(names, (image, mask), strict=True):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / name)
            organ = "blood" if modality == "cytology" else ""
            rows.append((*names, modality, organ, f"{modality}-{number // a_group}", "CC0-1.0"))
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return root


def _patch(
    random: np.random.Generator,
    size: int,
    ground: tuple[int, int, int],
    nucleus: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:size, :size]
    mask = np.zeros((size, size), dtype=bool)
    for _ in range(random.integers(2, 6)):
        centre, radius = random.integers(0, size, 2), random.integers(4, 10)
        mask |= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    image = np.where(mask[..., None], nucleus, ground) + random.normal(0, 6, (size, size, 3))
    return image.clip(0, 255).astype(np.uint8), mask.astype(np.uint8) * 255
