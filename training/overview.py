"""What patches hold, before they are used: figures by label, warnings, a contact sheet.

A wrong mask shows here first: nuclei that cover most of a label, masks that are all empty, outlines
beside the nuclei. Every import and every training writes it at the start. Knows nothing of models.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

from training.meaning import CONNECTED
from training.run import counted
from training.samples import Patch, Sample, picture_digest, read_patch

SHEET = "overview.png"
PAIRS = 16
COLUMNS = 4
OUTLINE = (0, 255, 0)
MOST_NUCLEI = 0.5
"""Share of a label's pixels from which on its masks are likely inverted. Of the labels that this
project was trained on, the most crowded organ has 0.39."""
REPORT_EVERY_S = 10.0
SAME_MPP = 1.05
"""The factor up to which microns a pixel of a label's patches may differ and count as one."""

LARGEST_CELL = 512
"""Pixels a side of a pair on the sheet."""


@dataclass(frozen=True)
class Figures:
    """Of one patch: share of its pixels in nuclei, number of nuclei (by ids, or connected pieces
    where they are unknown), and the digest of its picture.
    """

    share: float
    nuclei: int
    digest: bytes


@dataclass(frozen=True)
class Overview:
    """`figures` of every sample, in their order, and the sheet of some of them."""

    samples: Sequence[Sample]
    figures: Sequence[Figures]
    sheet: Image.Image

    def of(self, samples: Sequence[Sample]) -> Overview:
        """The same of some of these samples, whatever their labels and groups are now."""
        known = {
            sample.image: figures
            for sample, figures in zip(self.samples, self.figures, strict=True)
        }
        return Overview(samples, [known[sample.image] for sample in samples], self.sheet)

    def facts(self) -> dict[str, dict[str, float]]:
        """By label: patches, groups, share of nuclei, empty masks, nuclei a patch, how many patches
        have ids and a caption, least and most microns a pixel where some state it, and `mpp` where
        all do and agree.
        """
        labels = sorted({label.name for sample in self.samples for label in sample.labels})
        return {name: self._of(name) for name in labels}

    def _of(self, name: str) -> dict[str, float]:
        chosen = [
            (sample, figures)
            for sample, figures in zip(self.samples, self.figures, strict=True)
            if name in {label.name for label in sample.labels}
        ]
        samples = [sample for sample, _ in chosen]
        known = [sample.mpp for sample in samples if sample.mpp]
        facts: dict[str, float] = {
            "patches": len(chosen),
            "groups": len({sample.group for sample in samples}),
            "nuclei_share": round(float(np.mean([f.share for _, f in chosen])), 4),
            "empty_masks": sum(not f.share for _, f in chosen),
            "nuclei_a_patch": round(float(np.mean([f.nuclei for _, f in chosen])), 2),
            "with_ids": sum(sample.instances is not None for sample in samples),
            "with_text": sum(bool(sample.text) for sample in samples),
        }
        if known:
            facts |= {"mpp_least": min(known), "mpp_most": max(known)}
            if len(known) == len(samples) and max(known) <= SAME_MPP * min(known):
                facts["mpp"] = round(float(np.mean(known)), 4)
        return facts


def overview(samples: Sequence[Sample], stage: str) -> Overview:
    """Read every patch once. SourceError where one cannot be read. Says how far it is."""
    figures: list[Figures] = []
    cells: list[np.ndarray] = []
    chosen = set(np.linspace(0, len(samples) - 1, min(PAIRS, len(samples))).round().astype(int))
    reported = time.monotonic()
    for number, sample in enumerate(samples):
        patch = read_patch(sample)
        figures.append(_figures(patch))
        if number in chosen:
            cells.append(outlined(patch))
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            print(f"{stage}: {number + 1} of {len(samples)} patches read", flush=True)
    return Overview(samples, figures, _sheet(cells))


def lines(facts: dict[str, dict[str, float]]) -> list[str]:
    """The figures of every label, for people, and warnings."""
    shown = []
    for name, of in facts.items():
        shown.append(
            f"{name}: {counted(int(of['patches']), 'patch')} in "
            f"{counted(int(of['groups']), 'group')}, nuclei on {of['nuclei_share']:.1%} of their "
            f"pixels, {of['nuclei_a_patch']:.1f} a patch, "
            f"{counted(int(of['empty_masks']), 'empty mask')}"
        )
    for name, of in facts.items():
        if of["empty_masks"] == of["patches"]:
            shown.append(f"warning: every mask of {name} is empty")
        elif of["nuclei_share"] > MOST_NUCLEI:
            shown.append(
                f"warning: nuclei cover {of['nuclei_share']:.0%} of {name}; are its masks inverted?"
            )
    return shown


def write(found: Overview, folder: Path) -> None:
    """Write the sheet and say the figures."""
    found.sheet.save(folder / SHEET)
    for line in lines(found.facts()):
        print(f"  {line}", flush=True)
    shown = counted(min(PAIRS, len(found.samples)), "patch")
    print(f"  {folder / SHEET}: {shown} with their outlines")


def _figures(patch: Patch) -> Figures:
    if patch.ids is not None:
        nuclei = int(patch.ids.max(initial=0))
    else:
        nuclei = int(ndimage.label(patch.mask, CONNECTED)[1])
    return Figures(float(patch.mask.mean()), nuclei, picture_digest(patch.image))


def outlined(patch: Patch) -> np.ndarray:
    """The image uint8 [H, W, 3] with the inner border of every nucleus drawn on it; of a large one
    every n-th pixel, so that it has at most LARGEST_CELL a side.
    """
    thin = np.s_[:: -(-max(patch.mask.shape) // LARGEST_CELL)]
    ids = (patch.mask.astype(np.int16) if patch.ids is None else patch.ids)[thin, thin]
    least = ndimage.minimum_filter(ids, size=3, mode="nearest")
    most = ndimage.maximum_filter(ids, size=3, mode="nearest")
    drawn = patch.image[thin, thin].copy()
    drawn[(ids > 0) & ((least != ids) | (most != ids))] = OUTLINE
    return drawn


def _sheet(cells: Sequence[np.ndarray]) -> Image.Image:
    """Cells in rows of COLUMNS, each in the middle of a square of the largest's size."""
    side = max(max(cell.shape[:2]) for cell in cells)
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * side, rows * side), "white")
    for number, cell in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        sheet.paste(Image.fromarray(cell), (column * side, row * side))
    return sheet
