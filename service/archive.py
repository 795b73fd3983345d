"""The ZIP archive of a job's pairs: its size, known before any of it is sent, and its bytes.

Files are stored uncompressed, each after its size and checksum. So streaming readers can read the
archive: they cannot find the end of a stored file whose size comes after it. The same job gives the
same bytes. Knows no HTTP and no store.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pathar.contract import ARCHIVE_MANIFEST
from service.response_schemas import job_state
from store.job import Job

DAY_ONE = (1980, 1, 1, 0, 0, 0)
"""The time of all files, so that the bytes do not depend on the time of the request."""
LAYOUT = 2
"""Raise this when the same files give other bytes: clients that resume a download then notice."""
_LOCAL, _CENTRAL, _END, _END_64, _OFFSET_64 = 30, 46, 22, 76, 12
"""Sizes in bytes without names and contents: local file header, central directory entry, end of
central directory, its ZIP64 records in long archives, and the ZIP64 field of an entry whose file
begins beyond the ZIP64 limit."""


@dataclass(frozen=True)
class Archive:
    """The archive of one job. `size` in bytes; `tag` changes whenever the bytes do."""

    job: Job
    size: int
    tag: str

    @classmethod
    def of(cls, job: Job, sizes: Sequence[Mapping[str, int]]) -> Archive:
        """The archive of a finished job. `sizes` has the sizes in bytes of each image's files, by
        name."""
        blank = "0" * len(_digest(b""))
        digests = [dict.fromkeys(of_image, blank) for of_image in sizes]
        files = [
            (_place(part.index, name), size)
            for part, of_image in zip(job.parts, sizes, strict=True)
            for name, size in of_image.items()
        ]
        files.append((ARCHIVE_MANIFEST, len(_manifest(job, digests))))
        told = [LAYOUT, job.owner, job.created_at, _head(job), files]
        return cls(job, _size(files), _digest(json.dumps(told).encode())[:32])

    def read(
        self, images: Iterator[Mapping[str, bytes]], first: int = 0, last: int | None = None
    ) -> Iterator[bytes]:
        """Yields the bytes `first` to `last`, both inclusive. `images` has each image's files."""
        end, at = self.size if last is None else last + 1, 0
        for piece in self._pieces(images):
            wanted = piece[max(0, first - at) : max(0, end - at)]
            if wanted:
                yield wanted
            at += len(piece)
            if at >= end:
                return

    def _pieces(self, images: Iterator[Mapping[str, bytes]]) -> Iterator[bytes]:
        """Yields the whole archive, an image at a time."""
        window = _Window()
        digests = []
        with zipfile.ZipFile(window, "w", zipfile.ZIP_STORED) as archive:
            for part, files in zip(self.job.parts, images, strict=True):
                for name, data in files.items():
                    archive.writestr(zipfile.ZipInfo(_place(part.index, name), DAY_ONE), data)
                digests.append({name: _digest(data) for name, data in files.items()})
                yield window.take()
            archive.writestr(
                zipfile.ZipInfo(ARCHIVE_MANIFEST, DAY_ONE), _manifest(self.job, digests)
            )
        yield window.take()


class _Window(io.RawIOBase):
    """A file that is written from start to end. Only bytes that were not taken yet can be changed:
    ZipFile goes back to the header of a file when it knows the checksum."""

    def __init__(self) -> None:
        self._taken = 0
        self._buffer = io.BytesIO()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._taken + self._buffer.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET
        return self._taken + self._buffer.seek(offset - self._taken)

    def write(self, data: Any) -> int:
        return self._buffer.write(data)

    def take(self) -> bytes:
        data = self._buffer.getvalue()
        self._taken += len(data)
        self._buffer = io.BytesIO()
        return data


def _size(files: Sequence[tuple[str, int]]) -> int:
    """The size in bytes of an archive of these files, by the ZIP format. Each file must be smaller
    than 2 GiB."""
    at = central = 0
    for place, size in files:
        central += _CENTRAL + len(place) + (_OFFSET_64 if at > zipfile.ZIP64_LIMIT else 0)
        at += _LOCAL + len(place) + size
    long = at > zipfile.ZIP64_LIMIT or len(files) > zipfile.ZIP_FILECOUNT_LIMIT
    return at + central + _END + (_END_64 if long else 0)


def _place(index: int, name: str) -> str:
    return f"{index:04d}/{name}"


def _head(job: Job) -> dict[str, Any]:
    told = {"job_id", "model", "labels", "settings", "structure", "appearance", "priority"}
    told |= {"size"} if job.request.size else set()
    return job_state(job).model_dump(include=told)


def _manifest(job: Job, digests: Sequence[Mapping[str, str]]) -> str:
    """The manifest: the job's request and the SHA-256 of each file, all equally long."""
    listed = [
        {
            "index": part.index,
            "label": part.label,
            "seed": part.seed,
            "sha256": {_place(part.index, name): digest for name, digest in of_image.items()},
        }
        for part, of_image in zip(job.parts, digests, strict=True)
    ]
    return json.dumps({**_head(job), "images": listed}, indent=1)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
