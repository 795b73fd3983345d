"""Who asks: the owner of a request, by its API key, or anybody here where no key is asked for.

Without keys the service listens on loopback alone, and a web page that is open in a browser there
must not be able to use it: `Host` must name this machine (against DNS rebinding) and `Origin`, when
a browser sends one, must be the service's own. What a proxy passes on is refused. With keys none of
this matters, for browsers do not send a bearer token by themselves. Knows no routes and no jobs.
"""

from __future__ import annotations

import ipaddress
import time
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from fastapi import Depends, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from model.contract import Forbidden, Unauthorized
from service.context import Context, InContext
from service.request_schemas import JobId
from store.access import ANYBODY, Owner

LOCAL_NAMES = ("localhost",)
FORWARDED = (
    *("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"),
    *("X-Forwarded-Prefix", "X-Real-IP", "CF-Connecting-IP", "True-Client-IP"),
)
"""Headers by which proxies say for whom they ask."""
_QUOTES = "\"'`"

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="An API key, made by `pathar keys make`. Not needed until the first is made.",
)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


def get_owner(request: Request, context: InContext, given: Credentials) -> Owner:
    """Whose request this is. Unauthorized, or Forbidden where no key is asked for."""
    if context.keys.required():
        owner = context.keys.find(given.credentials) if given else None
        if owner is None:
            raise Unauthorized(_refusal(context, given))
        return owner
    if not is_loopback(context.settings.host):
        raise Unauthorized("this service is open to others and has no API keys yet; make one first")
    check_local(request, context)
    return ANYBODY


def _refusal(context: Context, given: HTTPAuthorizationCredentials | None) -> str:
    if context.keys.lost():
        return (
            "this service has had API keys and has none now; its operator makes one "
            "(pathar keys make NAME), or opens it to this machine (pathar keys open)"
        )
    expected = "send Authorization: Bearer pathar_..."
    if given is None:
        return f"this service asks for an API key; {expected}"
    key = given.credentials
    if key.lower().startswith("bearer"):
        return f"the word Bearer stands twice before the API key; {expected}"
    if key[:1] in _QUOTES or key[-1:] in _QUOTES:
        return f"the API key has quotes around it; {expected}"
    if "\\" in key:
        return f"the API key has a backslash in it, as of a line's end; {expected}"
    return f"this API key is not known; {expected}"


InOwner = Annotated[Owner, Depends(get_owner)]


def get_reader(
    request: Request,
    context: InContext,
    given: Credentials,
    job_id: JobId,
    ticket: Annotated[
        str | None, Query(description="in place of a key: of POST /jobs/{job_id}/tickets")
    ] = None,
) -> Owner:
    """Whose job may be read: by a key, or by a ticket for this very job."""
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
    """For pages that need no key: Forbidden where none is asked for and this is no program of this
    machine, as far as this process knows without asking Redis."""
    if is_loopback(context.settings.host) and not context.keys.seen:
        check_local(request, context)


ForAll = Depends(check_open)


def check_local(request: Request, context: Context) -> None:
    """Forbidden unless Host names this machine, Origin, if there is one, is this service, and no
    proxy says that it passes on what another machine asks."""
    passed = next((name for name in FORWARDED if name in request.headers), None)
    if passed is not None:
        raise Forbidden(
            f"{passed}: this request came through a proxy, and without API keys only programs of "
            "this machine are answered; make a key (pathar keys make NAME)"
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
    """Whether a host's name or address means this machine alone."""
    if host in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:  # such as an address in brackets that is none
        return None
