"""Which patches and labels a run trains on: by licence, and by how many groups a label has.

A selection is kept as a manifest that names the pictures where they are. Every stage reads that
folder in place of the data, so all of them agree on labels and on the validation groups. Knows
nothing of stages.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model.request import Label, LabelKind
from training import data as patches
from training.data import DataError, Sample
from training.import_patches import COLUMNS

KINDS: tuple[LabelKind, ...] = ("modality", "organ")


@dataclass(frozen=True)
class Selection:
    """The patches to train on, and how many groups each label has, kept and left out."""

    samples: tuple[Sample, ...]
    kept: dict[Label, int]
    left_out: dict[Label, int]

    def licences(self) -> list[str]:
        """Those of its patches; none where one of them states none."""
        found = {sample.licence for sample in self.samples}
        return [] if "" in found else sorted(found)

    def manifest(self) -> str:
        """What `training.data` reads, with absolute paths."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for sample in self.samples:
            files = (sample.image.resolve(), sample.mask.resolve())
            labels = (_name(sample, kind) for kind in KINDS)
            writer.writerow((*files, *labels, sample.group, sample.licence))
        return text.getvalue()


def select(root: Path, licences: Sequence[str], fewest: int) -> Selection:
    """The patches under `root` of these licences, with the labels that have `fewest` groups.

    A patch stays without its organ, but not without its modality. DataError where nothing is
    left, or where a modality has no patches to validate on.
    """
    samples = patches.read_samples(root, licences)
    for sample in samples:
        if not _name(sample, "modality"):
            raise DataError(f"{sample.image}: has no modality, expected one such as histology")
    left_out: dict[Label, int] = {}
    for kind in KINDS:
        few = {label: n for label, n in _groups(samples, kind).items() if n < fewest}
        left_out |= few
        without = [replace(s, labels=tuple(x for x in s.labels if x not in few)) for s in samples]
        samples = [sample for sample in without if _name(sample, "modality")]
    if not samples:
        raise DataError(f"{root}: no label has {fewest} groups; there are {counted(left_out)}")
    kept = {label: n for kind in KINDS for label, n in _groups(samples, kind).items()}
    _refuse_untestable(samples)
    return Selection(tuple(samples), kept, left_out)


def counted(groups: dict[Label, int]) -> str:
    """Labels with their groups, for people."""
    return ", ".join(f"{label.name} ({n})" for label, n in groups.items())


def _refuse_untestable(samples: Sequence[Sample]) -> None:
    held_out = patches.validation_groups(samples)
    tested = {_name(sample, "modality") for sample in samples if sample.group in held_out}
    for name in sorted({_name(sample, "modality") for sample in samples} - tested):
        raise DataError(
            f"{name}: no group can be held out to validate on; two of a kind are needed"
        )


def _groups(samples: Sequence[Sample], kind: LabelKind) -> dict[Label, int]:
    found: dict[Label, set[str]] = {}
    for sample in samples:
        for label in sample.labels:
            if label.kind == kind:
                found.setdefault(label, set()).add(sample.group)
    return {label: len(found[label]) for label in sorted(found, key=lambda label: label.name)}


def _name(sample: Sample, kind: LabelKind) -> str:
    return next((label.name for label in sample.labels if label.kind == kind), "")
