"""`pathar export`: pairs as annotation tools and trainings on instances read them.

The folder appears once it is whole. Knows neither where pairs lie nor what the formats are.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pathar.annotations import WRITERS, AnnotatedPair
from pathar.contract import IMAGE_NAME, INSTANCES_NAME
from pathar.dataset_folder import PARTIAL
from pathar.errors import CommandError, UsageError
from pathar.finding import FoundPair, contents, find
from pathar.manifest import MANIFEST
from pathar.records import decode_png


def export(source: Path, tool: str, out: Path) -> int:
    """Write the pairs of a folder, a shard or an archive to the new folder `out`; prints how many.

    UsageError where there are none, or where `out` holds anything. CommandError where a pair cannot
    be exported, or where `out` cannot be written to.
    """
    _refuse(source, out)
    pairs = (pair for each in list(find(source)) for pair in contents(each))
    nuclei: list[int] = []
    try:
        with _new_folder(out) as folder:
            WRITERS[tool](_counted(_annotated(pairs), nuclei), folder)
            if not nuclei:
                drawn = "what pathar pull or pathar generate drew"
                raise UsageError(f"{source}: holds no pairs, expected {drawn}")
    except OSError as error:
        raise CommandError(f"cannot write to {out}: {error.strerror}") from error
    print(f"exported {len(nuclei):,} pairs with {sum(nuclei):,} nuclei to {out}")
    return 0


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to write to. It becomes `out` when the context ends, and is removed on an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as beside:
        folder = Path(beside) / "whole"
        folder.mkdir()
        yield folder
        if out.exists():
            out.rmdir()  # it is empty; Windows renames nothing onto a folder
        os.replace(folder, out)


def _counted(pairs: Iterable[AnnotatedPair], nuclei: list[int]) -> Iterator[AnnotatedPair]:
    """Pairs; note how many nuclei each has."""
    for pair in pairs:
        yield pair
        nuclei.append(int(np.count_nonzero(np.unique(pair.ids))))


def _refuse(source: Path, out: Path) -> None:
    if (source / PARTIAL).exists() and not (source / MANIFEST).exists():
        raise CommandError(f"{source}: is not complete; the command that pulled it goes on")
    if out.exists() and not out.is_dir():
        raise UsageError(f"out {out}: is a file, expected a new folder")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"out {out}: holds other files, expected a new folder")


def _annotated(pairs: Iterable[FoundPair]) -> Iterator[AnnotatedPair]:
    """Pairs with their ids. CommandError names what keeps one from being exported."""
    places: dict[str, str] = {}
    for pair in pairs:
        if pair.name is None:
            continue
        if pair.name != Path(pair.name).name or pair.name.startswith("."):
            raise CommandError(f"{pair.where}: {pair.name!r} cannot be the name of a file")
        if pair.name in places:
            raise CommandError(
                f"{pair.name}: is the name of two pairs, {places[pair.name]} and {pair.where}; "
                "export them apart"
            )
        places[pair.name] = pair.where
        for name in (IMAGE_NAME, INSTANCES_NAME):
            if name not in pair.files:
                raise CommandError(f"{pair.where}: has no {name}")
        yield _read(pair)


def _read(pair: FoundPair) -> AnnotatedPair:
    pixels = {}
    for name in (IMAGE_NAME, INSTANCES_NAME):
        try:
            pixels[name] = decode_png(pair.files[name])
        except ValueError as error:
            raise CommandError(f"{pair.where}: {name} cannot be read ({error})") from None
    image, ids = pixels[IMAGE_NAME], pixels[INSTANCES_NAME]
    if ids.ndim != 2 or ids.itemsize < 2:
        what = f"{ids.dtype} in {1 if ids.ndim == 2 else ids.shape[2]} channels"
        raise CommandError(f"{pair.where}: {INSTANCES_NAME} has {what}, expected 16 bits in one")
    if ids.shape != image.shape[:2]:
        ours, theirs = (f"{each.shape[1]} x {each.shape[0]}" for each in (ids, image))
        raise CommandError(f"{pair.where}: {INSTANCES_NAME} has {ours} pixels, its image {theirs}")
    return AnnotatedPair(pair.name or "", pair.files[IMAGE_NAME], pair.files[INSTANCES_NAME], ids)
