"""Stops an API process without losing requests, if other processes take over.

A load balancer notices late that a process is stopping, and clients keep connections open. So after
the stop signal the process first announces its end, for the drain time: /readyz is 503 and each
answer closes its connection, so the next request goes to another process. Everything else works as
before. Knows no routes.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Drain:
    """Whether this process has received a stop signal."""

    def __init__(self) -> None:
        self.begun = False


class DrainMiddleware:
    """Closes the connection after each answer, once the drain has begun."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._drain.begun:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, closing)
