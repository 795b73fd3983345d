"""The routes that wait for pairs: generate, encode, decode. Waiting clients need no thread.

Encode and decode are requests for a pair of which all is given. Knows no keys of Redis.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar

import redis
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from model.request import RequestError
from pathar.contract import JobCanceled, JobFailed, NotFound, Unauthorized
from runtime.objects import ObjectsAway
from service.auth import InOwner
from service.context import Context, InContext
from service.files import BINARY, ZIP_TYPE, pairs_zip, wants_zip
from service.job_routes import (
    FULL_ANSWER,
    JOB_LINKS,
    OF_JOB,
    TAKES_BODY,
    Body,
    TraceParent,
    body_of,
    takes,
    told,
)
from service.request_schemas import (
    DEFAULT_WAIT_S,
    MAX_WAIT_S,
    MOST_EMBEDDED,
    DecodeBody,
    EncodeBody,
    GenerateBody,
    GenerateQuery,
)
from service.response_schemas import Generation, JobState, generation
from service.submission import submit
from service.waiting import wait_for_end
from store.access import Owner
from store.job import Job

T = TypeVar("T")
log = logging.getLogger("pathar.service")
router = APIRouter(tags=["jobs"])


async def encode_body(request: Request) -> EncodeBody:
    """The body of a request for tokens."""
    return await body_of(request, EncodeBody)


async def decode_body(request: Request) -> DecodeBody:
    """The body of a request for pixels."""
    return await body_of(request, DecodeBody)


Prefer = Annotated[
    str | None,
    Header(description="RFC 7240: `wait=SECONDS`, `respond-async`, or both"),
]
ZIP = {ZIP_TYPE: {"schema": BINARY}}
_OF_PAIR = {**OF_JOB, "k": "$response.body#/images/0/index"}
PAIR_LINKS = {
    **JOB_LINKS,
    "get_zip": {"operationId": "get_zip", "parameters": OF_JOB},
    **{
        name: {"operationId": name, "parameters": _OF_PAIR}
        for name in ("get_pair", "get_image", "get_mask", "get_instances", "get_tokens")
    },
}
"""OpenAPI links from a finished job to its files."""
DRAWS: dict[int | str, dict[str, Any]] = {
    200: {"content": ZIP, "links": PAIR_LINKS},
    202: {"model": JobState, "links": JOB_LINKS},
    429: FULL_ANSWER,
}
"""The answers of a route that waits for a job."""


@router.post("/generate", response_model=Generation, responses=DRAWS, openapi_extra=TAKES_BODY)
async def generate(
    request: Request,
    context: InContext,
    owner: InOwner,
    query: Annotated[GenerateQuery, Query()],
    body: Body,
    traceparent: TraceParent = None,
    prefer: Prefer = None,
) -> Response:
    """Draw pairs. Waits up to `wait` seconds; 202 with the job when it is not finished by then.

    `Prefer: wait=SECONDS` means the same as `wait`, which takes precedence. `Prefer: respond-async`
    alone does not wait. With `Accept: application/zip` the answer is one archive. Without it,
    requests for more than 64 images do not wait. A client that disconnects before the answer
    cancels the job.
    """
    return await _waited_for(request, context, owner, query, body, traceparent)


@router.post("/encode", response_model=Generation, responses=DRAWS, openapi_extra=takes(EncodeBody))
async def encode(
    request: Request,
    context: InContext,
    owner: InOwner,
    query: Annotated[GenerateQuery, Query()],
    body: Annotated[EncodeBody, Depends(encode_body)],
    traceparent: TraceParent = None,
    prefer: Prefer = None,
) -> Response:
    """Encode an image and its mask to token ids; the pair in the answer is their reconstruction.

    Without a mask, the structure is that of the nuclei which the checkpoint's segmenter finds in
    the image. Without an image, the appearance is drawn: structure tokens and mask are those of the
    mask, the rest is not. It waits as `POST /generate` does, and is a job as any other.
    """
    with _named():
        return await _waited_for(request, context, owner, query, body.request(), traceparent)


@router.post("/decode", response_model=Generation, responses=DRAWS, openapi_extra=takes(DecodeBody))
async def decode(
    request: Request,
    context: InContext,
    owner: InOwner,
    query: Annotated[GenerateQuery, Query()],
    body: Annotated[DecodeBody, Depends(decode_body)],
    traceparent: TraceParent = None,
    prefer: Prefer = None,
) -> Response:
    """Decode token ids of both streams to pixels. It takes no decode steps. It waits as
    `POST /generate` does, and is a job as any other.
    """
    with _named():
        return await _waited_for(request, context, owner, query, body.request(), traceparent)


OF_GIVEN = {
    "structure.mask_png": "mask_png",
    "structure.segmented": "mask_png",
    "appearance.image_png": "image_png",
    "structure.tokens": "structure_tokens",
    "appearance.tokens": "appearance_tokens",
}
"""What encode and decode call the fields of the request that they make."""


@contextmanager
def _named() -> Iterator[None]:
    """Errors name the fields of encode and decode."""
    try:
        yield
    except RequestError as error:
        field = OF_GIVEN.get(error.field, error.field)
        raise RequestError(field, error.value, error.expected) from None


async def _waited_for(
    request: Request,
    context: Context,
    owner: Owner,
    query: GenerateQuery,
    body: GenerateBody,
    traceparent: str | None,
) -> Response:
    """Submit a job, and its pairs once they are there, or its state when they are not in time."""
    patience = read_patience(query.wait, request.headers.getlist("prefer"))
    as_zip = wants_zip(request)
    job, _ = await run_in_threadpool(submit, context, owner, body, None, traceparent)
    if patience.seconds and (as_zip or job.request.total <= MOST_EMBEDDED):
        look = partial(_look, context, owner, job)
        waiting = wait_for_end(job, look, context.subscriber, patience.seconds)
        job = await _while_connected(request, waiting, partial(_abandon, context, owner, job))
    if job.status == "failed":
        raise JobFailed(f"job {job.id} failed: {job.error}")
    if job.status == "canceled":
        raise JobCanceled(f"job {job.id} was canceled")
    if job.status == "finished" and (as_zip or job.request.total <= MOST_EMBEDDED):
        with suppress(ObjectsAway):  # it is finished: after a 503 a retry would draw it again
            answer = await run_in_threadpool(pairs_zip if as_zip else _finished, context, job)
            return patience.applied_to(answer)
    headers = {"Location": f"jobs/{job.id}"}  # relative: correct under any mount path
    return patience.applied_to(told(request, job, 202, headers))


async def _while_connected(
    request: Request, work: Coroutine[Any, Any, T], abandon: Callable[[], object]
) -> T:
    """The result of `work`. When the client disconnects first, stops `work`, calls `abandon` and
    raises ClientDisconnect."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            await run_in_threadpool(abandon)
            raise ClientDisconnect
        return doing.result()
    finally:
        for each in (doing, leaving):
            each.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    """Return when the client disconnects. The body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _look(context: Context, owner: Owner, job: Job) -> Job | None:
    """The current state of a job. Unauthorized when its owner's key has been revoked."""
    if not context.keys.admits(owner):
        raise Unauthorized(f"this API key has been revoked; job {job.id} continues")
    return context.jobs.get(job.id, owner=owner)


