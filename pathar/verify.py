"""`pathar verify`: finds pairs and lone PNGs in files and folders, prints a verdict on each.

Knows nothing of how a verdict is reached.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from pathar.contract import FILE_NAMES
from pathar.errors import CommandError, UsageError
from pathar.provenance import PNG_NAMES, Verdict, role_of, verify_all
from pathar.redraw import model_at

FOLDERS = {name: f"{Path(name).stem.removesuffix('s')}s" for name in FILE_NAMES}
"""The folders of a data set whose pairs lie in several: images/1.png, masks/1.png."""


def verify(
    paths: Sequence[Path],
    env: Mapping[str, str],
    *,
    regenerate: bool = False,
    url: str | None = None,
    as_json: bool = False,
) -> int:
    """Print a verdict on each pair or lone PNG; the exit code: 0 where all are authentic, else 1.

    `regenerate` draws each again, by the service at `url` or PATHAR_URL, else by the checkpoint
    here.
    """
    if url is not None and not regenerate:
        raise UsageError(f"url {url!r}: a service is only asked with --regenerate")
    pairs = [pair for path in paths for pair in find_pairs(path)]
    told = []
    url = url or env.get("PATHAR_URL") or None
    with model_at(url, env) if regenerate else nullcontext() as model:
        for name, verdict in verify_all(
            ((str(_first(pair)), read_pair(pair)) for pair in pairs), model
        ):
            told.append((name, verdict))
            if not as_json:
                print(f"{verdict.kind:15} {name}: {verdict.text}", flush=True)
    counts = Counter(str(verdict.kind) for _, verdict in told)
    if as_json:
        print(json.dumps(_document(told, counts, regenerate=regenerate), indent=2))
    else:
        summary = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        print(f"\n{summary}{'' if regenerate else '; nothing was drawn again'}")
    return 0 if set(counts) == {"authentic"} else 1


def find_pairs(path: Path) -> Iterator[Sequence[Path]]:
    """The files of each pair or lone PNG that a folder holds, or that a file belongs to.

    UsageError where there is none.
    """
    pngs = sorted(path.rglob("*.png")) if path.is_dir() else [path]
    if not pngs:
        raise UsageError(f"{path}: holds no PNG")
    if not path.exists():
        raise UsageError(f"{path}: does not exist")
    seen: set[Path] = set()
    for png in pngs:
        if png not in seen:
            pair = [each for each in _siblings(png) if each == png or each.is_file()]
            seen.update(pair)
            yield pair


def _siblings(png: Path) -> list[Path]:
    """Where the files of a PNG's pair are, in the order of FILE_NAMES; itself where it has none."""
    for name in PNG_NAMES:
        if png.name.endswith(name):
            prefix = png.name.removesuffix(name)
            return [png.with_name(prefix + each) for each in FILE_NAMES]
    if png.parent.name in FOLDERS.values():
        top = png.parent.parent
        return [
            top / folder / png.with_suffix(Path(name).suffix).name
            for name, folder in FOLDERS.items()
        ]
    return [png]


def _first(pair: Sequence[Path]) -> Path:
    return pair[0]


def read_pair(pair: Sequence[Path]) -> dict[str, bytes]:
    """The contents of the files of a pair by their names in FILE_NAMES; CommandError."""
    found = {}
    for path in pair:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CommandError(f"{path}: cannot be read ({error.strerror})") from error
        found[_name(path) or role_of(content)] = content
    return found


def _name(path: Path) -> str | None:
    """Which file of a pair a path is, where its name says so."""
    for name, folder in FOLDERS.items():
        if path.name.endswith(name) or path.parent.name == folder:
            return name
    return None


def _document(
    told: Sequence[tuple[str, Verdict]], counts: Mapping[str, int], *, regenerate: bool
) -> dict[str, object]:
    files = [
        {
            "path": name,
            "verdict": verdict.kind,
            "text": verdict.text,
            "signed_by": dict(verdict.signed_by),
            "changes": [asdict(change) for change in verdict.changes],
        }
        for name, verdict in told
    ]
    return {"regenerated": regenerate, "counts": dict(counts), "files": files}
