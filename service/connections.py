"""Connections: how many there may be, and how long each may take to say what it wants.

A process has so many descriptors and no more. So connections are counted, and where all are taken
the one that has kept silent for longest makes room; only when all are at work is a new one turned
away, with an answer. The last ones are kept for probes. Who sends half a request is waited for some
seconds, and so is who does not read what it asked for. Knows no routes.
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

from model.contract import Busy, RequestTimeout, ServiceError
from service.errors import problem_response

HEAD_SECONDS = 10.0
"""From a connection's begin, or a request's first byte, to the end of its headers."""
BODY_SECONDS = 10.0
"""From there to the end of its body, which is a few short fields."""
STALL_SECONDS = 120.0
"""How long a client may read nothing of what is sent to it."""
SPARE = 64
"""Connections on which only probes are answered: /healthz, /readyz and /metrics."""
PROBES = ("/healthz", "/readyz", "/metrics")
RESERVED = 128
"""Descriptors for everything else: Redis, storage, logs."""
LOG_SECONDS = 60.0

log = logging.getLogger("pathar.service")


def most_connections(wanted: int) -> int:
    """How many connections there can be, up to `wanted`: descriptors are raised to what this
    process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = wanted if hard == resource.RLIM_INFINITY else max(SPARE + 1, hard - RESERVED)
    if room < wanted:
        log.warning("%d descriptors are room for %d connections, not %d", hard, room, wanted)
    return min(wanted, room)


class Door:
    """The connections of one process."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.refused = 0
        self._open: set[Connection] = set()
        self._quiet: dict[Connection, None] = {}  # in the order in which they fell silent
        self._said = float("-inf")

    def counts(self) -> tuple[int, int]:
        """How many are open, and how many were refused so far."""
        return len(self._open), self.refused

    def enter(self, connection: Connection) -> bool:
        """Let one in, in place of the longest silent one where all are taken; False when all of
        them are at work."""
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
        """One has ended."""
        self._open.discard(connection)
        self._quiet.pop(connection, None)

    def waits(self, connection: Connection) -> None:
        """One has no whole request."""
        if connection in self._open:
            self._quiet.setdefault(connection, None)

    def works(self, connection: Connection) -> None:
        """One has asked, and is being answered."""
        self._quiet.pop(connection, None)

    def turned_away(self) -> None:
        """Count a connection or a request for which there was no room; say so once a minute."""
        self.refused += 1
        now = time.monotonic()
        if now - self._said > LOG_SECONDS:
            self._said = now
            log.warning(
                "all %d connections are taken; %d were turned away or cut so far",
                self.most,
                self.refused,
            )


class Crowd:
    """Answers probes alone while nearly all connections are at work."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer that there is no room."""
        if scope["type"] != "http" or scope["path"].endswith(PROBES):
            await self._app(scope, receive, send)
        elif self._working >= self._door.most - SPARE:
            self._door.turned_away()
            await problem_response(_busy(self._door), {"Connection": "close"})(scope, receive, send)
        else:
            self._working += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._working -= 1


class Connection(H11Protocol):
    """One connection, with a deadline for whatever it has begun to say."""

    door: Door

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._awaited = ""
        super().connection_made(transport)
        if self.door.enter(self):
            self._await("head", HEAD_SECONDS)
        else:
            self._refuse(_busy(self.door))

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self._await("", 0)
        self.resume_writing()
        self.door.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some more of a request."""
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        """An answer was sent; the next request may have been read already."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client reads nothing."""
        super().pause_writing()
        self._stalled = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def _watch(self) -> None:
        """Set the deadline for what is to come next."""
        state = self.conn.their_state
        if self.transport.is_closing():
            self._await("", 0)
        elif state is h11.SEND_BODY:
            self.door.waits(self)
            self._await("body", BODY_SECONDS)
        elif state is h11.IDLE:
            self.door.waits(self)
            begun = bool(self.conn.trailing_data[0])  # else uvicorn's own limit for idle ones holds
            self._await("head" if begun else "", HEAD_SECONDS)
        else:
            self.door.works(self)
            self._await("", 0)

    def _await(self, what: str, seconds: float) -> None:
        """Wait for one thing, from when it was first awaited, however slowly it comes."""
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
                self._refuse(RequestTimeout(f"the headers took longer than {HEAD_SECONDS:g} s"))
            else:
                self.transport.close()
        elif self.cycle.response_started:
            self.transport.close()
        else:
            self.cycle.disconnected = True  # the application is told that its client has left
            self.cycle.message_event.set()
            self._refuse(RequestTimeout(f"the body took longer than {BODY_SECONDS:g} s"))

    def _refuse(self, error: ServiceError) -> None:
        """Answer without the application, and close."""
        answer = problem_response(error, {"Connection": "close"})
        head = h11.Response(status_code=answer.status_code, headers=answer.raw_headers)
        for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def protocol(door: Door) -> type[Connection]:
    """What uvicorn makes for each connection."""
    return type("BoundConnection", (Connection,), {"door": door})


def log_seldom(loop: asyncio.AbstractEventLoop) -> None:
    """Say once a minute, and not at each try, that a connection cannot be accepted."""
    said = float("-inf")

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said
        if not str(context.get("message", "")).startswith("socket.accept()"):
            loop.default_exception_handler(context)
        elif loop.time() - said > LOG_SECONDS:
            said = loop.time()
            log.error("cannot accept connections: %s", context.get("exception"))

    loop.set_exception_handler(handle)


def _busy(door: Door) -> Busy:
    return Busy(f"all {door.most} connections of this process are taken")
