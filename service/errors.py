"""Every error that the service answers, as one tree and one table of HTTP codes.

    ServiceError
    |-- BadBody                400  not JSON, or nested too deeply
    |-- Unauthorized           401  no API key, or none that is known
    |-- Forbidden              403  another Host or Origin, where no key is asked for
    |-- NotFound               404  no such route, job or image
    |-- MethodNotAllowed       405
    |-- JobCanceled            409
    |-- NotFinished            409  its pairs are not all there yet
    |-- OtherJob               409  the id stands for another body
    |-- Gone                   410  the job has expired
    |-- BodyTooLarge           413
    |-- UnsupportedMediaType   415
    |-- RangeNotSatisfiable    416  Range asks for bytes beyond the end
    |-- InvalidRequest         422  names field, value and what is expected
    |-- TooManyRequests        429  over a limit; Retry-After says when there is room
    |-- JobFailed              500  carries the reason
    |-- InternalError          500
    `-- Unavailable            503
        |-- StoreDown               Redis does not answer
        |-- ResultsDown             the storage of results does not answer
        |-- NoModel                 no worker has reported a model lately
        |-- NoWorker                no warm worker lives
        `-- Draining                this process has been told to stop

All are answered as application/problem+json (RFC 9457). This file knows no routes.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import redis
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from model.request import RequestError
from service.metrics import ApiMetrics
from service.schemas import FieldError, Problem, expected_of
from store.objects import ObjectsAway

ECHO_LENGTH = 100
"""Longer values are cut when an error repeats them."""

MOST_ERRORS = 20
"""An answer names no more fields that are wrong, and says how many there are."""
RETRY_SECONDS = 5


class ServiceError(Exception):
    """An error with an HTTP answer; `detail` is a sentence for the client."""

    def __init__(self, detail: str) -> None:
        self.detail = detail
        self.errors: tuple[FieldError, ...] = ()
        self.headers: Mapping[str, str] = {}
        super().__init__(detail)


class BadBody(ServiceError):
    """The body is not JSON that can be read."""


class Unauthorized(ServiceError):
    """No API key, or none that is known (any more)."""


class Forbidden(ServiceError):
    """Without keys the service answers programs of its own machine alone."""


class NotFound(ServiceError):
    """There is no such route, job or image."""


class MethodNotAllowed(ServiceError):
    """The route exists for other methods."""


class JobCanceled(ServiceError):
    """The job that was waited for has been canceled."""


class NotFinished(ServiceError):
    """The job has images that are not drawn yet."""


class OtherJob(ServiceError):
    """The id stands for a job with another body."""


class Gone(ServiceError):
    """The job has expired, with its files."""


class BodyTooLarge(ServiceError):
    """The body is over the limit."""


class UnsupportedMediaType(ServiceError):
    """The body's Content-Type is not JSON."""


class RangeNotSatisfiable(ServiceError):
    """Range asks for bytes beyond the end of a file."""

    def __init__(self, detail: str, headers: Mapping[str, str]) -> None:
        super().__init__(detail)
        self.headers = headers


class InvalidRequest(ServiceError):
    """Fields that are unknown, of a wrong type or out of range; `more` of them are not told."""

    def __init__(self, errors: Sequence[FieldError], more: int = 0) -> None:
        told = [f"{e.field}: expected {e.expected}" for e in errors]
        super().__init__("; ".join(told + [f"and {more} more"] * bool(more)))
        self.errors = tuple(errors)


class TooManyRequests(ServiceError):
    """Over a limit; after `retry_after` seconds there is room for this very request."""

    def __init__(self, detail: str, retry_after: float) -> None:
        super().__init__(detail)
        self.headers = {"Retry-After": str(max(1, math.ceil(retry_after)))}


class JobFailed(ServiceError):
    """The job that was waited for has failed."""


class InternalError(ServiceError):
    """A defect of the service."""


class Unavailable(ServiceError):
    """Something that the service needs is away; trying again later can help."""


class StoreDown(Unavailable):
    """Redis does not answer."""


class ResultsDown(Unavailable):
    """The storage that the files lie in does not answer; Redis does."""


class NoModel(Unavailable):
    """No worker has reported a model lately."""


class NoWorker(Unavailable):
    """No warm worker lives."""


class Draining(Unavailable):
    """This process has been told to stop; another takes over."""


class NothingMore(Exception):
    """No error: a stream that would have nothing to tell any more. Answered with 204."""


@dataclass(frozen=True)
class Answer:
    """How one kind of error is answered."""

    status: int
    slug: str
    title: str
    headers: Mapping[str, str] = field(default_factory=dict)


_BEARER = {"WWW-Authenticate": "Bearer"}
_RETRY = {"Retry-After": str(RETRY_SECONDS)}

