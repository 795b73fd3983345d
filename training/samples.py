"""The patches of a folder: their files, labels and groups; pixels are not read.

A folder holds either a `manifest.csv` or plain `<label>/images/` and `<label>/masks/` folders. Also
here: how the files of one patch are read, which groups are held out, and which patches are copies
of one another. Knows nothing of models and batches.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.request import Label
from training.layouts.original import same_shape
from training.layouts.painted import folders
from training.pictures import GROUND, UNRULED, read_image, read_painting
from training.rasters import SourceError
from training.run import StageError

MANIFEST = "manifest.csv"
REQUIRED = ("image", "mask", "modality", "organ", "group", "licence")
COLUMNS = (*REQUIRED, "instances", "mpp", "text")
"""Of a manifest. All may be empty but image and mask; the last three may be missing as well."""
UNSTATED = "unstated"
"""The licence of what states none."""
VALIDATION_SHARE = 0.12
WHITE = (255, 65535)
"""The value of nuclei in a mask of 8 or 16 bits."""
MOST_IDS = 2**15 - 1
"""Ids of nuclei in a patch, which are kept as int16."""


class DataError(StageError):
    """A data folder that cannot be trained on; the sentence names the file."""


@dataclass(frozen=True)
class Sample:
    """One patch. `group` names its original image: a group is never split. `instances` is a
    picture of the ids of its nuclei, `mpp` its microns a pixel, `text` a caption; None, 0 and
    empty where unknown.
    """

    image: Path
    mask: Path
    labels: tuple[Label, ...]
    group: str
    licence: str
    instances: Path | None = None
    mpp: float = 0.0
    text: str = ""


@dataclass(frozen=True)
class Patch:
    """The pixels of a sample: `image` uint8 [H, W, 3], `mask` bool [H, W], and `ids` of its nuclei
    int16 [H, W], 1 to n and 0 outside, or None where they are unknown.
    """

    image: np.ndarray
    mask: np.ndarray
    ids: np.ndarray | None


# -- what is listed --------------------------------------------------------------------------------


def read_samples(root: Path, licences: Sequence[str]) -> list[Sample]:
    """What is listed under `root` under one of `licences` (empty: all of it), pixels unread."""
    listed = read_manifest(root) if (root / MANIFEST).exists() else read_folders(root)
    samples = [s for s in listed if not licences or s.licence in licences]
    if not samples:
        there = sorted({sample.licence or UNSTATED for sample in listed})
        raise DataError(f"{root}: no patches with licence in {list(licences)}, there are {there}")
    return samples


def read_manifest(root: Path) -> list[Sample]:
    """The samples that `root/manifest.csv` lists; paths in it are relative to `root`."""
    path = root / MANIFEST
    try:
        # Spreadsheets put a byte-order mark before the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [_manifest_sample(root, line, row) for line, row in _rows(path, file)]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason})") from error
    except csv.Error as error:
        raise DataError(f"{path}: is not a table of comma-separated values ({error})") from error


def _rows(path: Path, file: Iterator[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows by column, each with its line. DataError where the columns are not those expected."""
    reader = csv.reader(file, strict=True)
    header = next(reader, [])
    if missing := [name for name in REQUIRED if name not in header]:
        raise DataError(
            f"{path} line 1: has no column {missing[0]!r}; found {header}, expected at least "
            f"{','.join(REQUIRED)} with commas between them"
        )
    for row in reader:
        if not any(row):  # as spreadsheets leave them below a table
            continue
        if len(row) != len(header):
            raise DataError(
                f"{path} line {reader.line_num}: has {len(row)} fields, expected {len(header)}"
            )
        yield reader.line_num, dict(zip(header, row, strict=True))


def _manifest_sample(root: Path, line: int, row: Mapping[str, str]) -> Sample:
    if empty := [name for name in ("image", "mask") if not row[name]]:
        raise DataError(f"{root / MANIFEST} line {line}: has an empty {empty[0]}")
    labels = [Label(row["modality"], "modality")] if row["modality"] else []
    if row["organ"]:
        labels.append(Label(row["organ"], "organ"))
    instances = row.get("instances", "")
    return Sample(
        root / row["image"],
        root / row["mask"],
        tuple(labels),
        row["group"],
        row["licence"],
        root / instances if instances else None,
        _mpp(root / MANIFEST, line, row.get("mpp", "")),
        row.get("text", ""),
    )


def _mpp(path: Path, line: int, text: str) -> float:
    try:
        value = float(text or 0)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1000:
        raise DataError(
            f"{path} line {line}: mpp is {text!r}, expected microns per pixel such as 0.5"
        )
    return value


def read_folders(root: Path) -> list[Sample]:
    """Samples of `root/<label>/images/` with masks of the same name in `masks/`."""
    try:
        listing = folders(root, UNRULED)
    except SourceError as error:
        raise DataError(f"{root}: has no {MANIFEST}, and {error}") from error
    samples = []
    for original in listing.originals:
        if len(original.files) != 2:
            original.read()  # tells what is missing
        label, _, name = original.name.partition("/")
        if not name:
            raise DataError(
                f"{original.files[0]}: is in no folder of a label, expected LABEL/images and "
                "LABEL/masks"
            )
        image, mask = original.files
        samples.append(Sample(image, mask, (Label(label, "modality"),), original.name, ""))
    for path, why in listing.unused.items():
        raise DataError(f"{path}: {why}, expected a pair")
    return samples


