"""Authentication: the owner of a request by its API key, or ANYBODY while no keys are needed.

Without keys the service must listen on loopback, and web pages in a browser of this machine must
not be able to use it: `Host` must name this machine (against DNS rebinding), and `Origin`, if sent,
must be the service's own or an allowed one. Requests through a proxy are rejected. With keys this
is not needed: browsers do not send a bearer token by themselves. Knows no routes and no jobs.
"""

from __future__ import annotations

import ipaddress
import time
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from fastapi import Depends, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from pathar.contract import Forbidden, Unauthorized
from service.context import Context, InContext
from service.request_schemas import JobId
from store.access import ANYBODY, Owner

LOCAL_NAMES = ("localhost",)
FORWARDED = (
    *("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"),
    *("X-Forwarded-Prefix", "X-Real-IP", "CF-Connecting-IP", "True-Client-IP"),
)
"""Headers with which proxies name the original client."""
_QUOTES = "\"'`"

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="An API key, made by `pathar keys make`. Not needed until the first is made.",
)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


def get_owner(request: Request, context: InContext, given: Credentials) -> Owner:
    """The owner of a request. Unauthorized, or Forbidden while no keys are needed."""
    if context.keys.required():
        owner = context.keys.find(given.credentials) if given else None
        if owner is None:
            raise Unauthorized(_refusal(context, given))
        return owner
    if not is_loopback(context.settings.host):
        raise Unauthorized(
            "this service listens to other machines and has no API keys yet; make one first"
        )
    check_local(request, context)
    return ANYBODY


def _refusal(context: Context, given: HTTPAuthorizationCredentials | None) -> str:
    if context.keys.lost():
        return (
            "this service had API keys and has none now; its operator must make one "
            "(pathar keys make NAME), or open it to this machine (pathar keys open)"
        )
    expected = "send Authorization: Bearer pathar_..."
    if given is None:
        return f"this service needs an API key; {expected}"
    key = given.credentials
    if key.lower().startswith("bearer"):
        return f"the word Bearer is twice before the API key; {expected}"
    if key[:1] in _QUOTES or key[-1:] in _QUOTES:
        return f"the API key has quotes around it; {expected}"
    if "\\" in key:
        return f"the API key has a backslash in it, as at the end of a shell line; {expected}"
    return f"this API key is unknown; {expected}"


InOwner = Annotated[Owner, Depends(get_owner)]


def get_reader(
    request: Request,
    context: InContext,
    given: Credentials,
    job_id: JobId,
    ticket: Annotated[
        str | None,
        Query(description="in place of a key: a ticket from POST /jobs/{job_id}/tickets"),
    ] = None,
) -> Owner:
    """The owner whose job may be read, by a key or by a ticket for this job."""
    if ticket is None or given is not None:
        return get_owner(request, context, given)
    owner = context.keys.redeem(ticket, job_id, time.time())
    if owner is None:
        raise Unauthorized("ticket: expected one for this job that has not expired")
    if owner.id == ANYBODY.id:
        return get_owner(request, context, None)
    return owner


InReader = Annotated[Owner, Depends(get_reader)]
"""For routes that only read one job."""


def check_open(request: Request, context: InContext) -> None:
    """For pages that need no key. Forbidden while no keys are needed and the client is not a
    program of this machine. Does not ask Redis: uses what this process last knew about keys."""
    if is_loopback(context.settings.host) and not context.keys.seen:
        check_local(request, context)


ForAll = Depends(check_open)


def check_local(request: Request, context: Context) -> None:
    """Raises Forbidden unless Host names this machine, Origin, if sent, is this service or an
    allowed origin, and no header shows that a proxy forwarded the request."""
    passed = next((name for name in FORWARDED if name in request.headers), None)
    if passed is not None:
        raise Forbidden(
            f"{passed}: this request came through a proxy, and without API keys the service only "
            "answers programs of this machine; make a key (pathar keys make NAME)"
        )
    host = request.headers.get("host", "")
    there = _split(f"//{host}")
    if there is None or not is_loopback(there.hostname or ""):
        raise Forbidden(f"Host: got {host[:100]!r}, expected this machine, such as 127.0.0.1")
    origin = request.headers.get("origin")
    if origin is not None:
        own = _split(origin)
        named = origin in context.settings.cors_origins
        if not named and (own is None or own.netloc != host):
            raise Forbidden(f"Origin: got {origin[:100]!r}, expected none or http://{host}")


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    if host in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:  # such as an invalid address in brackets
        return None
