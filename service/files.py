"""The routes of pairs: one pair, its files one by one, or all pairs of a job as an archive.

A file of a finished image never changes: it has an ETag, and a part of it can be asked for.
Archives are built as they are sent, and the same job gives the same bytes. Knows no queue.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response, StreamingResponse

from model.contract import (
    ARCHIVE_NAME,
    IMAGE_NAME,
    JOB_ID,
    MASK_NAME,
    TOKENS_NAME,
    InternalError,
    NotFinished,
    NotFound,
    RangeNotSatisfiable,
)
from model.request import MAX_IMAGES
from service.auth import InOwner
from service.context import Context, InContext, find_job
from service.schemas import (
    PATHS,
    DrawnImage,
    Problem,
    TokenGrids,
    drawn_image,
    job_state,
    reference,
)
from store.access import Owner
from store.job import Job

JobId = Annotated[str, Path(pattern=f"^{JOB_ID}$", description=PATHS["job_id"])]
ImageIndex = Annotated[int, Path(ge=0, lt=MAX_IMAGES, description=PATHS["k"])]
OF_IMAGE = "/jobs/{job_id}/images/{k}"
MANIFEST = "manifest.json"
ZIP_TYPE = "application/zip"
BINARY = {"type": "string", "format": "binary"}
LONGEST_AGE = 86400
DAY_ONE = (1980, 1, 1, 0, 0, 0)
"""The time of every file in an archive: its bytes do not depend on when it was asked for."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

router = APIRouter(tags=["files"])


def _answers(media_type: str, schema: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"content": {media_type: {"schema": schema}}},
        206: {"description": "The part that Range asked for", "content": {media_type: {}}},
        304: {"description": "If-None-Match names what the client has"},
        416: {"model": Problem, "description": "Range asks for bytes beyond the end"},
    }


@router.get(OF_IMAGE, response_model=DrawnImage)
def get_pair(context: InContext, owner: InOwner, job_id: JobId, k: ImageIndex) -> DrawnImage:
    """Pair k of a job, as soon as it is finished: PNGs in base64 and token grids."""
    files = context.results.image(owner.id, job_id, k)
    part = context.jobs.part(job_id, k, owner=owner)
    if files is None or part is None:
        raise _missing(context, owner, job_id, k)
    return drawn_image(part, files)


@router.get(
    f"{OF_IMAGE}/{IMAGE_NAME}",
    response_class=Response,
    responses=_answers("image/png", BINARY),
)
def get_image(
    request: Request, context: InContext, owner: InOwner, job_id: JobId, k: ImageIndex
) -> Response:
    """Image k of a job: PNG, RGB."""
    return _answer(request, _file(context, owner, job_id, k, IMAGE_NAME), "image/png")


@router.get(
    f"{OF_IMAGE}/{MASK_NAME}",
    response_class=Response,
    responses=_answers("image/png", BINARY),
)
def get_mask(
    request: Request, context: InContext, owner: InOwner, job_id: JobId, k: ImageIndex
) -> Response:
    """The mask of image k: PNG, mode L, 0 and 255."""
    return _answer(request, _file(context, owner, job_id, k, MASK_NAME), "image/png")


@router.get(
    f"{OF_IMAGE}/{TOKENS_NAME}",
    response_class=Response,
    responses=_answers("application/json", reference(TokenGrids)),
)
def get_tokens(
    request: Request, context: InContext, owner: InOwner, job_id: JobId, k: ImageIndex
) -> Response:
    """The token grids of image k, row-major."""
    return _answer(request, _file(context, owner, job_id, k, TOKENS_NAME), "application/json")


@router.get(
    f"/jobs/{{job_id}}/{ARCHIVE_NAME}",
    response_class=StreamingResponse,
    responses={200: {"content": {ZIP_TYPE: {"schema": BINARY}}}},
)
def get_zip(context: InContext, owner: InOwner, job_id: JobId) -> Response:
    """All pairs of a finished job in one archive, with `manifest.json`."""
    return pairs_zip(context, find_job(context, owner, job_id))


def wants_zip(request: Request) -> bool:
    """Whether the client asked for an archive in place of JSON."""
    accepted = ",".join(request.headers.getlist("accept")).split(",")
    return any(each.partition(";")[0].strip().lower() == ZIP_TYPE for each in accepted)


