"""Limits the number of connections, and the time of each to send a request and read its answer.

A process has a limited number of file descriptors, so connections are counted. When all are in use,
a new one replaces the one that has been idle for longest. Only when all are busy is a new one
rejected, with an answer. The last ones are reserved for probes. A client that does not complete its
request, or does not read its answer, is disconnected after a time-out. Knows no routes.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pathar.contract import Busy, RequestTimeout, ServiceError
from service.errors import problem_response

HEAD_S = 10.0
"""Time-out from the start of a connection, or the first byte of a request, to the end of its
headers."""
BODY_S = 10.0
"""Time-out from there to the end of the body, which has a few short fields."""
STALL_S = 120.0
"""How long a client may read nothing of its answer."""
SPARE = 64
"""Connections reserved for probes: /healthz, /readyz and /metrics."""
PROBES = ("/healthz", "/readyz", "/metrics")
RESERVED = 128
"""File descriptors for everything else: Redis, storage, logs."""
LOG_S = 60.0

log = logging.getLogger("pathar.service")


def most_connections(wanted: int) -> int:
    """The possible number of connections, up to `wanted`. Raises this process's limit of file
    descriptors to its hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = wanted if hard == resource.RLIM_INFINITY else max(SPARE + 1, hard - RESERVED)
    if room < wanted:
        log.warning("%d descriptors have room for %d connections, not %d", hard, room, wanted)
    return min(wanted, room)


class ConnectionLimit:
    """Counts and limits the connections of one process."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.refused = 0
        self._open: set[Connection] = set()
        self._quiet: dict[Connection, None] = {}  # in the order in which they became idle
        self._said = float("-inf")

    def counts(self) -> tuple[int, int]:
        """The number of open connections, and of rejected ones so far."""
        return len(self._open), self.refused

    def enter(self, connection: Connection) -> bool:
        """Accept a connection. When all are in use, closes the one that has been idle for longest;
        False when all are busy."""
        if len(self._open) >= self.most:
            silent = next(iter(self._quiet), None)
            self.turned_away()
            if silent is None:
                return False
            self.leave(silent)
            silent.transport.abort()
        self._open.add(connection)
        self._quiet[connection] = None
        return True

    def leave(self, connection: Connection) -> None:
        """Record that a connection has ended."""
        self._open.discard(connection)
        self._quiet.pop(connection, None)

    def waits(self, connection: Connection) -> None:
        """Record that a connection is idle: it has no complete request."""
        if connection in self._open:
            self._quiet.setdefault(connection, None)

    def works(self, connection: Connection) -> None:
        """Record that a connection is busy: its request is being answered."""
        self._quiet.pop(connection, None)

    def turned_away(self) -> None:
        """Count a rejected or closed connection, or a rejected request. Logs this once a minute."""
        self.refused += 1
        now = time.monotonic()
        if now - self._said > LOG_S:
            self._said = now
            log.warning(
                "all %d connections are in use; %d were rejected or closed so far",
                self.most,
                self.refused,
            )


class BusyMiddleware:
    """Answers only probes while nearly all connections are busy."""

    def __init__(self, app: ASGIApp, limit: ConnectionLimit) -> None:
        self._app = app
        self._limit = limit
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer that all connections are in use."""
        if scope["type"] != "http" or scope["path"].endswith(PROBES):
            await self._app(scope, receive, send)
        elif self._working >= self._limit.most - SPARE:
            self._limit.turned_away()
            answer = problem_response(_busy(self._limit), {"Connection": "close"})
            await answer(scope, receive, send)
        else:
            self._working += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._working -= 1


class Connection(H11Protocol):
    """One connection, with deadlines for its headers, its body and the reading of its answer."""

    limit: ConnectionLimit

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Handle a new connection."""
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._awaited = ""
        super().connection_made(transport)
        if self.limit.enter(self):
            self._await("head", HEAD_S)
        else:
            self._refuse(_busy(self.limit))

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the connection."""
        self._await("", 0)
        self.resume_writing()
        self.limit.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle more bytes of a request."""
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        """Handle a sent answer. The next request may already have been read."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Start the time-out of a client that does not read."""
        super().pause_writing()
        self._stalled = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop this time-out: the client reads again."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def _watch(self) -> None:
        """Set the deadline for the next part of the request."""
        state = self.conn.their_state
        if self.transport.is_closing():
            self._await("", 0)
        elif state is h11.SEND_BODY:
            self.limit.waits(self)
            self._await("body", BODY_S)
        elif state is h11.IDLE:
            self.limit.waits(self)
            begun = bool(self.conn.trailing_data[0])  # else uvicorn's keep-alive limit applies
            self._await("head" if begun else "", HEAD_S)
        else:
            self.limit.works(self)
            self._await("", 0)

    def _await(self, what: str, seconds: float) -> None:
        """Start the deadline for `what`. A deadline that is already running is not extended."""
        if what == self._awaited:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._awaited = what
        self._deadline = self.loop.call_later(seconds, self._too_late) if what else None

    def _too_late(self) -> None:
        if self.transport.is_closing():
            return
        if self._awaited == "head":
            begun = self.conn.trailing_data[0]
            if begun:
                self._refuse(RequestTimeout(f"the headers took longer than {HEAD_S:g} s"))
            else:
                self.transport.close()
        elif self.cycle.response_started:
            self.transport.close()
        else:
            self.cycle.disconnected = True  # tell the application that the client has disconnected
            self.cycle.message_event.set()
            self._refuse(RequestTimeout(f"the body took longer than {BODY_S:g} s"))

    def _refuse(self, error: ServiceError) -> None:
        """Send an error without the application, and close the connection."""
        answer = problem_response(error, {"Connection": "close"})
        head = h11.Response(status_code=answer.status_code, headers=answer.raw_headers)
        for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def protocol(limit: ConnectionLimit) -> type[Connection]:
    """The protocol class that uvicorn instantiates for each connection."""
    return type("BoundConnection", (Connection,), {"limit": limit})


def log_seldom(loop: asyncio.AbstractEventLoop) -> None:
    """Log at most once a minute that connections cannot be accepted."""
    said = float("-inf")

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said
        if not str(context.get("message", "")).startswith("socket.accept()"):
            loop.default_exception_handler(context)
        elif loop.time() - said > LOG_S:
            said = loop.time()
            log.error("cannot accept connections: %s", context.get("exception"))

    loop.set_exception_handler(handle)


def _busy(limit: ConnectionLimit) -> Busy:
    return Busy(f"all {limit.most} connections of this process are in use")
