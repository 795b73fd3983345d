"""The routes of jobs: submit, look up, list, cancel. Waiting clients need no thread.

Knows no keys of Redis and nothing of how images are drawn.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar

import redis
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from model.request import RequestError
from pathar.contract import JobCanceled, JobFailed, NotFound, Unauthorized
from runtime.objects import ObjectsAway
from service.auth import InOwner, InReader
from service.body import read_json
from service.context import Context, InContext, find_job
from service.errors import from_pydantic
from service.files import BINARY, ZIP_TYPE, pairs_zip, wants_zip
from service.request_schemas import (
    DEFAULT_WAIT_S,
    MAX_WAIT_S,
    MOST_EMBEDDED,
    DeleteQuery,
    GenerateBody,
    GenerateQuery,
    JobId,
    PageQuery,
    TicketQuery,
)
from service.response_schemas import (
    Generation,
    JobPage,
    JobState,
    Problem,
    Ticket,
    generation,
    job_page,
    job_state,
    reference,
)
from service.submission import submit
from service.waiting import wait_for_end
from store.access import ANYBODY, Owner
from store.job import Job
from store.lists import BadCursor

T = TypeVar("T")
log = logging.getLogger("pathar.service")
router = APIRouter(tags=["jobs"])


async def generate_body(request: Request) -> GenerateBody:
    """The validated body of a request for pairs."""
    values = await read_json(request)
    try:
        return GenerateBody.model_validate(values)
    except ValidationError as error:
        raise from_pydantic(error.errors(include_url=False, include_context=False)) from None


Body = Annotated[GenerateBody, Depends(generate_body)]
Prefer = Annotated[
    str | None,
    Header(description="RFC 7240: `wait=SECONDS`, `respond-async`, or both"),
]
TraceParent = Annotated[
    str | None, Header(description="W3C Trace Context: the trace that the job belongs to")
]
TAKES_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": reference(GenerateBody)}},
    }
}
ZIP = {ZIP_TYPE: {"schema": BINARY}}
_OF_JOB = {"job_id": "$response.body#/job_id"}
JOB_LINKS = {
    name: {"operationId": name, "parameters": _OF_JOB}
    for name in ("get_job", "get_events", "delete_job")
}
"""OpenAPI links from a new job to the routes that follow it."""
_OF_PAIR = {**_OF_JOB, "k": "$response.body#/images/0/index"}
FULL_ANSWER = {
    "model": Problem,
    "description": "Over a limit, or the queue is full",
    "headers": {
        "Retry-After": {
            "description": "Seconds until there is room, which is reserved for this request",
            "schema": {"type": "integer", "minimum": 1},
            "required": True,
        }
    },
}
PAIR_LINKS = {
    **JOB_LINKS,
    "get_zip": {"operationId": "get_zip", "parameters": _OF_JOB},
    **{
        name: {"operationId": name, "parameters": _OF_PAIR}
        for name in ("get_pair", "get_image", "get_mask", "get_instances", "get_tokens")
    },
}
"""OpenAPI links from a finished job to its files."""


@router.post(
    "/generate",
    response_model=Generation,
    responses={
        200: {"content": ZIP, "links": PAIR_LINKS},
        202: {"model": JobState, "links": JOB_LINKS},
        429: FULL_ANSWER,
    },
    openapi_extra=TAKES_BODY,
)
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
    patience = read_patience(query.wait, request.headers.getlist("prefer"))
    as_zip = wants_zip(request)
    job, _ = await run_in_threadpool(submit, context, owner, body, None, traceparent)
    if patience.seconds and (as_zip or job.request.n <= MOST_EMBEDDED):
        look = partial(_look, context, owner, job)
        waiting = wait_for_end(job, look, context.subscriber, patience.seconds)
        job = await _while_connected(request, waiting, partial(_abandon, context, owner, job))
    if job.status == "failed":
        raise JobFailed(f"job {job.id} failed: {job.error}")
    if job.status == "canceled":
        raise JobCanceled(f"job {job.id} was canceled")
    if job.status == "finished" and (as_zip or job.request.n <= MOST_EMBEDDED):
        with suppress(ObjectsAway):  # it is finished: after a 503 a retry would draw it again
            answer = await run_in_threadpool(pairs_zip if as_zip else _finished, context, job)
            return patience.applied_to(answer)
    headers = {"Location": f"jobs/{job.id}"}  # relative: correct under any mount path
    return patience.applied_to(_told(request, job, 202, headers))


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


@router.put(
    "/jobs/{job_id}",
    response_model=JobState,
    responses={
        200: {"links": JOB_LINKS},
        201: {"model": JobState, "links": JOB_LINKS},
        429: FULL_ANSWER,
    },
    openapi_extra=TAKES_BODY,
)
def put_job(
    request: Request,
    context: InContext,
    owner: InOwner,
    job_id: JobId,
    body: Body,
    traceparent: TraceParent = None,
) -> Response:
    """Submit a job under an id that you choose: 201. The same id and body return the same job: 200.

    An id is kept as long as its job and for a week after that, also over restarts of the API and of
    workers. Another body with this id gets 409. So a request whose answer was lost can be retried.
    """
    job, new = submit(context, owner, body, job_id, traceparent)
    return _told(request, job, 201 if new else 200)


@router.get("/jobs", response_model=JobPage)
async def list_jobs(
    context: InContext, owner: InOwner, query: Annotated[PageQuery, Query()]
) -> Response:
    """Your jobs, newest first, in pages. A page of a filtered list may be short."""

    def answer() -> Response:
        try:
            page = context.jobs.page(owner=owner, **query.model_dump())
        except BadCursor:
            raise RequestError("cursor", query.cursor, "`next` of a page of this list") from None
        return Response(job_page(page).model_dump_json(), media_type="application/json")

    return await _in_turn(context, owner, answer)


@router.get("/jobs/{job_id}", response_model=JobState)
async def get_job(request: Request, context: InContext, owner: InReader, job_id: JobId) -> Response:
    """A job's state: its place in the queue, its progress, and the links to its files."""

    def answer() -> Response:
        return _told(request, find_job(context, owner, job_id))

    return await _in_turn(context, owner, answer)


