"""`pathar sign`: signed copies of pairs and PNGs. Knows nothing of how a signature is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pathar.credentials import read_key, sign
from pathar.errors import CommandError, UsageError
from pathar.finding import find, read_pair
from pathar.pair_files import write_atomically
from pathar.provenance import verify_files


def sign_copies(paths: Sequence[Path], key_file: Path, out: Path) -> int:
    """Write a signed copy of each PNG in `paths`, and a copy of each tokens.json, to `out`.

    A folder keeps its folders. What is not consistent is not signed: CommandError. UsageError on a
    key that cannot be used, or where a copy would replace a file.
    """
    key = read_key(key_file)
    count = 0
    for path in paths:
        for pair in find(path):
            if isinstance(pair, Path):
                raise UsageError(f"{pair}: is no PNG; expected PNGs, signed before they are packed")
            files = read_pair(pair)
            verdict = verify_files(files)
            if verdict.kind != "authentic":
                first = next(iter(pair.values()))
                raise CommandError(f"{first}: is not signed: {verdict.kind}, {verdict.text}")
            for source in pair.values():
                data = source.read_bytes()
                copy = out / (source.relative_to(path) if path.is_dir() else source.name)
                if copy.exists():
                    raise UsageError(f"out {copy}: exists; expected a folder without it")
                signed = sign(data, key, source.name) if source.suffix == ".png" else data
                copy.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(copy, signed)
                count += source.suffix == ".png"
    print(f"signed {count} PNGs in {out}")
    return 0
