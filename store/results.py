"""Stores the files of finished images, until `result_ttl` seconds after the job ended.

The files are in Redis, or they are objects in S3-compatible storage or a shared folder, with a
reference in Redis. Files stored before the setting changed are still found. Knows neither what a
PNG is nor when a part may finish: `put` stores the files durably, and `PartStore.finish` writes
what it returns in the same step that marks the part finished.

Objects have the path jobs/JOB/INDEX/EXECUTION/NAME. So a part that is drawn again gets another
path, and everything that a job left behind is deleted with its folder. A job is noted in Redis
before its first object is written, and the note is removed after its last object was deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

import redis

from model.given import Size
from model.request import ModelInfo
from pathar.contract import FILE_NAMES
from runtime.objects import Objects, ObjectsAway
from store import keys
from store.scripts import Script

AHEAD = 8
"""Images whose objects are read in parallel."""
MOST_TIDIED = 100
"""Jobs whose objects are deleted in one batch."""
TIDY_LEASE_S = 300
"""How long a worker may take to delete a batch before another worker tries it."""
CHECK_EVERY_S = 3600
"""How often an unfinished job is checked: its record may have been deleted by hand."""
_OBJECT = ":object"
BYTES_IN_RECORD = 3
"""Of a token id: 16 bits in base64."""
_RECORD_BYTES = 12288
"""For the records of all PNG files without token ids, their headers, and the JSON around ids."""

log = logging.getLogger("pathar.store")


@dataclass(frozen=True)
class Reference:
    """A file that is an object in storage."""

    path: str
    size: int


Stored = Mapping[str, bytes | Reference]
"""Files by name. They are durable once `PartStore.finish` has written this to Redis."""


def fields(stored: Stored) -> list[tuple[str, bytes, int]]:
    """The entry in Redis of each file: field, value, and the size of the file in bytes."""
    return [
        (name, content, len(content))
        if isinstance(content, bytes)
        else (name + _OBJECT, f"{content.size} {content.path}".encode(), content.size)
        for name, content in stored.items()
    ]


def room(model: ModelInfo, size: Size | None = None) -> int:
    """The most bytes that the files of one image take: uncompressed pixels of image, mask and
    instances, token ids as text and in the image's record, and all records."""
    width, height = size or (model.image_size, model.image_size)
    rows, columns = model.grid(size)
    pixels = (3 + 1 + 2) * width * height
    tokens = 2 * rows * columns * (len(str(model.codebook_size)) + 1 + BYTES_IN_RECORD)
    return pixels + pixels // 100 + tokens + _RECORD_BYTES


