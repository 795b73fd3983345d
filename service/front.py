"""Handles before any route: request targets in absolute form, the mount path of the API, HEAD, and
requests with both Transfer-Encoding and Content-Length. Knows no routes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pathar.contract import BadBody
from service.errors import problem_response
from service.settings import Network, is_root_path

PREFIX = "x-forwarded-prefix"
_ABSOLUTE = re.compile("(?i)https?://[^/?]+")


class Front:
    """Middleware. `root_path` is the path under which a proxy mounts the API. A proxy in `trusted`
    can send another one in X-Forwarded-Prefix."""

    def __init__(self, app: ASGIApp, root_path: str, trusted: Sequence[Network]) -> None:
        self._app = app
        self._root_path = root_path
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on in the form that routes expect."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _take_apart(scope)
        headers = Headers(scope=scope)
        scope["root_path"] = self._mounted_at(scope, headers.get(PREFIX, ""))
        if "transfer-encoding" in headers and "content-length" in headers:
            # RFC 9112 6.1: a proxy on this connection may see another end of the message.
            refusal = BadBody("Content-Length: expected none with Transfer-Encoding")
            await problem_response(refusal, {"Connection": "close"})(scope, receive, send)
        elif scope["method"] == "HEAD":
            await self._head(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _mounted_at(self, scope: Scope, said: str) -> str:
        said = said.strip().rstrip("/")
        return said if is_root_path(said) and self._trusts(scope) else self._root_path

    def _trusts(self, scope: Scope) -> bool:
        try:
            peer = ipaddress.ip_address((scope.get("client") or ("",))[0])
        except ValueError:
            return False
        return any(peer in network for network in self._trusted)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer to GET without its body. Ends a stream as soon as it begins."""
        asked = {**scope, "method": "GET"}
        answered = asyncio.Event()

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
            elif not answered.is_set():
                await send({"type": "http.response.body"})
                answered.set()

        doing = asyncio.ensure_future(self._app(asked, receive, without_body))
        waiting = asyncio.ensure_future(answered.wait())
        try:
            await asyncio.wait((doing, waiting), return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                doing.result()
        finally:
            for each in (doing, waiting):
                each.cancel()
            await asyncio.gather(doing, waiting, return_exceptions=True)
            if "route" in asked:
                scope["route"] = asked["route"]


def _take_apart(scope: Scope) -> None:
    """Turn a request target in absolute form (RFC 9112 3.2.2) into origin form. Its authority
    replaces the Host header."""
    raw = scope["raw_path"].decode("latin-1")
    found = _ABSOLUTE.match(raw)
    if found is None:
        return
    host = urlsplit(found[0]).netloc.encode("latin-1")
    path = raw[found.end() :] or "/"
    others = [(name, value) for name, value in scope["headers"] if name != b"host"]
    scope["headers"] = [(b"host", host), *others]
    scope["raw_path"], scope["path"] = path.encode("latin-1"), unquote(path)