@router.post("/jobs/{job_id}/tickets", response_model=Ticket)
def make_ticket(
    context: InContext, owner: InOwner, job_id: JobId, query: Annotated[TicketQuery, Query()]
) -> Ticket:
    """A ticket for one job, for clients that cannot send a key, such as EventSource or `<img>`.

    With `?ticket=` it allows GET of this job's state, events and files. It is valid for `seconds`,
    and no longer than its key. A stream that has begun continues after that.
    """
    find_job(context, owner, job_id)
    expires_at = int(time.time()) + query.seconds
    ticket = context.keys.ticket(owner, job_id, expires_at)
    return Ticket(ticket=ticket, expires_at=expires_at)


@router.delete("/jobs/{job_id}", response_model=JobState)
def delete_job(
    request: Request,
    context: InContext,
    owner: InOwner,
    job_id: JobId,
    query: Annotated[DeleteQuery, Query()],
) -> Response:
    """Cancel a job. Unfinished images are dropped; those being drawn stop at the next decode step.

    A job that has ended stays as it is, so a retry is safe. With `files=true` its results are
    dropped too: they no longer count against the limit of its key, its files are 404 from then on,
    and the job stays listed until it expires.
    """
    find_job(context, owner, job_id)
    about = {"job": job_id, "key": owner.name}
    if context.jobs.cancel(job_id, owner=owner):
        log.info("canceled", extra=about)
    if query.files and context.jobs.drop(job_id, owner=owner):
        log.info("dropped the files", extra=about)
    return _told(request, find_job(context, owner, job_id))


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


async def _in_turn(context: Context, owner: Owner, answer: Callable[[], Response]) -> Response:
    """Compute an expensive answer when it is this key's turn (see `Turns`)."""
    if owner.id == ANYBODY.id:
        return await run_in_threadpool(answer)
    async with context.turns.take(owner.id):
        return await run_in_threadpool(answer)


def _told(
    request: Request, job: Job, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """The response with a job's state. It skips FastAPI's validation, which would double the cost:
    the state has 240 kB for 1,000 images."""
    state = job_state(job, request.scope["root_path"]).model_dump_json()
    return Response(state, status, headers, "application/json")


def _finished(context: Context, job: Job) -> Response:
    files: list[dict[str, bytes]] = []
    for found in context.results.images(job.owner, job.id, (part.index for part in job.parts)):
        if found is None:
            raise NotFound(f"the files of job {job.id} have been dropped")
        files.append(found)
    answer = generation(job, files).model_dump_json()
    return Response(answer, media_type="application/json")
