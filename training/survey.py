"""Reading every original of a source once, before anything is written.

This finds all broken files in one run, decides what the values of painted masks mean over all
masks, and leaves out tiles in doubtful regions. It recognises files by their digests, so it does
not decode an unchanged original a second time. Knows nothing of manifests.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.layouts.original import AnnotatedImage, Original
from training.meaning import Evidence, evidence
from training.pictures import Painting
from training.rasters import SourceError
from training.tiles import Small, fitted, fitted_shape, tile_places

REPORT_EVERY_S = 10.0


@dataclass(frozen=True)
class Surveyed:
    """An original that can be read.

    `sha256` is of its files, `shape` its height and width, `mpp` its microns a pixel or 0; `ids`
    says whether its nuclei are known one by one. `places` are the upper left corners of its tiles,
    without the `doubtful` ones; `wider` has those of squares whose sides are so many times a
    tile's. `left_out` counts annotations that are not nuclei, by reason;
    `told` is what a painted mask tells.
    """

    original: Original
    sha256: str
    shape: tuple[int, int]
    mpp: float
    ids: bool
    places: tuple[tuple[int, int], ...]
    doubtful: int
    left_out: Mapping[str, int]
    told: Evidence | None
    wider: Mapping[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, from which `survey` knows it again."""
        told = self.told and asdict(self.told) | {"path": str(self.told.path)}
        facts = {name: getattr(self, name) for name in FACTS}
        wider = {str(shrink): places for shrink, places in self.wider.items()}
        return facts | {"left_out": dict(self.left_out), "told": told, "wider": wider}


FACTS = ("sha256", "shape", "mpp", "ids", "places", "doubtful")


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
    originals: Sequence[Original],
    size: int,
    small: Small,
    known: Mapping[str, Any],
    shrinks: Sequence[int] = (),
) -> tuple[list[Surveyed], list[str]]:
    """Every original that can be read, and a line for each that cannot. `known` holds, by name,
    what an earlier survey for tiles of this size and these `shrinks` found.
    """
    found: list[Surveyed] = []
    broken: list[str] = []
    digests = Digests()
    reported = time.monotonic()
    for number, original in enumerate(originals, start=1):
        try:
            sha256 = digests.of(original.files)
            before = known.get(original.name)
            if before and before["sha256"] == sha256:
                found.append(_again(original, before))
            else:
                found.append(_surveyed(original, sha256, size, small, shrinks))
        except SourceError as error:
            broken.append(str(error))
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            print(f"import_patches: {number}/{len(originals)} originals read", flush=True)
    return found, broken


def _again(original: Original, before: Mapping[str, Any]) -> Surveyed:
    told = before["told"]
    if told:
        pixels = {int(value): count for value, count in told["pixels"].items()}
        told = Evidence(**{**told, "path": Path(told["path"]), "pixels": pixels})
    return Surveyed(
        original,
        before["sha256"],
        tuple(before["shape"]),
        before["mpp"],
        before["ids"],
        tuple((top, left) for top, left in before["places"]),
        before["doubtful"],
        before["left_out"],
        told,
        {
            int(shrink): tuple((top, left) for top, left in places)
            for shrink, places in before["wider"].items()
        },
    )


def _surveyed(
    original: Original, sha256: str, size: int, small: Small, shrinks: Sequence[int]
) -> Surveyed:
    pair = original.read()
    painting = pair.nuclei if isinstance(pair.nuclei, Painting) else None
    ids = not isinstance(pair.nuclei, Painting) and pair.nuclei.dtype != bool
    height, width = pair.image.shape[:2]
    places = tile_places(fitted_shape((height, width), size, small), size)
    clear = _clear(pair, places, size, small)
    wider = {
        shrink: _clear(pair, tile_places((height, width), size * shrink), size * shrink, "skip")
        for shrink in shrinks
        if min(height, width) >= size * shrink
    }
    return Surveyed(
        original,
        sha256,
        (height, width),
        pair.mpp,
        ids,
        clear,
        len(places) - len(clear),
        pair.left_out,
        evidence(painting) if painting else None,
        wider,
    )


def _clear(
    pair: AnnotatedImage, places: Sequence[tuple[int, int]], size: int, small: Small
) -> tuple[tuple[int, int], ...]:
    """The places whose tiles hold no doubtful pixel."""
    if pair.doubtful is None:
        return tuple(places)
    doubtful = fitted(pair.image, pair.doubtful, size, small)[1]
    return tuple(
        (top, left)
        for top, left in places
        if not doubtful[top : top + size, left : left + size].any()
    )
