"""Writes the files of pairs: whole or not at all, under fixed names.

Knows nothing of where a pair comes from.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pathar.contract import FILE_NAMES, canonical_json
from pathar.pairs import Pair


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file so that no reader sees a part of it."""
    with whole_file(path, mode) as file:
        file.write(content)


@contextmanager
def whole_file(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file to write to. It takes its name when the context ends, and is removed on an error."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            os.fchmod(file.fileno(), mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def files_of(pair: Pair) -> dict[str, bytes]:
    """A pair's files by name, with the same bytes as in the service."""
    grids = {"structure_tokens": pair.structure, "appearance_tokens": pair.appearance}
    tokens = canonical_json(grids).encode()
    contents = (pair.image_png, pair.mask_png, pair.instances_png, tokens)
    return dict(zip(FILE_NAMES, contents, strict=True))


def write_pair(
    out: Path, label: str, seed: int, index: int, files: Mapping[str, bytes]
) -> list[Path]:
    """Write the files of one pair; returns their paths. `seed` is the request's."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{label}_{seed}_{index:05d}_{name}" for name in FILE_NAMES]
    for path, name in zip(paths, FILE_NAMES, strict=True):
        write_atomically(path, files[name])
    return paths
