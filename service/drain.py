"""How a process of the API leaves without a request being lost where others take over.

A load balancer learns some time after the fact that a process leaves, and clients keep connections
open. So a process that is told to stop first only says so, for the drain time: /readyz is 503 and
each answer closes its connection, and whoever asks again asks another process. All else goes on as
ever. Knows no routes.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Drain:
    """Whether this process has been told to stop."""

    def __init__(self) -> None:
        self.begun = False


class DrainMiddleware:
    """Closes the connection of each answer that is sent once the drain has begun."""

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