ANSWERS: Mapping[type[ServiceError], Answer] = {
    BadBody: Answer(400, "bad-body", "The body is not JSON"),
    Unauthorized: Answer(401, "unauthorized", "An API key is needed", _BEARER),
    Forbidden: Answer(403, "forbidden", "Not from here"),
    NotFound: Answer(404, "not-found", "Not found"),
    MethodNotAllowed: Answer(405, "method-not-allowed", "Method not allowed"),
    JobCanceled: Answer(409, "job-canceled", "The job was canceled"),
    NotFinished: Answer(409, "not-finished", "The job is not finished"),
    OtherJob: Answer(409, "other-job", "The id stands for another job"),
    Gone: Answer(410, "gone", "The job has expired"),
    BodyTooLarge: Answer(413, "body-too-large", "The body is too large"),
    UnsupportedMediaType: Answer(415, "unsupported-media-type", "The body must be JSON"),
    RangeNotSatisfiable: Answer(416, "range-not-satisfiable", "No such bytes"),
    InvalidRequest: Answer(422, "invalid-request", "The request is not valid"),
    TooManyRequests: Answer(429, "too-many-requests", "Over a limit"),
    JobFailed: Answer(500, "job-failed", "The job failed"),
    InternalError: Answer(500, "internal-error", "Internal error"),
    StoreDown: Answer(503, "store-down", "The store is away", _RETRY),
    ResultsDown: Answer(503, "results-down", "The storage of results is away", _RETRY),
    NoModel: Answer(503, "no-model", "No model is known", _RETRY),
    NoWorker: Answer(503, "no-worker", "No warm worker lives", _RETRY),
    Draining: Answer(503, "draining", "This process is about to end", _RETRY),
}


class ProblemResponse(JSONResponse):
    """A problem document; its JSON is ASCII, so that no echoed text can break it."""

    media_type = "application/problem+json"

    def render(self, content: Any) -> bytes:
        """Encode the problem."""
        return json.dumps(content, allow_nan=False).encode("ascii")


def problem_response(error: ServiceError, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP answer for an error, from the one table."""
    answer = ANSWERS[type(error)]
    problem = Problem(
        type=f"urn:pathar:{answer.slug}",
        title=answer.title,
        status=answer.status,
        detail=error.detail,
        errors=list(error.errors) or None,
    )
    return ProblemResponse(
        problem.model_dump(exclude=None if error.errors else {"errors"}),
        status_code=answer.status,
        headers={**answer.headers, **error.headers, **(headers or {})},
    )


def field_error(name: str, value: object, expected: str) -> FieldError:
    """A field's error, its value cut to a length that is good to read."""
    return FieldError(field=name, value=_shorten(value), expected=expected)


def from_pydantic(errors: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The HTTP form of pydantic's list of errors."""
    told = [_from_pydantic(error) for error in errors[:MOST_ERRORS]]
    return InvalidRequest(told, len(errors) - len(told))


def _from_pydantic(error: Mapping[str, Any]) -> FieldError:
    path = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]
    name = ".".join(path)[:ECHO_LENGTH] or "body"
    missing = error["type"] == "missing"
    return field_error(name, None if missing else error["input"], expected_of(name, error))


def _shorten(value: object) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float) and value - value == 0:
        return value
    if isinstance(value, str):
        return value if len(value) <= ECHO_LENGTH else value[:ECHO_LENGTH] + "..."
    limits = reprlib.Repr()
    limits.maxlevel, limits.maxstring, limits.maxother, limits.maxlong = 2, 40, 40, 40
    text = limits.repr(value)
    return text if len(text) <= ECHO_LENGTH else text[:ECHO_LENGTH] + "..."


def _from_http(error: HTTPException) -> ServiceError:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound("there is no such route; see /docs")
    if 400 <= error.status_code < 500:
        return BadBody(str(error.detail))
    return InternalError(str(error.detail))


def _translate(error: Exception) -> ServiceError:
    match error:
        case ServiceError():
            return error
        case RequestError():
            return InvalidRequest([field_error(error.field, error.value, error.expected)])
        case RequestValidationError():
            return from_pydantic(error.errors())
        case HTTPException():
            return _from_http(error)
        case redis.RedisError():
            return StoreDown(f"Redis does not answer ({type(error).__name__})")
        case ObjectsAway():
            return ResultsDown("the files cannot be read now; their job is as it was")
        case _:
            return InternalError("the service met an error of its own; see its log")


def install_handlers(app: FastAPI, routes: Sequence[Route]) -> None:
    """Answer every error of the app, the framework's own included, as problem+json.

    `routes` are all of the app's: one path may have several, and a wrong method is told of each.
    """

    metrics: ApiMetrics = app.state.context.metrics

    def answer(error: ServiceError, headers: Mapping[str, str] | None = None) -> Response:
        metrics.problem(ANSWERS[type(error)].slug)
        return problem_response(error, headers)

    async def translated(_: Request, error: Exception) -> Response:
        headers = error.headers if isinstance(error, HTTPException) else None
        return answer(_translate(error), headers)

    async def wrong_method(request: Request, error: Exception) -> Response:
        path = request.scope["path"]  # request.url would read the Host header, whatever is in it
        fitting = [route.methods or () for route in routes if route.path_regex.match(path)]
        methods = ", ".join(sorted({method for of_route in fitting for method in of_route}))
        refusal = MethodNotAllowed(f"{path[:ECHO_LENGTH]} takes {methods}")
        return answer(refusal, {"Allow": methods})

    async def nothing_more(_: Request, __: Exception) -> Response:
        return Response(status_code=HTTPStatus.NO_CONTENT)

    app.add_exception_handler(NothingMore, nothing_more)
    app.add_exception_handler(HTTPStatus.METHOD_NOT_ALLOWED, wrong_method)
    for kind in (ServiceError, RequestError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, translated)
    app.add_exception_handler(redis.RedisError, translated)
    app.add_exception_handler(ObjectsAway, translated)
    app.add_exception_handler(Exception, translated)
