"""An import: from the originals of a source to patches, masks, ids and a manifest.

Every original is read once before anything is written. This finds broken files, and masks whose
values can mean two things. An import can be stopped and run again: it keeps tiles while the files
of their original have the same digest. The manifest is written last, so a folder that has one is
complete. Knows no command line and no layout.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pathar.contract import scaled_name
from training import overview
from training.layouts import LAYOUTS, list_originals
from training.layouts.original import (
    Listing,
    Original,
    files_under,
    is_hidden,
    is_picture,
    organ_name,
)
from training.meaning import Meaning, meaning
from training.pictures import UNRULED, Painting, Rules
from training.run import StageError, counted
from training.samples import COLUMNS, MANIFEST, read_samples
from training.survey import Surveyed, survey
from training.tiles import (
    KINDS,
    Small,
    Tile,
    file_names,
    fitted,
    paths,
    write_atomically,
    write_tile,
)

RECORD = "import.json"
"""What the tiles of a folder were cut from, so that two imports are never mixed in one."""
REPORT_EVERY_S = 10.0
EXAMPLES = 3
"""Unused files that are named, of each reason."""


class ImportRefused(StageError):
    """An import that cannot go into this folder, or cannot be done as it is asked for."""


@dataclass(frozen=True)
class Import:
    """One run of the command. `organ` and `mpp` are for originals that state none; `size` is in
    pixels. `group_by` is a regular expression for the names of originals; empty, each is a group.
    `only` is a file with the names of the originals to import, one per line. `shrinks` says how
    many times smaller originals are cut as well: 2 for half of their magnification.
    """

    layout: str
    source: Path
    out: Path
    modality: str
    organ: str
    licence: str
    size: int = 256
    group_by: str = ""
    small: Small = "refuse"
    skip_broken: bool = False
    mpp: float = 0.0
    only: Path | None = None
    shrinks: tuple[int, ...] = ()
    rules: Rules = UNRULED


@dataclass(frozen=True)
class Cut:
    """An original with the tiles that it is cut into, each `shrink` times smaller than what it
    shows."""

    of: Surveyed
    tiles: list[Tile]
    ids: bool
    shrink: int = 1


def import_patches(run: Import) -> None:
    """Write the tiles of `run.source` that are not there yet, then the manifest. StageError."""
    _refuse_unusable(run)
    listing = _chosen(run, list_originals(run.layout, run.source, run.rules))
    groups = {each.name: _group(each, run.group_by) for each in listing.originals}
    before = _claimed(run)
    known = before.get("originals", {})
    found, broken = survey(listing.originals, run.size, run.small, known, run.shrinks)
    _report_broken(run, broken)
    meant = meaning([each.told for each in found if each.told], run.rules)
    _refuse_shared_name(run, found)
    kept = _large_enough(run, found)
    cuts = _cuts(run, kept, meant)
    _prepare(run, before, cuts, meant)
    there = _write_tiles(run, cuts, meant)
    write_atomically(run.out / MANIFEST, _manifest(run, cuts, groups).encode())
    _summarise(run, cuts, there, groups)
    _report_unused(run, listing)
    overview.write(overview.overview(read_samples(run.out, []), "import_patches"), run.out)


# -- what is asked for -----------------------------------------------------------------------------


def _refuse_unusable(run: Import) -> None:
    if run.size < 1:
        raise ImportRefused(f"--size: got {run.size}, expected a number of pixels above 0")
    if run.mpp < 0:
        raise ImportRefused(f"--mpp: got {run.mpp:g}, expected microns per pixel such as 0.25")
    if not LAYOUTS[run.layout].painted:
        for field in ("background", "threshold", "mask_page"):
            if getattr(run.rules, field) != getattr(UNRULED, field):
                option = f"--{field.replace('_', '-')}"
                raise ImportRefused(f"{option}: {run.layout} has no painted masks, expected none")
    for name, value in (("--modality", run.modality), ("--licence", run.licence)):
        if not value or value != " ".join(value.split()):
            example = "histology" if name == "--modality" else "CC-BY-4.0"
            raise ImportRefused(f"{name}: got {value!r}, expected a name such as {example}")


def _chosen(run: Import, listing: Listing) -> Listing:
    """The originals that `--only` names; all of them without it. ImportRefused where it names one
    that is not there.
    """
    if run.only is None:
        return listing
    try:
        wanted = {line.strip() for line in run.only.read_text().splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise ImportRefused(f"--only {run.only}: cannot be read ({error})") from error
    there = {original.name for original in listing.originals}
    if missing := sorted(wanted - there):
        raise ImportRefused(
            f"--only {run.only}: names {missing[0]!r} and {len(missing) - 1} more that are not in "
            f"{run.source}, which has names such as {min(there)!r}"
        )
    rest = {
        path: "not named in --only"
        for original in listing.originals
        if original.name not in wanted
        for path in original.files
    }
    kept = [original for original in listing.originals if original.name in wanted]
    return replace(listing, originals=kept, unused={**listing.unused, **rest})


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


def _group(original: Original, pattern: str) -> str:
    """What the source says, unless the user says otherwise."""
    return group_name(original.name, pattern) if pattern else original.group or original.name


def _refuse_shared_name(run: Import, found: Sequence[Surveyed]) -> None:
    """A label is asked for by its name alone."""
    organs = {each.original.organ or organ_name(run.organ) for each in found}
    if run.modality.casefold() in organs:
        raise ImportRefused(f"--modality: {run.modality} is an organ's name too, expected another")


def _report_broken(run: Import, broken: Sequence[str]) -> None:
    """Name every original that cannot be read; ImportRefused unless the user goes on without."""
    for line in broken:
        print(f"training.import_patches: {line}", file=sys.stderr)
    if broken and not run.skip_broken:
        raise ImportRefused(
            f"{counted(len(broken), 'original')} cannot be used, named above; fix them, or give "
            "--skip-broken to import the others"
        )


def _large_enough(run: Import, found: Sequence[Surveyed]) -> list[Surveyed]:
    """The originals that give tiles. ImportRefused where one is too small and no option says what
    to do, or where none is left.
    """
    smaller = [each for each in found if min(each.shape) < run.size]
    if smaller and run.small == "refuse":
        height, width = smaller[0].shape
        raise ImportRefused(
            f"{smaller[0].original.name}: is {width} x {height} pixels, smaller than a tile of "
            f"{run.size} x {run.size}, as are {len(smaller)} of {len(found)} originals; --small "
            "skip, pad or scale says what to do with them"
        )
    if smaller:
        some = counted(len(smaller), "original")
        print(f"import_patches: {some} smaller than a tile: {run.small}")
    kept = [each for each in found if run.small != "skip" or min(each.shape) >= run.size]
    if not any(each.places for each in kept):
        raise ImportRefused(f"{run.source}: no original is left to import")
    for shrink in run.shrinks:
        if not any(each.wider.get(shrink) for each in kept):
            raise ImportRefused(
                f"--scales {1 / shrink:g}: no original has {run.size * shrink} pixels a side, "
                f"which make a tile of {run.size}"
            )
    return kept


# -- tiles -----------------------------------------------------------------------------------------


def _cuts(run: Import, found: Sequence[Surveyed], meant: Meaning) -> list[Cut]:
    files = file_names([each.original.name for each in found])
    cuts = []
    for each in found:
        ids = each.ids or (each.told is not None and meant.means == "ids")
        for shrink, places in {1: each.places, **each.wider}.items():
            name = scaled_name(files[each.original.name], 1 / shrink)
            tiles = [Tile(f"{name}_{top:04d}_{left:04d}", top, left) for top, left in places]
            cuts.append(Cut(each, tiles, ids, shrink))
    return cuts


def _claimed(run: Import) -> dict[str, Any]:
    """What an earlier run of this import recorded; empty if there was none. ImportRefused where the
    folder holds anything else.
    """
    path = run.out / RECORD
    if path.exists():
        before: dict[str, Any] = json.loads(path.read_text())
        if {key: before.get(key) for key in _settings(run)} != _settings(run):
            settings = ", ".join(f"{key} {before.get(key)}" for key in _settings(run))
            raise ImportRefused(f"{run.out}: holds an import of {settings}; use another --out")
        return before
    if (run.out / MANIFEST).exists():
        raise ImportRefused(f"{run.out}: has a {MANIFEST} that this command did not write")
    return {}


def _settings(run: Import) -> dict[str, Any]:
    """What decides the pixels of tiles."""
    rules = asdict(run.rules) | {"nuclei": list(run.rules.nuclei)}
    del rules["max_megapixels"]
    where = {"layout": run.layout, "source": str(run.source.resolve()), "size": run.size}
    return where | {"small": run.small, "rules": rules, "shrinks": list(run.shrinks)}


def _prepare(run: Import, before: Mapping[str, Any], cuts: Sequence[Cut], meant: Meaning) -> None:
    """Make the folders, take away tiles that were cut from other files, and note those of now."""
    record = _settings(run) | {
        "meaning": [meant.means, *sorted(f"{kind} {value}" for kind, value in meant.listed)],
        "originals": {cut.of.original.name: cut.of.to_dict() for cut in cuts},
    }
    same = before.get("meaning") == record["meaning"]
    old = before.get("originals", {}) if same else {}
    fresh = {
        path
        for cut in cuts
        if old.get(cut.of.original.name, {}).get("sha256") == cut.of.sha256
        for tile in cut.tiles
        for path in paths(run.out, tile, cut.ids)
    }
    try:
        (run.out / MANIFEST).unlink(missing_ok=True)
        for kind in KINDS:
            (run.out / kind).mkdir(parents=True, exist_ok=True)
            for path in (run.out / kind).iterdir():
                if path not in fresh:
                    path.unlink()
        write_atomically(run.out / RECORD, json.dumps(record).encode() + b"\n")
    except OSError as error:
        raise ImportRefused(f"--out {run.out}: cannot be written ({error.strerror})") from error


def _write_tiles(run: Import, cuts: Sequence[Cut], meant: Meaning) -> int:
    """Write what is not there yet; how many tiles were."""
    kept = written = 0
    total = sum(len(cut.tiles) for cut in cuts)
    began = reported = time.monotonic()
    reading: Original | None = None
    for done, cut in enumerate(cuts, start=1):
        missing = [tile for tile in cut.tiles if not paths(run.out, tile, cut.ids)[-1].exists()]
        kept += len(cut.tiles) - len(missing)
        if missing:
            if reading is not cut.of.original:  # it may have been cut at another scale just now
                reading = cut.of.original
                image, nuclei = _read(run, reading, meant)
            for tile in missing:
                write_tile(run.out, tile, run.size, image, nuclei, cut.shrink)
                written += 1
                now = time.monotonic()
                if now - reported > REPORT_EVERY_S:
                    reported, left = now, (now - began) / written * (total - kept - written)
                    so_far = f"{done}/{len(cuts)} originals, {written} tiles written, {kept} kept"
                    print(f"import_patches: {so_far}, {left / 60:.0f} min left", flush=True)
    return kept


def _read(run: Import, original: Original, meant: Meaning) -> tuple[np.ndarray, np.ndarray]:
    """Image and nuclei of an original, at least as large as a tile."""
    pair = original.read()
    nuclei = meant.nuclei(pair.nuclei) if isinstance(pair.nuclei, Painting) else pair.nuclei
    return fitted(pair.image, nuclei, run.size, run.small)


def _manifest(run: Import, cuts: Sequence[Cut], groups: Mapping[str, str]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for cut in cuts:
        original = cut.of.original
        organ = original.organ or organ_name(run.organ)
        scale = 1 / cut.shrink
        mpp = (cut.of.mpp or run.mpp) * cut.shrink
        if run.small == "scale":
            mpp *= min(1.0, min(cut.of.shape) / run.size)
        for tile in cut.tiles:
            named = {path.parent.name: path for path in paths(Path(), tile, cut.ids)}
            files = (named["images"].as_posix(), named["masks"].as_posix())
            ids = named["instances"].as_posix() if cut.ids else ""
            names = [scaled_name(name, scale) if name else "" for name in (run.modality, organ)]
            labels = (*names, groups[original.name], run.licence)
            writer.writerow((*files, *labels, ids, f"{mpp:g}" if mpp else "", original.text))
    return text.getvalue()


# -- what is said in the end -----------------------------------------------------------------------


def _summarise(run: Import, cuts: Sequence[Cut], kept: int, groups: Mapping[str, str]) -> None:
    all_tiles = sum(len(cut.tiles) for cut in cuts)
    by_shrink = {each: [cut for cut in cuts if cut.shrink == each] for each in (1, *run.shrinks)}
    cuts = by_shrink.pop(1)
    tiles = sum(len(cut.tiles) for cut in cuts)
    some = f"{counted(len(cuts), 'original')}, {counted(all_tiles, 'tile')}"
    print(f"{run.out}: {some}, {kept} of them kept")
    for shrink, smaller in by_shrink.items():
        cut_into = counted(sum(len(cut.tiles) for cut in smaller), "tile")
        print(f"  at scale {1 / shrink:g}: {counted(len(smaller), 'original')}, {cut_into}")
    for organ in sorted({cut.of.original.organ for cut in cuts}):
        of_organ = [cut.tiles for cut in cuts if cut.of.original.organ == organ]
        name = organ or organ_name(run.organ) or "no organ"
        cut_into = counted(sum(map(len, of_organ)), "tile")
        print(f"  {name}: {counted(len(of_organ), 'original')}, {cut_into}")
    if doubtful := sum(cut.of.doubtful for cut in cuts):
        print(f"  {counted(doubtful, 'tile')} left out, in regions annotated as doubtful")
    left_out = sum((Counter(cut.of.left_out) for cut in cuts), Counter[str]())
    for why, count in sorted(left_out.items()):
        print(f"  annotations not used, {why}: {count}")
    ids = sum(len(cut.tiles) for cut in cuts if cut.ids)
    print(f"  ids of nuclei known in {ids} of {counted(tiles, 'tile')}")
    used = {groups[cut.of.original.name] for cut in cuts}
    print(f"  {counted(len(used), 'group')} of patches; validation never splits a group")
    _warn_of_neighbours(run, cuts, used)


def _warn_of_neighbours(run: Import, cuts: Sequence[Cut], groups: set[str]) -> None:
    """Say so where patches that somebody else has cut may be of one slide, but are not together.

    Painted folders alone: in the other layouts no name tells what is of one slide, or originals
    are large.
    """
    if run.layout not in ("folders", "suffixes") or any(len(cut.tiles) > 1 for cut in cuts):
        return
    held = Counter(cut.of.original.name.rpartition("/")[0] for cut in cuts)
    folder, count = held.most_common(1)[0]
    if count > 1 and len(groups) == len(cuts):
        print(
            f"  warning: every patch is a group of its own, and {folder or run.source} holds "
            f"{count} of them; if they are of one slide or patient, run the command again "
            "with --group-by, or validation will use neighbours of training patches"
        )


def _report_unused(run: Import, listing: Listing) -> None:
    """Count and name the files of the source that nothing was made of, by reason."""
    used = {path for original in listing.originals for path in original.files} | {*listing.read}
    inside = run.out.resolve()
    reasons: dict[str, list[Path]] = {}
    for path in files_under(run.source):
        if path not in used and inside not in path.resolve().parents:
            why = listing.unused.get(path) or _why_unused(path)
            reasons.setdefault(why, []).append(path)
    for why, found in sorted(reasons.items()):
        named = ", ".join(str(path.relative_to(run.source)) for path in found[:EXAMPLES])
        more = f" and {len(found) - EXAMPLES} more" if len(found) > EXAMPLES else ""
        print(f"  not used, {why}: {len(found)} ({named}{more})")


def _why_unused(path: Path) -> str:
    if is_hidden(path):
        return "left by the operating system"
    if is_picture(path):
        return "image that the layout has no place for"
    return f"file with the ending {path.suffix or 'none'}"