def _abandon(context: Context, owner: Owner, job: Job) -> None:
    """Cancel a job whose client has disconnected: no other client knows its id."""
    about = {"job": job.id, "key": owner.name}
    try:
        canceled = context.jobs.cancel(job.id, owner=owner)
    except redis.RedisError as error:
        log.warning("client disconnected; the job was not canceled: %s", error, extra=about)
        return
    outcome = "job canceled" if canceled else "the job had already ended"
    log.info("client disconnected; %s", outcome, extra=about)


@dataclass(frozen=True)
class Patience:
    """How long a client wants to wait, and which of its preferences (RFC 7240) were applied."""

    seconds: float
    preferences: tuple[str, ...] = ()

    def applied_to(self, answer: Response) -> Response:
        """Add the applied preferences to an answer; returns it."""
        if self.preferences:
            answer.headers["Preference-Applied"] = ", ".join(self.preferences)
        return answer


def read_patience(wait: float | None, prefer: Sequence[str]) -> Patience:
    """The `Patience` of a request, from the query's `wait` and the `Prefer` headers. Other
    preferences are ignored, as RFC 7240 says. `respond-async, wait=9` means 202 after nine seconds.
    """
    asked: dict[str, str] = {}
    for each in ",".join(prefer).split(","):
        name, _, value = each.partition(";")[0].partition("=")
        asked.setdefault(name.strip().lower(), value.strip().strip('"'))
    seconds = asked.get("wait", "")
    if wait is None and re.fullmatch("[0-9]{1,9}", seconds):
        granted = min(int(seconds), MAX_WAIT_S)
        async_too = ("respond-async",) * ("respond-async" in asked)
        return Patience(granted, (*async_too, f"wait={granted}"))
    if "respond-async" in asked:
        return Patience(0.0, ("respond-async",))
    return Patience(DEFAULT_WAIT_S if wait is None else wait)


def _finished(context: Context, job: Job) -> Response:
    files: list[dict[str, bytes]] = []
    for found in context.results.images(job.owner, job.id, (part.index for part in job.parts)):
        if found is None:
            raise NotFound(f"the files of job {job.id} have been dropped")
        files.append(found)
    answer = generation(job, files).model_dump_json()
    return Response(answer, media_type="application/json")