# -- labels and groups -----------------------------------------------------------------------------


def refuse_unclear_names(labels: Collection[Label]) -> None:
    """DataError where a label's name is also another's, or differs from it by case or blanks only:
    by its name alone a label is asked for and reported.
    """
    seen: dict[str, Label] = {}
    for label in sorted(labels, key=lambda each: (each.name, each.kind)):
        if label.name != " ".join(label.name.split()):
            raise DataError(f"{label.name!r}: a label with spaces around it, expected none")
        other = seen.setdefault(label.name.casefold(), label)
        if other.name != label.name:
            raise DataError(
                f"{other.name!r} and {label.name!r}: two labels that differ only by case, "
                "expected one spelling"
            )
        if other != label:
            raise DataError(f"{label.name}: is both a modality and an organ, expected two names")


def validation_groups(samples: Sequence[Sample]) -> set[str]:
    """About an eighth of the groups of every set of labels, the same ones on every run."""
    groups: dict[tuple[Label, ...], set[str]] = defaultdict(set)
    for sample in samples:
        groups[sample.labels].add(sample.group)
    held_out: set[str] = set()
    for names in groups.values():
        ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        if len(ranked) > 1:
            held_out.update(ranked[: max(1, round(VALIDATION_SHARE * len(ranked)))])
    return held_out


def picture_digest(image: np.ndarray) -> bytes:
    """Of an image uint8 [H, W, 3]: the same for its eight turned and mirrored views."""
    turned = (np.rot90(image, turns) for turns in range(4))
    views = [view for each in turned for view in (each, each[:, ::-1])]
    return min(hashlib.sha256(view.tobytes()).digest() for view in views)


def joined_copies(
    samples: Sequence[Sample], digests: Sequence[bytes]
) -> tuple[list[Sample], list[tuple[Sample, Sample]]]:
    """Samples whose groups share a picture get one group, so that no copy of a training patch is
    held out; and the pairs of copies. `digests` are those of `picture_digest`.
    """
    parent: dict[str, str] = {}

    def root(group: str) -> str:
        while parent.get(group, group) != group:
            group = parent[group]
        return group

    first: dict[bytes, Sample] = {}
    copies = []
    for sample, digest in zip(samples, digests, strict=True):
        other = first.setdefault(digest, sample)
        if other is not sample:
            copies.append((other, sample))
            names = sorted((root(other.group), root(sample.group)))
            parent[names[1]] = names[0]
    return [replace(sample, group=root(sample.group)) for sample in samples], copies


def said_of_copies(copies: Sequence[tuple[Sample, Sample]]) -> str:
    """One line on copies, for people."""
    apart = sum(one.group != other.group for one, other in copies)
    one, other = next((pair for pair in copies if pair[0].group != pair[1].group), copies[0])
    return (
        f"{len(copies)} patches are copies of others, as they are, rotated or mirrored, {apart} of "
        f"them in another group ({other.image} and {one.image}); groups that share an image "
        "count as one"
    )


# -- pixels ----------------------------------------------------------------------------------------


def read_patch(sample: Sample) -> Patch:
    """The pixels of a sample. SourceError where a file cannot be read or means something else."""
    image, mask = read_image(sample.image), _read_mask(sample.mask)
    same_shape((sample.image, sample.mask), image, mask)
    if sample.instances is None:
        return Patch(image, mask, None)
    return Patch(image, mask, _read_ids(sample.instances, mask))


def _read_mask(path: Path) -> np.ndarray:
    """Bool [H, W]: white. Any other value than black and white could mean anything: SourceError."""
    painting = read_painting(path)
    others = sorted(set(np.unique(painting.values).tolist()) - {GROUND})
    if others and (painting.kind != "grey" or len(others) > 1 or others[0] not in WHITE):
        shown = ", ".join(map(str, others[:6]))
        raise SourceError(
            f"{path}: has {painting.kind} values {shown} besides the background, expected only 0 "
            "and 255; python -m training.import_patches folders reads other masks"
        )
    return np.asarray(painting.values != GROUND)


def _read_ids(path: Path, mask: np.ndarray) -> np.ndarray:
    painting = read_painting(path)
    found = painting.values != GROUND
    if painting.kind != "grey" or not np.array_equal(found, mask):
        raise SourceError(
            f"{path}: does not mark the pixels of its mask, expected ids on all of them"
        )
    named, ids = np.unique(painting.values[found], return_inverse=True)
    if len(named) > MOST_IDS:
        raise SourceError(f"{path}: has {len(named)} ids, expected at most {MOST_IDS}")
    written = np.zeros(mask.shape, dtype=np.int16)
    written[found] = ids + 1
    return written
