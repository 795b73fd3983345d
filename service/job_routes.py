"""The routes of jobs: submit, look up, list, cancel. Waiting clients need no thread.

Knows no keys of Redis and nothing of how images are drawn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from model.request import RequestError
from service.auth import InOwner, InReader
from service.body import read_json
from service.context import Context, InContext, find_job
from service.errors import from_pydantic
from service.form import REQUEST
from service.request_schemas import (
    DeleteQuery,
    GenerateBody,
    JobId,
    PageQuery,
    Strict,
    TicketQuery,
)
from service.response_schemas import (
    JobPage,
    JobState,
    Problem,
    Ticket,
    job_page,
    job_state,
    reference,
)
from service.submission import submit
from store.access import ANYBODY, Owner
from store.job import Job
from store.lists import BadCursor

T = TypeVar("T")
log = logging.getLogger("pathar.service")
router = APIRouter(tags=["jobs"])


B = TypeVar("B", bound=Strict)
FILE = {"type": "string", "contentMediaType": "image/png"}
"""A file in a form."""


async def body_of(request: Request, kind: type[B]) -> B:
    """The validated body of a request. InvalidRequest."""
    values = await read_json(request, kind.FILES)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        told = error.errors(include_url=False, include_context=False)
        raise from_pydantic(told, kind) from None


async def generate_body(request: Request) -> GenerateBody:
    """The body of a request for pairs."""
    return await body_of(request, GenerateBody)


Body = Annotated[GenerateBody, Depends(generate_body)]
TraceParent = Annotated[
    str | None, Header(description="W3C Trace Context: the trace that the job belongs to")
]


def takes(body: type[Strict]) -> dict[str, Any]:
    """What OpenAPI says of a route that reads this body."""
    content: dict[str, Any] = {"application/json": {"schema": reference(body)}}
    if body.FILES:
        parts = {REQUEST: reference(body), **dict.fromkeys(body.FILES, FILE)}
        schema = {"type": "object", "properties": parts, "required": [REQUEST]}
        encoding = {REQUEST: {"contentType": "application/json"}}
        encoding |= {key: {"contentType": "image/png"} for key in body.FILES}
        content["multipart/form-data"] = {"schema": schema, "encoding": encoding}
    return {"requestBody": {"required": True, "content": content}}


TAKES_BODY = takes(GenerateBody)
OF_JOB = {"job_id": "$response.body#/job_id"}
JOB_LINKS = {
    name: {"operationId": name, "parameters": OF_JOB}
    for name in ("get_job", "get_events", "delete_job")
}
"""OpenAPI links from a new job to the routes that follow it."""
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
    return told(request, job, 201 if new else 200)


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
        return told(request, find_job(context, owner, job_id))

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
    return told(request, find_job(context, owner, job_id))


async def _in_turn(context: Context, owner: Owner, answer: Callable[[], Response]) -> Response:
    """Compute an expensive answer when it is this key's turn (see `Turns`)."""
    if owner.id == ANYBODY.id:
        return await run_in_threadpool(answer)
    async with context.turns.take(owner.id):
        return await run_in_threadpool(answer)


def told(
    request: Request, job: Job, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """The response with a job's state. It skips FastAPI's validation, which would double the cost:
    the state has 240 kB for 1,000 images."""
    state = job_state(job, request.scope["root_path"]).model_dump_json()
    return Response(state, status, headers, "application/json")