def pairs_zip(context: Context, job: Job) -> Response:
    """The archive of a finished job; NotFinished before that, NotFound once it was dropped.
    ObjectsAway."""
    if job.status != "finished":
        raise NotFinished(f"job {job.id} is {job.status}; its pairs are not all there")
    if context.results.get(job.owner, job.id, 0, TOKENS_NAME) is None:
        raise NotFound(f"the files of job {job.id} have been dropped")
    headers = {"Content-Disposition": f'attachment; filename="{job.id}.zip"'}
    return StreamingResponse(_archive(context, job), media_type=ZIP_TYPE, headers=headers)


def _archive(context: Context, job: Job) -> Iterator[bytes]:
    """The archive's bytes, an image at a time; PNGs are stored as they are."""
    buffer = io.BytesIO()
    listed = []
    with zipfile.ZipFile(_Unseekable(buffer), "w", zipfile.ZIP_STORED) as archive:
        drawn = context.results.images(job.owner, job.id, (part.index for part in job.parts))
        for part, files in zip(job.parts, drawn, strict=True):
            if files is None:
                raise InternalError(f"the files of job {job.id} went while they were sent")
            names = {}
            for name, data in files.items():
                place = f"{part.index:04d}/{name}"
                archive.writestr(zipfile.ZipInfo(place, DAY_ONE), data)
                names[place] = hashlib.sha256(data).hexdigest()
            listed.append({"index": part.index, "seed": part.seed, "sha256": names})
            yield _taken(buffer)
        state = job_state(job).model_dump(
            include={"job_id", "model", "label", "settings", "priority"}
        )
        manifest = json.dumps({**state, "images": listed}, indent=1)
        archive.writestr(zipfile.ZipInfo(MANIFEST, DAY_ONE), manifest)
    yield _taken(buffer)


class _Unseekable(io.RawIOBase):
    """A file that is written once from start to end, as an answer is."""

    def __init__(self, buffer: io.BytesIO) -> None:
        self._buffer = buffer

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._buffer.write(data)


def _taken(buffer: io.BytesIO) -> bytes:
    data = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return data


def _file(context: Context, owner: Owner, job_id: str, k: int, name: str) -> bytes:
    content = context.results.get(owner.id, job_id, k, name)
    if content is None:
        raise _missing(context, owner, job_id, k)
    return content


def _missing(context: Context, owner: Owner, job_id: str, k: int) -> NotFound:
    """Why image k has no files. Gone, or NotFound, where there is no such job."""
    part = context.jobs.part(job_id, k, owner=owner)
    if part is not None:
        return NotFound(f"image {k} of job {job_id} is {part.status}; its files are not there")
    count = len(find_job(context, owner, job_id).parts)
    return NotFound(f"job {job_id} has images 0 to {count - 1}")


def _answer(request: Request, content: bytes, media_type: str) -> Response:
    """A file, the part of it that Range asks for, or 304 when the client has it (RFC 9110)."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": f"private, max-age={LONGEST_AGE}, immutable",
        "Vary": "Authorization",
    }
    known = [each.strip().removeprefix("W/") for each in _listed(request, "if-none-match")]
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range")
    if wanted is None or request.headers.get("if-range", tag) != tag:
        return Response(content, media_type=media_type, headers=headers)
    span = _span(wanted, len(content))
    if span is None:  # several ranges or another unit: the whole, as RFC 9110 allows
        return Response(content, media_type=media_type, headers=headers)
    first, last = span
    if first > last:
        told = {"Content-Range": f"bytes */{len(content)}", "Vary": "Authorization"}
        detail = f"Range: got {wanted[:100]!r} of {len(content)} bytes"
        raise RangeNotSatisfiable(detail, headers=told)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return Response(content[first : last + 1], 206, headers, media_type)


def _listed(request: Request, name: str) -> list[str]:
    return ",".join(request.headers.getlist(name)).split(",")


def _span(wanted: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a single range; the first after the last when there are none."""
    match = _RANGE.fullmatch(wanted.strip())
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size - 1 if int(match[2]) else -1
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    if match[2] and int(match[2]) < int(match[1]):
        return None
    return int(match[1]), last
