"""Files of results as objects in S3-compatible storage, through obstore.

Large files are uploaded in parts. S3 shows such an object only once it is complete: what an
interrupted upload leaves is no object, and a lifecycle rule of the bucket removes it.
"""

from __future__ import annotations

import asyncio
import mimetypes
import os
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from runtime.objects import PROBE, Access, Objects, Sink
from runtime.settings import SettingsError

if TYPE_CHECKING:
    from obstore import WritableFile
    from obstore.store import S3Store

STORAGE_RETRIES = 2
MOST_DELETED = 1000
"""The most objects that S3 deletes in one request."""
PART_BYTES = 8 << 20
"""Of an upload in parts. A smaller file is one request."""
UPLOADS = 2
"""Parts of a file that are sent at once."""

Value = TypeVar("Value")


class Bucket:
    """The objects below one prefix of a bucket."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._ask = Access(_reason)

    def put(self, objects: Mapping[str, bytes]) -> None:
        """As of `Objects`."""
        self._ask(lambda: asyncio.run(_together(self._put(*each) for each in objects.items())))

    @contextmanager
    def writing(self, path: str) -> Iterator[Sink]:
        """As of `Objects`. After an exception the upload is not completed."""
        import obstore

        file = obstore.open_writer(
            self._store, path,
            attributes=_attributes(path), buffer_size=PART_BYTES, max_concurrency=UPLOADS,
        )  # fmt: skip
        yield _Upload(file, self._ask)
        self._ask(file.close)

    def get(self, paths: Iterable[str]) -> list[bytes | None]:
        """As of `Objects`."""
        return self._ask(lambda: asyncio.run(_together(self._get(path) for path in paths)))

    def size(self, path: str) -> int | None:
        """As of `Objects`."""
        return self._ask(partial(self._size, path))

    def read(self, path: str, first: int, length: int) -> bytes:
        """As of `Objects`."""
        return self._ask(lambda: bytes(self._store.get_range(path, start=first, length=length)))

    def delete_below(self, folders: Iterable[str]) -> None:
        """As of `Objects`."""
        for folder in folders:
            self._ask(partial(self._delete_below, folder))

    def check(self) -> None:
        """As of `Objects`."""
        self.put({f"{PROBE}/{PROBE}": b""})
        self.delete_below([PROBE])

    async def _put(self, path: str, data: bytes) -> None:
        attributes = _attributes(path)
        await self._store.put_async(path, data, attributes=attributes, use_multipart=False)

    async def _get(self, path: str) -> bytes | None:
        try:
            found = await self._store.get_async(path)
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise
            return None
        return bytes(await found.bytes_async())

    def _size(self, path: str) -> int | None:
        try:
            return self._store.head(path)["size"]
        except FileNotFoundError:
            return None

    def _delete_below(self, folder: str) -> None:
        for found in self._store.list(folder, chunk_size=MOST_DELETED):
            self._store.delete([meta["path"] for meta in found])


class _Upload:
    def __init__(self, file: WritableFile, ask: Access) -> None:
        self._file, self._ask = file, ask

    def write(self, data: bytes, /) -> int:
        return self._ask(partial(self._file.write, data))


def open_bucket(url: str, timeout_s: float) -> Objects:
    """The storage at `url`, as `open_objects` says. SettingsError."""
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
    return Bucket(store)


def _attributes(path: str) -> dict[str, str]:
    return {"Content-Type": mimetypes.guess_type(path)[0] or "application/octet-stream"}


def _reason(error: Exception) -> str:
    """An obstore error in one line, without its Rust source."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())[:400]


async def _together(calls: Iterable[Awaitable[Value]]) -> list[Value]:
    return await asyncio.gather(*calls)
