"""Writes the files of pairs: whole or not at all, and never over those of another pair.

Knows nothing of where a pair comes from.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pathar.contract import FILE_NAMES, SETTINGS, settled, sha256


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


def stem(
    label: str,
    seed: int,
    model_version: str,
    numerics: str,
    settings: Mapping[str, Any],
    given: Sequence[str] = (),
) -> str:
    """What the files of a job are named by: label, seed, and 6 hex digits for the model and all
    other settings. `settings` are cfg_scale, temperature, top_k and top_p, and width and height of
    what is not a patch; `given` are those of `given_digests`.
    """
    numbers = {name: float(settings[name]) for name in settings if name not in SETTINGS}
    decides = [model_version, numerics, {**settled(settings), **numbers}, *given]
    return f"{label}_{seed}_{sha256(json.dumps(decides, sort_keys=True))[:6]}"


def given_digests(
    structure: Mapping[str, str | None] | None, appearance: Mapping[str, str | None] | None
) -> list[str]:
    """What tells apart what jobs are given, from the references that their answers show."""
    found = []
    for name, ref in (("", structure), ("appearance ", appearance)):
        if ref is not None:
            found.append(f"{name}{ref['sha256']}")
            found += [f"keep {ref['keep_sha256']}"] * (ref["keep_sha256"] is not None)
    return found


def paths_of(out: Path, name: str) -> list[Path]:
    """The files of one pair in the folder `out`, in the order of FILE_NAMES."""
    return [out / f"{name}_{file_name}" for file_name in FILE_NAMES]


def write_pair(out: Path, name: str, files: Mapping[str, bytes]) -> list[Path]:
    """Write the files of one pair; returns their paths. Makes the folder.

    Files that are there with these bytes are left alone. FileExistsError where one has others:
    then none is written.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = paths_of(out, name)
    wanted = dict(zip(paths, (files[file_name] for file_name in FILE_NAMES), strict=True))
    there = [path for path in paths if path.exists()]
    for path in there:
        if path.read_bytes() != wanted.pop(path):
            raise FileExistsError(errno.EEXIST, "it is there with other content", str(path))
    for path, content in wanted.items():
        write_atomically(path, content)
    return paths
