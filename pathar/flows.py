"""What a client does, without doing any of it: requests to send, pauses to make, pairs to hand out.

A flow is a generator of effects; `client.py` carries them out, at once or with asyncio, so that the
two clients cannot differ. Every request here may be repeated: jobs are made by PUT under an id that
the client chose, so a lost answer costs nothing. Knows no sockets.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

import httpx

from pathar.errors import (
    BY_TYPE,
    ConnectionLost,
    InternalError,
    JobCanceled,
    JobFailed,
    ServiceError,
    TooManyRequests,
    Unavailable,
)
from pathar.pairs import Job, Label, Pair

FIRST_LOOK_S = 0.05
LONGEST_LOOK_S = 2.0
LONGEST_BACKOFF_S = 5.0


@dataclass(frozen=True)
class Send:
    """A request; the driver answers with the response, or with the error that kept it away."""

    method: str
    path: str
    json: Mapping[str, Any] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pause:
    """Seconds to wait."""

    seconds: float


@dataclass(frozen=True)
class Give:
    """A pair for the caller."""

    pair: Pair


Effect = Send | Pause | Give
Answer = httpx.Response | httpx.TransportError | None
T = TypeVar("T")
Flow = Generator[Effect, Answer, T]


@dataclass(frozen=True)
class Patience:
    """How many seconds in a row a client waits for a service that is away or full."""

    seconds: float = 300.0


def ask(send: Send, patience: Patience) -> Flow[Any]:
    """The JSON of a successful answer. Repeats on 429, 503 and a lost connection."""
    waited = 0.0
    backoff = 0.1
    while True:
        answer = yield send
        assert answer is not None
        if isinstance(answer, httpx.Response) and answer.is_success:
            return answer.json()
        error = _error(answer)
        if not isinstance(error, TooManyRequests | Unavailable | ConnectionLost):
            raise error
        seconds = error.retry_after
        if seconds is None:
            seconds, backoff = backoff * random.uniform(1, 1.5), min(2 * backoff, LONGEST_BACKOFF_S)
        waited += seconds
        if waited > patience.seconds:
            raise error
        yield Pause(seconds)


def submit(order: Mapping[str, Any], job_id: str | None, patience: Patience) -> Flow[Job]:
    """Make a job, once, however often its request must be repeated."""
    fields = {name: value for name, value in order.items() if value is not None}
    state = yield from ask(Send("PUT", f"/jobs/{job_id or uuid4().hex}", fields), patience)
    return Job.from_answer(state)


def look(job_id: str, patience: Patience) -> Flow[Job]:
    """A job's state."""
    state = yield from ask(Send("GET", f"/jobs/{job_id}"), patience)
    return Job.from_answer(state)


def cancel(job_id: str, patience: Patience) -> Flow[Job]:
    """End a job."""
    state = yield from ask(Send("DELETE", f"/jobs/{job_id}"), patience)
    return Job.from_answer(state)


def labels(patience: Patience) -> Flow[list[Label]]:
    """What can be asked for."""
    listed = yield from ask(Send("GET", "/labels"), patience)
    return [Label(**label) for label in listed["labels"]]


def page(params: Mapping[str, Any], patience: Patience) -> Flow[tuple[list[Job], str | None]]:
    """Jobs and the cursor of the next page."""
    given = {name: value for name, value in params.items() if value is not None}
    listed = yield from ask(Send("GET", "/jobs", params=given), patience)
    return [Job.from_answer(state) for state in listed["jobs"]], listed["next"]


def draw(order: Mapping[str, Any], job_id: str | None, patience: Patience) -> Flow[None]:
    """Make a job and give its pairs as they are finished."""
    job = yield from submit(order, job_id, patience)
    given: set[int] = set()
    pause = FIRST_LOOK_S
    while True:
        for index in sorted(job.finished - given):
            drawn = yield from ask(Send("GET", f"/jobs/{job.id}/images/{index}"), patience)
            given.add(index)
            pause = FIRST_LOOK_S
            yield Give(Pair.from_answer(job.id, drawn))
        if job.status == "finished" and len(given) == job.n:
            return
        if job.status == "failed":
            raise JobFailed(f"job {job.id} failed: {job.error}")
        if job.status == "canceled":
            raise JobCanceled(f"job {job.id} was canceled")
        yield Pause(pause)
        pause = min(1.5 * pause, LONGEST_LOOK_S)
        job = yield from look(job.id, patience)


def _error(answer: httpx.Response | httpx.TransportError) -> ServiceError:
    if isinstance(answer, httpx.TransportError):
        url = answer.request.url
        where = f"{url.scheme}://{url.netloc.decode()}"
        return ConnectionLost(f"{where} does not answer: {answer or type(answer).__name__}")
    return error_of(answer)


def error_of(answer: httpx.Response) -> ServiceError:
    """The error that an answer stands for, whoever gave it (a proxy sends no problem document)."""
    retry_after = answer.headers.get("retry-after", "")
    seconds = float(retry_after) if retry_after.isdigit() else None
    try:
        problem = answer.json()
        kind, detail = BY_TYPE[problem["type"]], str(problem["detail"])
        errors = problem.get("errors") or ()
    except (ValueError, KeyError, TypeError):
        gateway = answer.status_code in (502, 503, 504)
        kind, errors = Unavailable if gateway else InternalError, ()
        detail = f"answered {answer.status_code}: {answer.text[:200]}"
    return kind(detail, status=answer.status_code, errors=errors, retry_after=seconds)
