"""The routes of results: one pair, its files one by one, or all pairs of a job as an archive.

Finished results never change, so they have ETags and support ranges. Archives are built as they are
sent. Knows no queue.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import Response, StreamingResponse

from pathar.contract import (
    ARCHIVE_NAME,
    IMAGE_NAME,
    INSTANCES_NAME,
    MASK_NAME,
    TOKENS_NAME,
    InternalError,
    NotFinished,
    NotFound,
    RangeNotSatisfiable,
)
from service.archive import Archive
from service.auth import InReader
from service.context import Context, InContext, find_job
from service.request_schemas import ImageIndex, JobId
from service.response_schemas import DrawnImage, Problem, TokenGrids, drawn_image, reference
from store.access import Owner
from store.job import Job

OF_IMAGE = "/jobs/{job_id}/images/{k}"
ZIP_TYPE = "application/zip"
BINARY = {"type": "string", "format": "binary"}
LONGEST_AGE_S = 86400
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

router = APIRouter(tags=["files"])


@dataclass(frozen=True)
class Conditions:
    """The conditional headers of a request (RFC 9110): known ETags (`known`), Range (`wanted`) and
    If-Range (`only_of`)."""

    known: tuple[str, ...]
    wanted: str | None
    only_of: str | None

    def has(self, tag: str) -> bool:
        """Whether the client has the file with this ETag."""
        return tag in self.known or "*" in self.known

    def span(self, tag: str, size: int) -> tuple[int, int] | None:
        """First and last byte of the wanted range; None for the whole file. As RFC 9110 allows,
        several ranges or another unit also give the whole file. RangeNotSatisfiable."""
        if self.wanted is None or self.only_of not in (None, tag):
            return None
        span = _span(self.wanted, size)
        if span is not None and span[0] > span[1]:
            told = {"Content-Range": f"bytes */{size}", "Vary": "Authorization"}
            detail = f"Range: got {self.wanted[:100]!r} of {size} bytes"
            raise RangeNotSatisfiable(detail, headers=told)
        return span


UNCONDITIONAL = Conditions((), None, None)


def read_conditions(
    request: Request,
    wanted: Annotated[
        str | None, Header(alias="Range", description="`bytes=FIRST-LAST`: only this range")
    ] = None,
    only_of: Annotated[
        str | None,
        Header(alias="If-Range", description="an ETag: the range only if the file still has it"),
    ] = None,
    if_none_match: Annotated[
        str | None, Header(description="known ETags: 304 when the file has one of them")
    ] = None,
) -> Conditions:
    """The conditional headers of a request."""
    given = ",".join(request.headers.getlist("if-none-match")).split(",")
    return Conditions(tuple(e.strip().removeprefix("W/") for e in given), wanted, only_of)


InConditions = Annotated[Conditions, Depends(read_conditions)]


def _answers(media_type: str, schema: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"content": {media_type: {"schema": schema}}},
        206: {
            "description": "The requested range",
            "content": {media_type: {"schema": BINARY}},
        },
        304: {"description": "The file has an ETag of If-None-Match"},
        416: {"model": Problem, "description": "The range is beyond the end of the file"},
    }


@router.get(OF_IMAGE, response_model=DrawnImage)
def get_pair(context: InContext, owner: InReader, job_id: JobId, k: ImageIndex) -> DrawnImage:
    """Pair k of a job, once it is finished: PNGs in base64 and token grids."""
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
    context: InContext, owner: InReader, asked: InConditions, job_id: JobId, k: ImageIndex
) -> Response:
    """Image k of a job: PNG, RGB."""
    return _answer(asked, _file(context, owner, job_id, k, IMAGE_NAME), "image/png")


@router.get(
    f"{OF_IMAGE}/{MASK_NAME}",
    response_class=Response,
    responses=_answers("image/png", BINARY),
)
def get_mask(
    context: InContext, owner: InReader, asked: InConditions, job_id: JobId, k: ImageIndex
) -> Response:
    """The mask of image k: PNG, mode L, 0 and 255."""
    return _answer(asked, _file(context, owner, job_id, k, MASK_NAME), "image/png")


@router.get(
    f"{OF_IMAGE}/{INSTANCES_NAME}",
    response_class=Response,
    responses=_answers("image/png", BINARY),
)
def get_instances(
    context: InContext, owner: InReader, asked: InConditions, job_id: JobId, k: ImageIndex
) -> Response:
    """The nuclei of image k: PNG, grey in 16 bits, ids from 1, 0 elsewhere."""
    return _answer(asked, _file(context, owner, job_id, k, INSTANCES_NAME), "image/png")


@router.get(
    f"{OF_IMAGE}/{TOKENS_NAME}",
    response_class=Response,
    responses=_answers("application/json", reference(TokenGrids)),
)
def get_tokens(
    context: InContext, owner: InReader, asked: InConditions, job_id: JobId, k: ImageIndex
) -> Response:
    """The token grids of image k, row-major."""
    return _answer(asked, _file(context, owner, job_id, k, TOKENS_NAME), "application/json")


@router.get(
    f"/jobs/{{job_id}}/{ARCHIVE_NAME}",
    response_class=StreamingResponse,
    responses=_answers(ZIP_TYPE, BINARY),
)
def get_zip(context: InContext, owner: InReader, asked: InConditions, job_id: JobId) -> Response:
    """All pairs of a finished job in one archive, with `manifest.json`."""
    return pairs_zip(context, find_job(context, owner, job_id), asked)


def wants_zip(request: Request) -> bool:
    """Whether the client accepts an archive instead of JSON."""
    accepted = ",".join(request.headers.getlist("accept")).split(",")
    return any(each.partition(";")[0].strip().lower() == ZIP_TYPE for each in accepted)


def pairs_zip(context: Context, job: Job, asked: Conditions = UNCONDITIONAL) -> Response:
    """The archive of a finished job. NotFinished before that, NotFound once its files were
    dropped, ObjectsAway."""
    if job.status != "finished":
        raise NotFinished(f"job {job.id} is {job.status}; not all of its pairs are finished")
    indices = [part.index for part in job.parts]
    sizes = context.results.sizes(job.owner, job.id, indices)
    if sizes is None:
        raise NotFound(f"the files of job {job.id} have been dropped")
    context.results.get(job.owner, job.id, 0, TOKENS_NAME)  # raises ObjectsAway before the headers
    archive = Archive.of(job, sizes)
    headers = file_headers(f'"{archive.tag}"')
    headers["Content-Disposition"] = f'attachment; filename="{job.id}.zip"'
    if asked.has(headers["ETag"]):
        return Response(status_code=304, headers=headers)
    span = asked.span(headers["ETag"], archive.size)
    first, last = span or (0, archive.size - 1)
    headers["Content-Length"] = str(last - first + 1)
    if span is not None:
        headers["Content-Range"] = f"bytes {first}-{last}/{archive.size}"
    images = _images(context, job, indices)
    status = 200 if span is None else 206
    return StreamingResponse(archive.read(images, first, last), status, headers, ZIP_TYPE)


def _images(context: Context, job: Job, indices: Sequence[int]) -> Iterator[dict[str, bytes]]:
    for files in context.results.images(job.owner, job.id, indices):
        if files is None:
            raise InternalError(f"files of job {job.id} disappeared while they were being sent")
        yield files


def _file(context: Context, owner: Owner, job_id: str, k: int, name: str) -> bytes:
    content = context.results.get(owner.id, job_id, k, name)
    if content is None:
        raise _missing(context, owner, job_id, k)
    return content


def _missing(context: Context, owner: Owner, job_id: str, k: int) -> NotFound:
    """The error for an image without files. Gone or NotFound when there is no such job."""
    part = context.jobs.part(job_id, k, owner=owner)
    if part is not None:
        return NotFound(f"image {k} of job {job_id} is {part.status}; it has no files")
    count = len(find_job(context, owner, job_id).parts)
    return NotFound(f"job {job_id} has images 0 to {count - 1}")


def _answer(asked: Conditions, content: bytes, media_type: str) -> Response:
    """The response with a file or the requested range of it; 304 when the client has it."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = file_headers(tag)
    if asked.has(tag):
        return Response(status_code=304, headers=headers)
    span = asked.span(tag, len(content))
    if span is None:
        return Response(content, media_type=media_type, headers=headers)
    first, last = span
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return Response(content[first : last + 1], 206, headers, media_type)


def file_headers(tag: str) -> dict[str, str]:
    """The headers of a file that does not change, with its ETag."""
    return {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": f"private, max-age={LONGEST_AGE_S}, immutable",
        "Vary": "Authorization",
    }


def _span(wanted: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a single range. First > last for an empty range; None for a header
    that is ignored."""
    match = _RANGE.fullmatch(wanted.strip())
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size - 1 if int(match[2]) else -1
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    if match[2] and int(match[2]) < int(match[1]):
        return None
    return int(match[1]), last
