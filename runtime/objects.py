"""Objects in S3-compatible storage, through obstore. Knows no jobs and no Redis.

Every failure except a missing object is `ObjectsAway`: a retry helps once its cause is fixed. The
log says once that the storage is away, and once that it answers again. While it is away, one call
at a time tries it and the others fail at once: a hanging storage then does not block all threads.
"""

from __future__ import annotations

import asyncio
import logging
import mimetypes
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from runtime.settings import SettingsError

if TYPE_CHECKING:
    from obstore.store import S3Store

TIMEOUT_S = 5.0
STORAGE_RETRIES = 2
MOST_DELETED = 1000
"""The most objects that S3 deletes in one request."""
PROBE = "probe"
"""Name of the object that a worker writes to test its access."""

Value = TypeVar("Value")
log = logging.getLogger("pathar.runtime")


class ObjectsAway(Exception):
    """The storage does not answer, or answers with an error."""


class Objects:
    """The objects below one prefix of a bucket. Thread-safe; not for use within an event loop."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._away = False
        self._asking = threading.Lock()

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Write objects by path, in parallel; returns when all are stored. ObjectsAway."""
        self._ask(lambda: asyncio.run(_together(self._put(*each) for each in objects.items())))

    def get(self, paths: Iterable[str]) -> list[bytes | None]:
        """Read objects, in parallel; None for a missing one. ObjectsAway."""
        return self._ask(lambda: asyncio.run(_together(self._get(path) for path in paths)))

    def delete_below(self, folders: Iterable[str]) -> None:
        """Delete everything in these folders. Can be repeated. ObjectsAway."""
        for folder in folders:
            self._ask(partial(self._delete_below, folder))

    def check(self) -> None:
        """ObjectsAway unless objects can be written, listed and deleted."""
        self.put({f"{PROBE}/{PROBE}": b""})
        self.delete_below([PROBE])

    async def _put(self, path: str, data: bytes) -> None:
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        attributes = {"Content-Type": kind}
        await self._store.put_async(path, data, attributes=attributes, use_multipart=False)

    async def _get(self, path: str) -> bytes | None:
        try:
            found = await self._store.get_async(path)
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise
            return None
        return bytes(await found.bytes_async())

    def _delete_below(self, folder: str) -> None:
        for found in self._store.list(folder, chunk_size=MOST_DELETED):
            self._store.delete([meta["path"] for meta in found])

    def _ask(self, call: Callable[[], Value]) -> Value:
        alone = self._away
        if alone and not self._asking.acquire(blocking=False):
            raise ObjectsAway("it did not answer the last request")
        try:
            answer = call()
        except Exception as error:  # obstore raises exceptions of its own and of Python's
            reason = _reason(error)
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
    """The storage at `url` (s3://bucket/prefix); None without a URL. Sends nothing yet.

    `timeout_s` bounds a request with its retries. Endpoint, region and credentials come from the
    AWS_ variables of the process; SettingsError when they cannot be used.
    """
    if url is None:
        return None
    from obstore.store import S3Store

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    named = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    endpoint = next((os.environ[name] for name in named if os.environ.get(name)), "https://")
    if not endpoint.startswith(("http://", "https://")):
        raise SettingsError("AWS_ENDPOINT_URL", endpoint, "a URL that starts with http(s)://")
    try:
        store = S3Store(
            bucket,
            prefix=prefix or None,
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=timeout_s),
                "timeout": timedelta(seconds=timeout_s),
            },
            retry_config={
                "max_retries": STORAGE_RETRIES,
                "retry_timeout": timedelta(seconds=timeout_s),
                "backoff": {
                    "init_backoff": timedelta(seconds=0.05),
                    "max_backoff": timedelta(seconds=0.5),
                    "base": 2,
                },
            },
        )
    except Exception as error:
        expected = f"usable AWS_ variables ({_reason(error)})"
        raise SettingsError("PATHAR_RESULTS_URL", url, expected) from None
    return Objects(store)


def _reason(error: Exception) -> str:
    """An obstore error in one line, without its Rust source."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())[:400]


async def _together(calls: Iterable[Awaitable[Value]]) -> list[Value]:
    return await asyncio.gather(*calls)
