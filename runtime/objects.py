"""Files of results by path, in S3-compatible storage or a shared folder. Knows no jobs, no Redis.

Every failure except a missing file is `ObjectsAway`: a retry helps once its cause is fixed. The
log says once that the storage is away, and once that it answers again. While it is away, one call
at a time tries it and the others fail at once: a hanging storage then does not block all threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

TIMEOUT_S = 5.0
PROBE = "probe"
"""Name of the file that a worker writes to test its access."""
FOLDER_URL = "file://"

Value = TypeVar("Value")
log = logging.getLogger("pathar.runtime")


class ObjectsAway(Exception):
    """The storage does not answer, or answers with an error."""


class Sink(Protocol):
    """A file that is written from start to end."""

    def write(self, data: bytes, /) -> object:
        """Write more of it. ObjectsAway."""


class Objects(Protocol):
    """The files below one prefix or folder. Thread-safe; not for use within an event loop.

    A file appears whole or not at all, under its name, and replaces an older one.
    """

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Write files by path, in parallel; returns when all are stored. ObjectsAway."""

    def writing(self, path: str) -> AbstractContextManager[Sink]:
        """A file of any size, written piece by piece. It appears when the context ends; after an
        exception it does not. ObjectsAway.
        """

    def get(self, paths: Iterable[str]) -> list[bytes | None]:
        """Read files, in parallel; None for a missing one. ObjectsAway."""

    def size(self, path: str) -> int | None:
        """The size of a file in bytes; None where it is missing. ObjectsAway."""

    def read(self, path: str, first: int, length: int) -> bytes:
        """Bytes of a file that is there. ObjectsAway."""

    def delete_below(self, folders: Iterable[str]) -> None:
        """Delete everything in these folders. Can be repeated. ObjectsAway."""

    def check(self) -> None:
        """ObjectsAway unless files can be written, listed and deleted."""


class Access:
    """Calls to one storage, which may be away. `reason` says an error in one line."""

    def __init__(self, reason: Callable[[Exception], str]) -> None:
        self._reason = reason
        self._away = False
        self._asking = threading.Lock()

    def __call__(self, call: Callable[[], Value]) -> Value:
        """The answer of a call. ObjectsAway."""
        alone = self._away
        if alone and not self._asking.acquire(blocking=False):
            raise ObjectsAway("it did not answer the last request")
        try:
            answer = call()
        except Exception as error:  # obstore raises exceptions of its own and of Python's
            reason = self._reason(error)
            if not self._away:
                self._away = True
                log.warning("storage of results: %s; trying again", reason)
            raise ObjectsAway(reason) from error
        finally:
            if alone:
                self._asking.release()
        if self._away:
            self._away = False
            log.info("storage of results: answers again")
        return answer


def open_objects(url: str | None, *, timeout_s: float = TIMEOUT_S) -> Objects | None:
    """The storage at `url` (s3://bucket/prefix, file:///folder); None without a URL. Sends nothing
    yet.

    `timeout_s` bounds a request with its retries. Endpoint, region and credentials come from the
    AWS_ variables of the process; SettingsError when they cannot be used.
    """
    if url is None:
        return None
    if url.startswith(FOLDER_URL):
        from runtime.folder import Folder

        return Folder(url)
    from runtime.bucket import open_bucket

    return open_bucket(url, timeout_s)
