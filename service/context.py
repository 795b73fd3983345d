"""What the handlers of one app share, and their lookup of jobs. Knows no routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from pathar.contract import Gone, NotFound
from runtime.objects import Objects
from runtime.telemetry import Traces
from service.connections import ConnectionLimit
from service.drain import Drain
from service.following import Feeds
from service.metrics import ApiMetrics
from service.settings import ServiceSettings
from service.turns import Turns
from service.waiting import Subscriber
from store.access import KeyStore, Owner
from store.datasets import DatasetStore
from store.job import Job
from store.jobs import JobStore
from store.registry import Registry
from store.results import ResultStore


@dataclass(frozen=True)
class Context:
    """Settings, stores, the storage of results where there is one (`objects`), the subscriber and
    feeds of jobs, metrics, traces, the drain, the limit of `connections`, and the turns of keys."""

    settings: ServiceSettings
    keys: KeyStore
    jobs: JobStore
    registry: Registry
    results: ResultStore
    datasets: DatasetStore
    objects: Objects | None
    subscriber: Subscriber
    feeds: Feeds
    metrics: ApiMetrics
    traces: Traces
    drain: Drain
    connections: ConnectionLimit
    turns: Turns


def get_context(request: Request) -> Context:
    """The app's context."""
    context: Context = request.app.state.context
    return context


InContext = Annotated[Context, Depends(get_context)]


def find_job(context: Context, owner: Owner, job_id: str) -> Job:
    """The owner's job. Gone when it has expired recently, else NotFound, even if another owner has
    a job with this id."""
    job = context.jobs.get(job_id, owner=owner)
    if job is not None:
        return job
    if context.jobs.expired(job_id, owner=owner):
        raise Gone(f"job {job_id} has expired")
    raise NotFound(f"there is no job {job_id}")