class ResultStore:
    """Results by owner, job id, image index and file name; with `objects`, new ones go there.
    Thread-safe, as its clients are.

    Reading raises ObjectsAway when a file is an object and the storage does not answer.
    """

    def __init__(self, client: redis.Redis, objects: Objects | None = None) -> None:
        self._redis = client
        self._objects = objects
        self._told = False
        self._note_script = Script(client, "note")
        self._due = Script(client, "due")
        self._tidied = Script(client, "tidied")

    @property
    def remote(self) -> bool:
        """Whether `put` uploads files, which takes time and can fail."""
        return self._objects is not None

    def put(self, job: str, index: int, execution: str, files: Mapping[str, bytes]) -> Stored:
        """Store an image's files durably, except those that `finish` writes to Redis. RedisError,
        ObjectsAway."""
        if self._objects is None:
            return files
        self._note(job)
        folder = _folder(job, f"{index}/{execution}")
        self._objects.put({f"{folder}/{name}": data for name, data in files.items()})
        return {name: Reference(f"{folder}/{name}", len(data)) for name, data in files.items()}

    def discard(self, job: str, index: int, execution: str) -> None:
        """Delete what `put` wrote, if `finish` was rejected or not called. After RedisError or
        ObjectsAway it is deleted with its job."""
        if self._objects is not None:
            self._note(job, again=True)
            self._objects.delete_below([_folder(job, f"{index}/{execution}")])

    def get(self, owner: str, job_id: str, index: int, name: str) -> bytes | None:
        """One file of an owner's job; None when it does not exist yet or has expired."""
        files = next(self._read(owner, job_id, [index], [name]))
        return files[name] if files else None

    def sizes(self, owner: str, job_id: str, indices: Iterable[int]) -> list[dict[str, int]] | None:
        """The sizes in bytes of each image's files by name, without reading them; None unless all
        files exist."""
        parts = [keys.part_id(keys.owned_id(owner, job_id), index) for index in indices]
        with self._redis.pipeline(transaction=False) as pipe:
            for part in parts:
                pipe.hmget(keys.RESULT + part, [name + _OBJECT for name in FILE_NAMES])
                for name in FILE_NAMES:
                    pipe.hstrlen(keys.RESULT + part, name)
            told = pipe.execute()
        step = 1 + len(FILE_NAMES)
        found = []
        for at in range(0, len(told), step):
            references, lengths = map(_reference, told[at]), told[at + 1 : at + step]
            sizes = [r.size if r else n for r, n in zip(references, lengths, strict=True)]
            if not all(sizes):
                return None
            found.append(dict(zip(FILE_NAMES, sizes, strict=True)))
        return found

    def image(self, owner: str, job_id: str, index: int) -> dict[str, bytes] | None:
        """The files of one image by name; None unless all exist."""
        return next(self._read(owner, job_id, [index], FILE_NAMES))

    def images(
        self, owner: str, job_id: str, indices: Iterable[int], names: Sequence[str] = FILE_NAMES
    ) -> Iterator[dict[str, bytes] | None]:
        """Yields `image` of each index in order, or some of its files. Reads the objects of AHEAD
        images in parallel.
        """
        return self._read(owner, job_id, indices, names)

    def tidy(self) -> int:
        """Delete the objects of jobs that have expired or whose results were dropped. Returns the
        number of jobs. Any worker may do this at any time. RedisError, ObjectsAway."""
        if self._objects is None:
            return 0
        count = 0
        while due := self._due(TIDY_LEASE_S, MOST_TIDIED, CHECK_EVERY_S):
            self._objects.delete_below([_folder(job.decode()) for job in due[::2]])
            self._tidied(*due)
            count += len(due) // 2
        return count

    def _note(self, job: str, *, again: bool = False) -> None:
        """Schedule a check of a job's objects: now with `again`, else after CHECK_EVERY_S."""
        self._note_script(job, 0 if again else CHECK_EVERY_S)

    def _read(
        self, owner: str, job_id: str, indices: Iterable[int], names: Sequence[str]
    ) -> Iterator[dict[str, bytes] | None]:
        left = iter(indices)
        while chunk := list(islice(left, AHEAD if self._objects else 1)):
            found = [self._found(owner, job_id, index, names) for index in chunk]
            paths = [each.path for files in found for each in files if isinstance(each, Reference)]
            objects = iter(self._fetch(paths))
            for files in found:
                contents = [next(objects) if isinstance(f, Reference) else f for f in files]
                whole = {n: c for n, c in zip(names, contents, strict=True) if c is not None}
                yield whole if len(whole) == len(names) else None

    def _found(
        self, owner: str, job_id: str, index: int, names: Sequence[str]
    ) -> list[bytes | Reference | None]:
        """The files of one image as Redis knows them."""
        part = keys.part_id(keys.owned_id(owner, job_id), index)
        asked = [*names, *(name + _OBJECT for name in names)]
        values = cast("list[bytes | None]", self._redis.hmget(keys.RESULT + part, asked))
        here, there = values[: len(names)], values[len(names) :]
        return [
            content if content is not None else _reference(text)
            for content, text in zip(here, there, strict=True)
        ]

    def _fetch(self, paths: Sequence[str]) -> list[bytes | None]:
        if not paths:
            return []
        if self._objects is None:
            if not self._told:
                log.error("files are in object storage, but PATHAR_RESULTS_URL is not set")
            self._told = True
            raise ObjectsAway("PATHAR_RESULTS_URL is not set")
        return self._objects.get(paths)


def _folder(job: str, below: str = "") -> str:
    """Where the objects of a job are. A lifecycle rule of a bucket can name the folder of all."""
    return f"jobs/{job}/{below}".rstrip("/")


def _reference(text: bytes | None) -> Reference | None:
    if text is None:
        return None
    size, path = text.decode().split(" ", 1)
    return Reference(path, int(size))
