"""`pathar export`: pairs as annotation tools and trainings on instances read them.

The folder appears once it is whole. Knows neither where pairs lie nor what the formats are.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
    found = list(find(source))
    count = nuclei = 0

    def counted() -> Iterator[AnnotatedPair]:
        nonlocal count, nuclei
        for pair in _annotated(pair for each in found for pair in contents(each)):
            yield pair
            count, nuclei = count + 1, nuclei + len(set(pair.ids.ravel().tolist()) - {0})
        if not count:
            raise UsageError(f"{source}: holds no pairs, expected what pathar pull or generate drew")

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            whole = Path(folder) / "whole"
            whole.mkdir()
            WRITERS[tool](counted(), whole)
            if out.exists():
                out.rmdir()
            os.replace(whole, out)
    except OSError as error:
        raise CommandError(f"cannot write to {out}: {error.strerror}") from error
    print(f"exported {count:,} pairs with {nuclei:,} nuclei to {out}")
    return 0


def _refuse(source: Path, out: Path) -> None:
    if (source / PARTIAL).exists() and not (source / MANIFEST).exists():
        raise CommandError(f"{source}: is not complete; the command that pulled it goes on")
    if out.exists() and not out.is_dir():
        raise UsageError(f"out {out}: is a file, expected a new folder")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"out {out}: holds other files, expected a new folder")


def _annotated(pairs: Iterator[FoundPair]) -> Iterator[AnnotatedPair]:
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
        raise CommandError(
            f"{pair.where}: {INSTANCES_NAME} has {ours} pixels, its image {theirs}"
        )
    return AnnotatedPair(pair.name or "", pair.files[IMAGE_NAME], pair.files[INSTANCES_NAME], ids)
