"""Import: `python -m training.import_patches LAYOUT SOURCE --out D --licence L --modality M`.

Cuts the annotated images of a data set into square tiles and writes them as the other stages read
them: `images/*.png`, `masks/*.png` (0 and 255) and `manifest.csv`, where a tile's group is its
original, or what `--group-by` finds in the original's name, so that training and validation never
share one. Tiles cover an original whole; where their size does not divide its own, neighbours
overlap.

Can be stopped and started again: tiles that are there are kept, unless their original has changed
since, and the manifest comes last and is written anew, so a folder that has one is complete. How
each layout is read stands in `layouts.py`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from training.annotations import SourceError
from training.layouts import LAYOUTS, Original, list_originals, organ_name
from training.run import StageError, stage

COLUMNS = ("image", "mask", "modality", "organ", "group", "licence")
MANIFEST = "manifest.csv"
RECORD = "import.json"
"""What the tiles of a folder were cut from, so that two imports are never mixed in one."""
REPORT_EVERY_S = 10.0


class ImportRefused(StageError):
    """An import that cannot go into this folder."""


@dataclass(frozen=True)
class Import:
    """One run of the command. `organ` is for originals that have none; `size` is in pixels.

    `group_by` is a regular expression for the names of originals; empty, each is a group.
    """

    layout: str
    source: Path
    out: Path
    modality: str
    organ: str
    licence: str
    size: int
    group_by: str = ""


@dataclass(frozen=True)
class Tile:
    """A square of an original, by its upper left corner, and the name of its two files."""

    name: str
    top: int
    left: int


def main() -> None:
    """Read the command line and import."""
    parser = argparse.ArgumentParser(prog="python -m training.import_patches", description=__doc__)
    parser.add_argument("layout", choices=sorted(LAYOUTS), help="how the source is laid out")
    parser.add_argument("source", type=Path, help="folder of the unpacked data set")
    parser.add_argument("--out", type=Path, required=True, help="folder to write patches to")
    parser.add_argument("--licence", required=True, help="of the data, e.g. CC-BY-4.0")
    parser.add_argument("--modality", required=True, help="of the data, e.g. histology")
    parser.add_argument("--organ", default="", help="of the images whose layout names none")
    parser.add_argument("--size", type=int, default=256, help="pixels of a tile's side")
    parser.add_argument(
        "--group-by",
        default="",
        metavar="PATTERN",
        help="regular expression whose first group, or all it matches, is the slide or patient in "
        "an original's name; '(.*)/' is the folder (default: each original by itself)",
    )
    args = parser.parse_args()
    with stage("import_patches"):
        import_patches(Import(**vars(args)))


def import_patches(run: Import) -> None:
    """Write the tiles of `run.source` that are not there yet, then the manifest. StageError."""
    if run.size < 1:
        raise ImportRefused(f"--size: got {run.size}, expected a number of pixels above 0")
    cuts = [
        (original, cut(original, run.size)) for original in list_originals(run.layout, run.source)
    ]
    _refuse_doubles(cuts)
    _refuse_shared_name(run, cuts)
    groups = {original.name: group_name(original.name, run.group_by) for original, _ in cuts}
    _prepare(run)
    kept = _write_tiles(run, cuts)
    _write_atomically(run.out / MANIFEST, _manifest(run, cuts, groups).encode())
    tiles = sum(len(tiles) for _, tiles in cuts)
    print(f"{run.out}: {len(cuts)} originals, {tiles} tiles, {kept} of them kept")
    for organ in sorted({original.organ for original, _ in cuts}):
        of_organ = [tiles for original, tiles in cuts if original.organ == organ]
        name = organ or organ_name(run.organ) or "no organ"
        print(f"  {name}: {len(of_organ)} originals, {sum(map(len, of_organ))} tiles")
    print(f"  {len(set(groups.values()))} groups of {tiles} patches; none of them is ever split")
    _warn_of_neighbours(run, cuts, groups)


def tile_places(shape: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """Upper left corners (row, column) of the fewest tiles that cover `shape`, evenly spread."""
    rows, columns = (_starts(length, size) for length in shape)
    return [(row, column) for row in rows for column in columns]


def _starts(length: int, size: int) -> list[int]:
    count = math.ceil(length / size)
    return [round(index * (length - size) / max(1, count - 1)) for index in range(count)]


def cut(original: Original, size: int) -> list[Tile]:
    """The tiles of an original. SourceError when it is smaller than one."""
    if min(original.shape) < size:
        height, width = original.shape
        raise SourceError(
            f"{original.name}: is {width} x {height} pixels, smaller than a tile of {size} x {size}"
        )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", original.name)
    return [
        Tile(f"{name}_{top:04d}_{left:04d}.png", top, left)
        for top, left in tile_places(original.shape, size)
    ]


def group_name(name: str, pattern: str) -> str:
    """The group of an original: what `pattern` finds in its name, or all of it without a pattern.

    ImportRefused where it finds nothing: such originals would otherwise all be one group.
    """
    if not pattern:
        return name
    try:
        found = re.search(pattern, name)
    except re.error as error:
        message = f"--group-by: got {pattern!r}, expected a regular expression ({error})"
        raise ImportRefused(message) from error
    group = found and found[1 if found.re.groups else 0]
    if not group:
        raise ImportRefused(
            f"{name}: --group-by {pattern!r} finds nothing in this name, expected its slide or "
            "patient"
        )
    return group


def _warn_of_neighbours(
    run: Import, cuts: Sequence[tuple[Original, list[Tile]]], groups: Mapping[str, str]
) -> None:
    """Say so where patches that somebody else has cut may be of one slide, but are not together.

    Folders alone: in the other layouts no name tells what is of one slide, or originals are large.
    """
    if run.layout != "folders" or any(len(tiles) > 1 for _, tiles in cuts):
        return
    held = Counter(original.name.rpartition("/")[0] for original, _ in cuts)
    folder, count = held.most_common(1)[0]
    if count > 1 and len(set(groups.values())) == len(cuts):
        print(
            f"  warning: every patch is a group of its own, and {folder or run.source} holds "
            f"{count} of them; where they are of one slide or patient, give the command again "
            "with --group-by, or what is trained will be validated on their neighbours"
        )


def _refuse_shared_name(run: Import, cuts: Sequence[tuple[Original, list[Tile]]]) -> None:
    """A label is asked for by its name alone."""
    if any(run.modality == (each.organ or organ_name(run.organ)) for each, _ in cuts):
        raise ImportRefused(f"--modality: {run.modality} is an organ's name too, expected another")


def _refuse_doubles(cuts: Sequence[tuple[Original, list[Tile]]]) -> None:
    """Two originals must not write the same files, not even where A and a are one letter."""
    seen: dict[str, str] = {}
    for original, tiles in cuts:
        first = tiles[0].name.lower()
        if first in seen:
            names = f"{seen[first]!r} and {original.name!r}"
            raise SourceError(f"{names}: these two originals would be one; rename one of them")
        seen[first] = original.name


def _prepare(run: Import) -> None:
    """Make the folder, and claim it for this import."""
    source = str(run.source.resolve())
    record = {"layout": run.layout, "source": source, "size": run.size}
    path = run.out / RECORD
    try:
        for kind in ("images", "masks"):
            (run.out / kind).mkdir(parents=True, exist_ok=True)
            for broken_off in (run.out / kind).glob("*.partial"):
                broken_off.unlink()
        if path.exists() and json.loads(path.read_text()) != record:
            raise ImportRefused(f"{run.out}: holds an import of {path.read_text().strip()}")
        if not path.exists() and (run.out / MANIFEST).exists():
            raise ImportRefused(f"{run.out}: has a {MANIFEST} that is none of this command's")
        _write_atomically(path, json.dumps(record).encode() + b"\n")
    except OSError as error:
        raise ImportRefused(f"--out {run.out}: cannot be written ({error.strerror})") from error


def _write_tiles(run: Import, cuts: Sequence[tuple[Original, list[Tile]]]) -> int:
    """Write what is not there yet; how many tiles were."""
    kept = written = 0
    total = sum(len(tiles) for _, tiles in cuts)
    began = reported = time.monotonic()
    for done, (original, tiles) in enumerate(cuts, start=1):
        since = max(path.stat().st_mtime_ns for path in original.files)
        missing = [tile for tile in tiles if not _is_there(run, tile, since)]
        if missing:
            image, mask = original.read()
            for tile in missing:
                _write_tile(run, tile, image, mask)
        kept, written = kept + len(tiles) - len(missing), written + len(missing)
        now = time.monotonic()
        if now - reported > REPORT_EVERY_S:
            reported, left = now, (now - began) / max(1, written) * (total - kept - written)
            so_far = f"{done}/{len(cuts)} originals, {written} tiles written, {kept} kept"
            print(f"import_patches: {so_far}, {left / 60:.0f} min left", flush=True)
    return kept


def _is_there(run: Import, tile: Tile, since: int) -> bool:
    """Whether a tile is complete and was cut from its original as that is now, by its time."""
    path = run.out / "images" / tile.name
    return path.exists() and path.stat().st_mtime_ns >= since


def _write_tile(run: Import, tile: Tile, image: np.ndarray, mask: np.ndarray) -> None:
    """The mask first: a tile whose image is there is complete."""
    square = np.s_[tile.top : tile.top + run.size, tile.left : tile.left + run.size]
    white = mask[square].astype(np.uint8) * 255
    for kind, pixels in (("masks", white), ("images", image[square])):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        _write_atomically(run.out / kind / tile.name, buffer.getvalue())


def _manifest(
    run: Import, cuts: Sequence[tuple[Original, list[Tile]]], groups: Mapping[str, str]
) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for original, tiles in cuts:
        organ = original.organ or organ_name(run.organ)
        for tile in tiles:
            files = (f"images/{tile.name}", f"masks/{tile.name}")
            writer.writerow((*files, run.modality, organ, groups[original.name], run.licence))
    return text.getvalue()


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


if __name__ == "__main__":
    main()
