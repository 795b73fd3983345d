"""How errors are answered: each as application/problem+json (RFC 9457), the framework's own too.

Which errors there are stands in `model/contract.py`. This file knows no routes.
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

from model.contract import (
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
from model.request import RequestError
from runtime.objects import ObjectsAway
from service.metrics import ApiMetrics
from service.request_schemas import expected_of
from service.response_schemas import FieldError, Problem
from store.condition import condition

ECHO_LENGTH = 100
"""Longer values are cut when an error repeats them."""

MOST_ERRORS = 20
"""An answer names no more fields that are wrong, and says how many there are."""
RETRY_S = 5
"""When to try again where something is away."""


CLIENT_LEFT = 499
"""What is counted for a request whose client left before the answer; nobody sees it."""


class NothingMore(Exception):
    """No error: a stream that would have nothing to tell any more. Answered with 204."""


class ProblemResponse(JSONResponse):
    """A problem document; its JSON is ASCII, so that no echoed text can break it."""

    media_type = "application/problem+json"

    def render(self, content: Any) -> bytes:
        """Encode the problem."""
        return json.dumps(content, allow_nan=False).encode("ascii")


def problem_response(error: ServiceError, headers: Mapping[str, str] | None = None) -> Response:
    """The HTTP answer for an error of the contract's table."""
    assert error.status is not None  # else it is not in the table
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
    """A field's error, its value cut to a length that is good to read."""
    return FieldError(field=name, value=_shorten(value), expected=expected)


def from_pydantic(errors: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The HTTP form of pydantic's list of errors."""
    told = [_from_pydantic(error) for error in errors[:MOST_ERRORS]]
    return _invalid(told, len(errors) - len(told))


def _invalid(errors: Sequence[FieldError], more: int = 0) -> InvalidRequest:
    """Fields that are wrong; `more` of them are not told."""
    told = [f"{e.field}: expected {e.expected}" for e in errors]
    detail = "; ".join(told + [f"and {more} more"] * bool(more))
    return InvalidRequest(detail, errors=[each.model_dump() for each in errors])


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


def _from_redis(error: redis.RedisError) -> ServiceError:
    match condition(error):
        case "full":
            return StoreFull("Redis is full; cancel jobs, or drop those that ended (?files=true)")
        case "read_only":
            return StoreReadOnly("Redis is a replica and takes no writes; ask its operator")
        case "loading":
            return StoreLoading("Redis is loading its file; try again when it is done")
        case "disk":
            return StoreDisk("Redis cannot write to its disk; its operator has to make room")
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
            return ResultsDown("the files cannot be read now; their job is as it was")
        case _:
            return InternalError("the service met an error of its own; see its log")


def install_handlers(app: FastAPI, routes: Sequence[Route]) -> None:
    """Answer every error of the app, the framework's own included, as problem+json.

    `routes` are all of the app's: one path may have several, and a wrong method is told of each.
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
        path = request.scope["path"]  # request.url would read the Host header, whatever is in it
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
