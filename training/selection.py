"""Which patches and labels a run trains on: by licence, and by the number of a label's groups.

A selection is stored as a manifest that names the images where they are. Every stage reads its
folder instead of the data, so all stages have the same labels and validation groups. Knows nothing
of stages.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model.request import Label, LabelKind
from training.overview import Overview, overview
from training.samples import (
    COLUMNS,
    DataError,
    Sample,
    joined_copies,
    read_samples,
    refuse_unclear_names,
    validation_groups,
)

KINDS: tuple[LabelKind, ...] = ("modality", "organ")


@dataclass(frozen=True)
class Selection:
    """The patches to train on, and how many groups each label has, kept and left out.

    `left_out` had too few; all those of `one_sided` were held out, or none of them. `copies` are
    pairs of patches with one picture, which have one group here. `looked_at` is what the patches
    hold.
    """

    samples: tuple[Sample, ...]
    kept: dict[Label, int]
    left_out: dict[Label, int]
    one_sided: dict[Label, int]
    copies: tuple[tuple[Sample, Sample], ...]
    looked_at: Overview

    def licences(self) -> list[str]:
        """What chooses all of its patches; none where one of them states none."""
        found = {sample.licence for sample in self.samples}
        return [] if "" in found else sorted(found)

    def digest(self) -> str:
        """SHA-256 of all its files, in their order."""
        found = hashlib.sha256()
        for path in (path for sample in self.samples for path in _files(sample)):
            try:
                found.update(hashlib.sha256(path.read_bytes()).digest())
            except OSError as error:
                raise DataError(f"{path}: {error.strerror}") from error
        return found.hexdigest()

    def manifest(self) -> str:
        """What `training.data` reads, with absolute paths."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for sample in self.samples:
            files = (sample.image.resolve(), sample.mask.resolve())
            labels = (_name(sample, kind) for kind in KINDS)
            ids = sample.instances.resolve() if sample.instances else ""
            known = (ids, f"{sample.mpp:g}" if sample.mpp else "", sample.text)
            writer.writerow((*files, *labels, sample.group, sample.licence, *known))
        return text.getvalue()


def select(roots: Sequence[Path], licences: Sequence[str], fewest: int) -> Selection:
    """The patches under all `roots` of these licences, with the labels that have `fewest` groups.
    Groups of one name are one group, also where they come from two folders.

    Each has at least one group to train on and one to validate on. A patch stays without its organ,
    but not without its modality. DataError where nothing is left, where a modality has no patches
    to train or to validate on, or where an organ has a modality's name.
    """
    listed = [sample for root in roots for sample in read_samples(root, licences)]
    refuse_unclear_names({label for sample in listed for label in sample.labels})
    looked_at = overview(listed, "train")
    digests = [figures.digest for figures in looked_at.figures]
    samples, copies = joined_copies(listed, digests)
    for sample in samples:
        if not _name(sample, "modality"):
            raise DataError(f"{sample.image}: has no modality, expected one such as histology")
    left_out: dict[Label, int] = {}
    for kind in KINDS:
        few = {x: len(names) for x, names in _groups(samples, kind).items() if len(names) < fewest}
        left_out |= few
        samples = [sample for sample in _without(few, samples) if _name(sample, "modality")]
    if not samples:
        where = ", ".join(map(str, roots))
        raise DataError(
            f"{where}: no label has {fewest} groups; there are {listed_groups(left_out)}"
        )
    one_sided: dict[Label, int] = {}
    while found := _one_sided(samples, "organ"):  # other sets, other groups held out
        one_sided |= found
        samples = _without(found, samples)
    kept = {x: len(names) for kind in KINDS for x, names in _groups(samples, kind).items()}
    _refuse_one_sided(samples)
    chosen = tuple(samples)
    return Selection(chosen, kept, left_out, one_sided, tuple(copies), looked_at.of(chosen))


def listed_groups(groups: dict[Label, int]) -> str:
    """Labels with their groups, for people."""
    return ", ".join(f"{label.name} ({n})" for label, n in groups.items())


def _one_sided(samples: Sequence[Sample], kind: LabelKind) -> dict[Label, int]:
    """The labels of which all groups are held out, or none: a group is held out for all labels."""
    held_out = validation_groups(samples)
    return {
        label: len(names)
        for label, names in _groups(samples, kind).items()
        if names <= held_out or not names & held_out
    }


def _refuse_one_sided(samples: Sequence[Sample]) -> None:
    held_out = validation_groups(samples)
    for label in _one_sided(samples, "modality"):
        if _groups(samples, "modality")[label] <= held_out:
            raise DataError(
                f"{label.name}: every group is held out for validation, because of its other "
                "labels; more groups are needed"
            )
        raise DataError(
            f"{label.name}: no group can be held out for validation; at least two are needed"
        )


def _without(labels: Collection[Label], samples: Sequence[Sample]) -> list[Sample]:
    return [replace(s, labels=tuple(x for x in s.labels if x not in labels)) for s in samples]


def _groups(samples: Sequence[Sample], kind: LabelKind) -> dict[Label, set[str]]:
    """The groups of each label, by its name."""
    found: dict[Label, set[str]] = {}
    for sample in samples:
        for label in sample.labels:
            if label.kind == kind:
                found.setdefault(label, set()).add(sample.group)
    return {label: found[label] for label in sorted(found, key=lambda label: label.name)}


def _files(sample: Sample) -> Iterator[Path]:
    yield from (sample.image, sample.mask)
    if sample.instances:
        yield sample.instances


def _name(sample: Sample, kind: LabelKind) -> str:
    return next((label.name for label in sample.labels if label.kind == kind), "")
