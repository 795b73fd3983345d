"""Reading every original of a source once, before anything is written.

What is broken is found then, all of it in one run; and what the values of painted masks mean is
decided over all of them. Files are known again by their digests, so an original that has not
changed is not decoded a second time. Knows nothing of tiles and manifests.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.layouts.original import Original
from training.pictures import Evidence, Painting, evidence
from training.rasters import SourceError

REPORT_EVERY_S = 10.0


@dataclass(frozen=True)
class Surveyed:
    """An original that can be read: the SHA-256 of its files, its height and width, microns a
    pixel, whether ids of nuclei are known, and what its painted mask tells, if it has one.
    """

    original: Original
    digest: str
    shape: tuple[int, int]
    mpp: float
    ids: bool
    told: Evidence | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, from which `survey` knows it again."""
        told = None
        if self.told:
            told = asdict(self.told) | {"path": str(self.told.path)}
        return {
            "sha256": self.digest,
            "shape": list(self.shape),
            "mpp": self.mpp,
            "ids": self.ids,
            "told": told,
        }


@dataclass
class Digests:
    """SHA-256 of files, each read once: one array can hold all originals."""

    known: dict[Path, bytes] = field(default_factory=dict)

    def of(self, files: Sequence[Path]) -> str:
        """Of some files together. SourceError where one cannot be read."""
        found = hashlib.sha256()
        for path in files:
            if path not in self.known:
                self.known[path] = _file_digest(path)
            found.update(self.known[path])
        return found.hexdigest()


def _file_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error


def survey(
    originals: Sequence[Original], known: Mapping[str, Any]
) -> tuple[list[Surveyed], list[str]]:
    """Every original that can be read, and a line for each that cannot. `known` holds, by name,
    what an earlier survey found.
    """
    found: list[Surveyed] = []
    broken: list[str] = []
    digests = Digests()
    reported = time.monotonic()
    for number, original in enumerate(originals, start=1):
        try:
            found.append(_surveyed(original, digests, known.get(original.name)))
        except SourceError as error:
            broken.append(str(error))
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            print(f"import_patches: {number}/{len(originals)} originals looked at", flush=True)
    return found, broken


def _surveyed(original: Original, digests: Digests, known: Any) -> Surveyed:
    digest = digests.of(original.files)
    if known and known["sha256"] == digest:
        told = known["told"] and _told(known["told"])
        shape = (known["shape"][0], known["shape"][1])
        return Surveyed(original, digest, shape, known["mpp"], known["ids"], told)
    pair = original.read()
    painted = isinstance(pair.nuclei, Painting)
    told = evidence(pair.nuclei) if isinstance(pair.nuclei, Painting) else None
    ids = not painted and pair.nuclei.dtype != bool  # type: ignore[union-attr]
    return Surveyed(original, digest, pair.image.shape[:2], pair.mpp, ids, told)


def _told(data: Mapping[str, Any]) -> Evidence:
    pixels = {int(value): count for value, count in data["pixels"].items()}
    return Evidence(**{**data, "path": Path(data["path"]), "pixels": pixels})
