"""Who asks: the owner of a request, by its API key, or anybody here where no key is asked for.

Without keys the service listens on loopback alone, and a web page that is open in a browser there
must not be able to use it: `Host` must name this machine (against DNS rebinding) and `Origin`, when
a browser sends one, must be the service's own. What a proxy passes on is refused. With keys none of
this matters, for browsers do not send a bearer token by themselves. Knows no routes and no jobs.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from model.contract import Forbidden, Unauthorized
from service.context import Context, InContext
from store.access import ANYBODY, Owner

LOCAL_NAMES = ("localhost",)
FORWARDED = (
    *("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"),
    *("X-Forwarded-Prefix", "X-Real-IP", "CF-Connecting-IP", "True-Client-IP"),
)
"""Headers by which proxies say for whom they ask."""

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
    check_local(request)
    return ANYBODY


def _refusal(context: Context, given: HTTPAuthorizationCredentials | None) -> str:
    if context.keys.lost():
        return (
            "this service has had API keys and has none now; its operator makes one "
            "(pathar keys make NAME), or opens it to this machine (pathar keys open)"
        )
    wrong = "this API key is not known" if given else "this service asks for an API key"
    return f"{wrong}; send Authorization: Bearer pathar_..."


InOwner = Annotated[Owner, Depends(get_owner)]


def check_local(request: Request) -> None:
    """Forbidden unless Host names this machine, Origin, if there is one, is this service, and no
    proxy says that it passes on what another machine asks."""
    passed = next((name for name in FORWARDED if name in request.headers), None)
    if passed is not None:
        raise Forbidden(
            f"{passed}: this request came through a proxy, and without API keys only programs of "
            "this machine are answered; make a key (pathar keys make NAME)"
        )
    host = request.headers.get("host", "")
    named = _split(f"//{host}")
    if named is None or not is_loopback(named.hostname or ""):
        raise Forbidden(f"Host: got {host[:100]!r}, expected this machine, such as 127.0.0.1")
    origin = request.headers.get("origin")
    if origin is not None:
        own = _split(origin)
        if own is None or own.netloc != host:
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
