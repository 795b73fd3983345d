"""A drawn job on disk: the archive that the service sends of it, or one of the same form.

It holds each pair's files and a `manifest.json` with their SHA-256. Knows no plan but the job's.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any

from pathar.contract import ARCHIVE_MANIFEST, Setting, image_seed, settled
from pathar.errors import InternalError
from pathar.recipe import ModelRef, PlannedJob
from pathar.shards import PulledPair, pair_name

DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(LookupError, TypeError, ValueError, RuntimeError, OverflowError),
)
"""What reading a damaged archive raises."""


def write_job(
    file: IO[bytes],
    job: PlannedJob,
    model: ModelRef,
    settings: Mapping[str, Setting],
    images: Sequence[Mapping[str, bytes]],
) -> None:
    """Write what was drawn on this machine; `images` has each image's files, in order."""
    listed = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for index, files in enumerate(images):
            places = {f"{index:04d}/{name}": content for name, content in files.items()}
            for place, content in places.items():
                archive.writestr(place, content)
            digests = {place: _digest(content) for place, content in places.items()}
            seed = image_seed(job.seed, index)
            listed.append({"index": index, "seed": seed, "sha256": digests})
        head = {
            "model": asdict(model),
            "labels": [job.label],
            "settings": {"labels": {job.label: settings}},
        }
        archive.writestr(ARCHIVE_MANIFEST, json.dumps({**head, "images": listed}))


def read_job(file: IO[bytes], job: PlannedJob, model: ModelRef) -> Iterator[PulledPair]:
    """The pairs of a job, in order. InternalError on anything else than what was planned: another
    model, label, seed or number of pairs, or a file that is not what its SHA-256 says.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            told = json.loads(archive.read(ARCHIVE_MANIFEST))
            _check(told, job, model)
            settings = settled(told["settings"]["labels"][job.label])
            for image in told["images"]:
                files = {}
                for place, digest in image["sha256"].items():
                    content = archive.read(place)
                    if _digest(content) != digest:
                        raise InternalError(f"{place} is not what its SHA-256 says")
                    files[place.partition("/")[2]] = content
                name = pair_name(job.label, job.first + image["index"])
                yield PulledPair(name, job.label, image["seed"], settings, model, files)
    except DAMAGE as error:
        raise InternalError(f"the archive of a job is damaged: {error!r}") from None


def job_id_of(file: IO[bytes]) -> str | None:
    """The id of a job; None where it was drawn on this machine."""
    with zipfile.ZipFile(file) as archive:
        found: str | None = json.loads(archive.read(ARCHIVE_MANIFEST)).get("job_id")
        return found


def _check(told: Mapping[str, Any], job: PlannedJob, model: ModelRef) -> None:
    seeds = [image_seed(job.seed, index) for index in range(job.n)]
    drawn_by = ModelRef(**told["model"])
    found = [drawn_by, told["labels"], [image["seed"] for image in told["images"]]]
    if found != [model, [job.label], seeds]:
        raise InternalError(f"asked for {job.n} pairs of {job.label}, got others: {found}"[:300])


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
