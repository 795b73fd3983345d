"""Files of results in a folder that API and workers share.

A file is written under another name, flushed to the disk and then renamed. What a killed process
left half written lies in WRITING and is removed when the next worker starts.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar
from uuid import uuid4

from runtime.objects import FOLDER_URL, PROBE, Access, Sink

WRITING = ".writing"
"""The folder of files that are not whole yet."""
STALE_S = 86400
"""A file there that has not changed for so long has lost its process."""
THREADS = 8

Value = TypeVar("Value")
Result = TypeVar("Result")


class Folder:
    """The files below a folder, which must be there: a share that is not mounted is away."""

    def __init__(self, url: str) -> None:
        self._root = Path(url.removeprefix(FOLDER_URL))
        self._ask = Access(_reason)

    def put(self, objects: Mapping[str, bytes]) -> None:
        """As of `Objects`."""
        self._ask(lambda: self._each(lambda item: self._put(*item), objects.items()))

    @contextmanager
    def writing(self, path: str) -> Iterator[Sink]:
        """As of `Objects`."""
        temporary, file = self._ask(self._begin)
        try:
            yield _File(file, self._ask)
            self._ask(partial(self._end, temporary, file, path))
        finally:
            with suppress(OSError):
                file.close()
                temporary.unlink(missing_ok=True)

    def get(self, paths: Iterable[str]) -> list[bytes | None]:
        """As of `Objects`."""
        return self._ask(lambda: self._each(self._get, paths))

    def size(self, path: str) -> int | None:
        """As of `Objects`."""
        return self._ask(partial(self._size, path))

    def read(self, path: str, first: int, length: int) -> bytes:
        """As of `Objects`."""
        return self._ask(partial(self._read, path, first, length))

    def delete_below(self, folders: Iterable[str]) -> None:
        """As of `Objects`."""
        for folder in folders:
            self._ask(partial(self._delete, self._root / folder))

    def check(self) -> None:
        """As of `Objects`. Removes what killed processes left in WRITING."""
        self.put({f"{PROBE}/{PROBE}": b""})
        self.delete_below([PROBE])
        self._ask(self._clean)

    def _each(self, act: Callable[[Value], Result], items: Iterable[Value]) -> list[Result]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(act, items))

    def _put(self, path: str, data: bytes) -> None:
        temporary, file = self._begin()
        try:
            file.write(data)
            self._end(temporary, file, path)
        finally:
            file.close()
            temporary.unlink(missing_ok=True)

    def _begin(self) -> tuple[Path, BinaryIO]:
        there = self._root / WRITING
        with suppress(FileExistsError):
            there.mkdir()
        temporary = there / uuid4().hex
        return temporary, temporary.open("xb")

    def _end(self, temporary: Path, file: BinaryIO, path: str) -> None:
        file.flush()
        os.fsync(file.fileno())
        file.close()
        target = self._root / path
        for again in (True, True, False):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(temporary, target)
                break
            except FileNotFoundError:  # `_delete` has taken the folder away as empty
                if not again:
                    raise
        _sync(target.parent)

    def _get(self, path: str) -> bytes | None:
        try:
            return (self._root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            if not self._root.is_dir():
                raise
            return None

    def _size(self, path: str) -> int | None:
        try:
            found = (self._root / path).stat()
        except (FileNotFoundError, NotADirectoryError):
            if not self._root.is_dir():
                raise
            return None
        return found.st_size if (self._root / path).is_file() else None

    def _read(self, path: str, first: int, length: int) -> bytes:
        with (self._root / path).open("rb") as file:
            file.seek(first)
            return file.read(length)

    def _delete(self, folder: Path) -> None:
        """Delete a folder, and those above it that are empty then."""
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        for above in folder.parents:
            if above == self._root:
                break
            try:
                above.rmdir()
            except FileNotFoundError:
                continue
            except OSError:  # it is not empty
                break

    def _clean(self) -> None:
        for path in (self._root / WRITING).iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink()


class _File:
    def __init__(self, file: BinaryIO, ask: Access) -> None:
        self._file, self._ask = file, ask

    def write(self, data: bytes, /) -> int:
        return self._ask(partial(self._file.write, data))


def _sync(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return repr(error)
