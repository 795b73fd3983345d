"""Answers all errors as application/problem+json (RFC 9457), including those of the framework.

`pathar/contract.py` lists the errors. Knows no routes.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import redis
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from model.request import RequestError
from pathar.contract import (
    SETTINGS,
    STREAMS,
    BadBody,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ResultsDown,
    ServiceError,
    StoreDisk,
    StoreDown,
    StoreFull,
    StoreLoading,
    StoreReadOnly,
    Unauthorized,
    Unavailable,
)
from runtime.objects import ObjectsAway
from service.metrics import ApiMetrics
from service.request_schemas import GenerateBody, Strict, expected_of
from service.response_schemas import FieldError, Problem
from store.condition import condition

ECHO_LENGTH = 100
"""The longest value that an error repeats in full, in characters."""

MOST_ERRORS = 20
"""The most invalid fields that an answer lists; it gives the number of the others."""
RETRY_S = 5
"""Retry-After when Redis, the storage or a worker is unavailable, or too many streams are open."""


CLIENT_LEFT = 499
"""The status in the metrics for a client that disconnected before the answer. It is not sent."""


class NothingMore(Exception):
    """Not an error: a stream without further events. Answered with 204."""


class ProblemResponse(JSONResponse):
    """A problem document. Its JSON is ASCII, so that no repeated value can break it."""

    media_type = "application/problem+json"

    def render(self, content: Any) -> bytes:
        """Encode the problem as JSON."""
        return json.dumps(content, allow_nan=False).encode("ascii")


def problem_response(error: ServiceError, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP answer for an error of the contract's table."""
    assert error.status is not None  # errors without a status are not in the table
    problem = Problem(
        type=error.type,
        title=error.title,
        status=error.status,
        detail=error.detail,
        errors=[FieldError(**each) for each in error.errors] or None,
    )
    return ProblemResponse(
        problem.model_dump(exclude=None if error.errors else {"errors"}),
        status_code=error.status,
        headers={**_headers(error), **error.headers, **(headers or {})},
    )


def _headers(error: ServiceError) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    seconds = RETRY_S if isinstance(error, Unavailable) else error.retry_after
    return {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}


def field_error(name: str, value: object, expected: str) -> FieldError:
    """The error of one field, with its value shortened."""
    return FieldError(field=name, value=_shorten(value), expected=expected)


def from_pydantic(
    errors: Sequence[Mapping[str, Any]], body: type[Strict] = GenerateBody
) -> InvalidRequest:
    """InvalidRequest from pydantic's list of errors on a `body`."""
    told = [_from_pydantic(error, body) for error in errors[:MOST_ERRORS]]
    return _invalid(told, len(errors) - len(told))


def _invalid(errors: Sequence[FieldError], more: int = 0) -> InvalidRequest:
    """InvalidRequest for these fields; `more` is the number of invalid fields left out."""
    told = [f"{e.field}: expected {e.expected}" for e in errors]
    detail = "; ".join(told + [f"and {more} more"] * bool(more))
    return InvalidRequest(detail, errors=[each.model_dump() for each in errors])


def _from_pydantic(error: Mapping[str, Any], body: type[Strict]) -> FieldError:
    path = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]
    if path and path[0] in (*STREAMS, *SETTINGS):
        del path[1:2]  # the tag of its form, which pydantic adds
    name = ".".join(path)[:ECHO_LENGTH] or "body"
    missing = error["type"] == "missing"
    return field_error(name, None if missing else error["input"], expected_of(name, error, body))


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


def _from_redis(error: redis.RedisError) -> ServiceError:
    match condition(error):
        case "full":
            return StoreFull("Redis is full; cancel jobs, or drop those that ended (?files=true)")
        case "read_only":
            return StoreReadOnly("Redis is a replica and takes no writes; ask its operator")
        case "loading":
            return StoreLoading("Redis is loading its file; try again when it is done")
        case "disk":
            return StoreDisk("Redis cannot write to its disk; its operator must free space")
        case None:
            return StoreDown(f"Redis does not answer ({type(error).__name__})")


def _translate(error: Exception) -> ServiceError:
    match error:
        case ServiceError():
            return error
        case RequestError():
            return _invalid([field_error(error.field, error.value, error.expected)])
        case RequestValidationError():
            return from_pydantic(error.errors())
        case HTTPException():
            return _from_http(error)
        case redis.RedisError():
            return _from_redis(error)
        case ObjectsAway():
            return ResultsDown("the files cannot be read now; their job is unchanged")
        case _:
            return InternalError("internal error; see the log of the service")


def install_handlers(app: FastAPI, routes: Sequence[Route]) -> None:
    """Answer all errors of the app, including those of the framework, as problem+json.

    `routes` are all routes of the app: several may have one path, and the error for a wrong method
    lists the methods of all of them.
    """

    metrics: ApiMetrics = app.state.context.metrics

    def answer(error: ServiceError, headers: Mapping[str, str] | None = None) -> Response:
        metrics.problem(error.type.removeprefix("urn:pathar:"))
        return problem_response(error, headers)

    async def translated(_: Request, error: Exception) -> Response:
        headers = error.headers if isinstance(error, HTTPException) else None
        return answer(_translate(error), headers)

    async def wrong_method(request: Request, error: Exception) -> Response:
        root = request.scope["root_path"]
        path = request.scope["path"]  # request.url would read the Host header, which may be invalid
        path = path.removeprefix(root) if path.startswith(f"{root}/") else path
        fitting = [route.methods or () for route in routes if route.path_regex.match(path)]
        taken = {method for of_route in fitting for method in of_route} | {"OPTIONS"}
        methods = ", ".join(sorted(taken | ({"HEAD"} if "GET" in taken else set())))
        if request.method == "OPTIONS":
            return Response(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": methods})
        refusal = MethodNotAllowed(f"{path[:ECHO_LENGTH]} takes {methods}")
        return answer(refusal, {"Allow": methods})

    async def nothing_more(_: Request, __: Exception) -> Response:
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def client_left(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)

    app.add_exception_handler(NothingMore, nothing_more)
    app.add_exception_handler(ClientDisconnect, client_left)
    app.add_exception_handler(HTTPStatus.METHOD_NOT_ALLOWED, wrong_method)
    for kind in (ServiceError, RequestError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, translated)
    app.add_exception_handler(redis.RedisError, translated)
    app.add_exception_handler(ObjectsAway, translated)
    app.add_exception_handler(Exception, translated)
