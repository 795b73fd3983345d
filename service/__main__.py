"""`python -m service`: the API on PATHAR_HOST and PATHAR_PORT until SIGTERM or Ctrl-C.

After SIGTERM it drains (`drain.py`) for PATHAR_DRAIN_SECONDS. Then it accepts no more connections,
answers all waiting clients, and finishes the responses it is sending. Ctrl-C or a second signal
skips the drain.

Exit codes: 0 stopped, 1 failed, 2 a bad setting, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from types import FrameType
from typing import NoReturn

import uvicorn

from runtime.settings import SettingsError
from runtime.telemetry import log_as_json
from service.app import create_app
from service.connections import log_seldom, most_connections, protocol
from service.context import Context
from service.settings import ServiceSettings, read_settings

ARCHIVE_GRACE_S = 30
"""Time after the drain for archives that are being sent."""
QUIET_S = 2
"""The process ends after this long without a request. A response that began before the drain does
not close its connection, so its client may send another request on it at once."""
IDLE_S = 75
"""An idle connection is closed after this long. Load balancers usually close theirs after 60 s; if
the service were first, they could send a request on a connection that is being closed."""


class Server(uvicorn.Server):
    """Uvicorn that drains after a stop signal, then answers waiting requests (202), and ends when
    it has nothing more to send.
    """

    def __init__(self, config: uvicorn.Config, context: Context) -> None:
        super().__init__(config)
        self._context = context
        self._signals: list[int] = []
        self._drained_at = self._quiet_since = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT."""
        self._signals.append(sig)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        log_seldom(asyncio.get_running_loop())
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Run the drain after a stop signal; returns whether the server must end now."""
        if not await super().on_tick(counter):
            return False
        at, seconds = time.monotonic(), self._context.settings.drain
        hurried = signal.SIGINT in self._signals or len(self._signals) > 1
        if not self._context.drain.begun:
            self._context.drain.begun, self._drained_at = True, at + seconds
        if at < self._drained_at and not hurried:
            return False
        if not self._context.subscriber.closing:
            self._drained_at = self._quiet_since = at
            self._stop_accepting()
        if self.server_state.tasks:
            self._quiet_since = at
        left = self._drained_at + ARCHIVE_GRACE_S - at
        self.config.timeout_graceful_shutdown = max(1, round(left))
        quiet = at - self._quiet_since >= (0 if hurried else min(seconds, QUIET_S))
        return left < 0 or self.force_exit or (quiet and not self.server_state.tasks)

    def _stop_accepting(self) -> None:
        for server in self.servers:
            server.close()
        self._context.subscriber.close()


def main() -> int:
    """Serve until a stop signal; returns the exit code."""
    signal.signal(signal.SIGTERM, _exit)
    log_as_json()
    try:
        settings = read_settings(os.environ)
        app = create_app()
        listener = _listen(settings)
    except SettingsError as error:
        print(f"pathar: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        print(
            f"pathar: cannot listen on {where} (PATHAR_HOST, PATHAR_PORT): {error}", file=sys.stderr
        )
        return 1
    host, port = listener.getsockname()[:2]
    print(f"pathar: serving http://{host}:{port}", file=sys.stderr, flush=True)
    context: Context = app.state.context
    context.connections.most = most_connections(settings.max_connections)
    config = uvicorn.Config(
        app,
        http=protocol(context.connections),
        access_log=False,
        log_config=None,
        timeout_keep_alive=IDLE_S,
        proxy_headers=False,
    )
    try:
        Server(config, context).run(sockets=[listener])
    except KeyboardInterrupt:
        return 130
    return 0


def _listen(settings: ServiceSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With an explicit protocol asyncio sets TCP_NODELAY. Otherwise a body that follows its headers
    # would wait 40 ms for the client's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings.host, settings.port))
    listener.listen(1024)
    return listener


def _exit(sig: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
