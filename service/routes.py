"""The routes. Each handler validates, asks the store, answers; waiting costs no thread.

Knows no keys of Redis and nothing of how images are drawn.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from model.request import MAX_IMAGES, MAX_SEED, resolve
from service.body import read_json
from service.errors import (
    InternalError,
    JobCanceled,
    JobFailed,
    NoModel,
    NotFound,
    NoWorker,
    from_pydantic,
)
from service.metrics import HttpMetrics
from service.models import choose, offered
from service.schemas import (
    PATHS,
    GenerateBody,
    GenerateQuery,
    Generation,
    Health,
    JobState,
    LabelList,
    generation,
    job_state,
    label_list,
)
from service.settings import Settings
from service.waiting import EndedJobs, wait_for_end
from store.jobs import Job, JobStore, KnownModel
from store.results import IMAGE_NAME, MASK_NAME, TOKENS_NAME, ResultStore

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
)

router = APIRouter()


@dataclass(frozen=True)
class Context:
    """What the handlers of one app share."""

    settings: Settings
    jobs: JobStore
    results: ResultStore
    ended: EndedJobs
    metrics: HttpMetrics


def get_context(request: Request) -> Context:
    """The app's context."""
    context: Context = request.app.state.context
    return context


async def generate_body(request: Request) -> GenerateBody:
    """The checked body of `POST /generate`."""
    values = await read_json(request)
    try:
        return GenerateBody.model_validate(values)
    except ValidationError as error:
        raise from_pydantic(error.errors()) from None


InContext = Annotated[Context, Depends(get_context)]
JobId = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,64}$", description=PATHS["job_id"])]
ImageIndex = Annotated[int, Path(ge=0, lt=MAX_IMAGES, description=PATHS["k"])]


@router.post(
    "/generate",
    response_model=Generation,
    responses={202: {"model": JobState}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": GenerateBody.model_json_schema()}},
        }
    },
)
async def generate(
    request: Request,
    context: InContext,
    query: Annotated[GenerateQuery, Query()],
    body: Annotated[GenerateBody, Depends(generate_body)],
) -> Response:
    """Draw pairs. Waits up to `wait` seconds; 202 with the job when it is not ready by then."""
    respond_async = prefers_async(request)
    job = await run_in_threadpool(_submit, context, body)
    if not respond_async:
        job = await wait_for_end(job, context.jobs.get, context.ended, query.wait)
    if job.status == "failed":
        raise JobFailed(f"job {job.id} failed: {job.error}")
    if job.status == "canceled":
        raise JobCanceled(f"job {job.id} was canceled")
    if job.status == "finished":
        return await run_in_threadpool(_finished, context, job)
    headers = {"Location": f"/jobs/{job.id}"}
    if respond_async:
        headers["Preference-Applied"] = "respond-async"
    return JSONResponse(job_state(job).model_dump(), 202, headers)


@router.get("/jobs/{job_id}", response_model=JobState)
def get_job(context: InContext, job_id: JobId) -> JobState:
    """A job's state, and where its files are."""
    return job_state(_job(context, job_id))


@router.get(
    "/jobs/{job_id}/images/{k}/image.png",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
def get_image(context: InContext, job_id: JobId, k: ImageIndex) -> Response:
    """Image k of a job: PNG, RGB."""
    return Response(_file(context, job_id, k, IMAGE_NAME), media_type="image/png")


@router.get(
    "/jobs/{job_id}/images/{k}/mask.png",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
def get_mask(context: InContext, job_id: JobId, k: ImageIndex) -> Response:
    """The mask of image k: PNG, mode L, 0 and 255."""
    return Response(_file(context, job_id, k, MASK_NAME), media_type="image/png")


@router.get(
    "/jobs/{job_id}/images/{k}/tokens.json",
    response_class=Response,
    responses={200: {"content": {"application/json": {}}}},
)
def get_tokens(context: InContext, job_id: JobId, k: ImageIndex) -> Response:
    """The token grids of image k, row-major."""
    return Response(_file(context, job_id, k, TOKENS_NAME), media_type="application/json")


@router.get("/labels", response_model=LabelList)
def get_labels(context: InContext) -> LabelList:
    """The labels that can be asked for, and the models that draw them."""
    return label_list(offered(_models(context)))


@router.get("/healthz", response_model=Health)
async def healthz() -> Health:
    """The process lives."""
    return Health(status="ok")


@router.get("/readyz", response_model=Health)
def readyz(context: InContext) -> Health:
    """Redis answers and a warm worker lives."""
    if not any(known.ready for known in context.jobs.models()):
        raise NoWorker("no warm worker has sent a heartbeat lately")
    return Health(status="ok")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(context: InContext) -> Response:
    """Prometheus metrics of this process."""
    return Response(context.metrics.render(), media_type=PROMETHEUS_TEXT)


@router.get("/docs", response_class=HTMLResponse, include_in_schema=False)
def docs() -> HTMLResponse:
    """This page: the API described from /openapi.json, without any other host."""
    page = FilePath(__file__).with_name("static") / "docs.html"
    return HTMLResponse(page.read_text(), headers={"Content-Security-Policy": DOCS_POLICY})


def prefers_async(request: Request) -> bool:
    """Whether the client sent `Prefer: respond-async` (RFC 7240)."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(p.partition(";")[0].strip().lower() == "respond-async" for p in preferences)


def _submit(context: Context, body: GenerateBody) -> Job:
    model = choose(_models(context), body.label, body.model)
    seed = secrets.randbelow(MAX_SEED + 1)
    request = resolve(body.model_dump(), model, seed=seed, max_n=context.settings.max_n)
    return context.jobs.submit(request, model)


def _models(context: Context) -> Sequence[KnownModel]:
    models = context.jobs.models()
    if not models:
        raise NoModel("no worker has reported a model lately")
    return models


def _job(context: Context, job_id: str) -> Job:
    job = context.jobs.get(job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}, or it has expired")
    return job


def _file(context: Context, job_id: str, k: int, name: str) -> bytes:
    content = context.results.get(job_id, k, name)
    if content is not None:
        return content
    parts = _job(context, job_id).parts
    if k >= len(parts):
        raise NotFound(f"job {job_id} has images 0 to {len(parts) - 1}")
    raise NotFound(f"image {k} of job {job_id} is {parts[k].status}; its files are not there")


def _finished(context: Context, job: Job) -> Response:
    files: list[dict[str, bytes]] = []
    for part in job.parts:
        files.append({})
        for name in (IMAGE_NAME, MASK_NAME, TOKENS_NAME):
            content = context.results.get(job.id, part.index, name)
            if content is None:
                raise InternalError(f"job {job.id} is finished, but its files have expired")
            files[-1][name] = content
    answer = generation(job, files).model_dump_json()
    return Response(answer, media_type="application/json")
