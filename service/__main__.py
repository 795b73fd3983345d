"""`python -m service`: the API on PATHAR_HOST and PATHAR_PORT until SIGTERM or Ctrl-C.

After SIGTERM it drains (`drain.py`) for PATHAR_DRAIN_SECONDS, then takes no more connections,
answers who waits, and finishes what it sends. Ctrl-C or a second signal leave the drain out.

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
from service.settings import Settings, read_settings

GRACE_SECONDS = 30
"""After the drain, for archives that are being sent."""
QUIET_SECONDS = 2
"""Who has been answered may ask again at once on the same connection, if it was not told that this
is closed, as the answer began before the drain. So it ends when nobody has asked for this long."""
IDLE_SECONDS = 75
"""A connection that is not used is closed then: later than load balancers do it (60 s is usual),
which otherwise send a request into a connection that is just being closed."""


class Server(uvicorn.Server):
    """Uvicorn that drains when it is told to stop, then answers waiting requests (202), and ends
    when it has nothing more to send.
    """

    def __init__(self, config: uvicorn.Config, context: Context) -> None:
        super().__init__(config)
        self._context = context
        self._signals: list[int] = []
        self._drained_at = self._quiet_since = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM and SIGINT."""
        self._signals.append(sig)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        log_seldom(asyncio.get_running_loop())
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end, and what comes before that."""
        if not await super().on_tick(counter):
            return False
        at, seconds = time.monotonic(), self._context.settings.drain
        hurried = signal.SIGINT in self._signals or len(self._signals) > 1
        if not self._context.drain.begun:
            self._context.drain.begun, self._drained_at = True, at + seconds
        if at < self._drained_at and not hurried:
            return False
        if not self._context.news.closing:
            self._drained_at = self._quiet_since = at
            self._take_no_more()
        if self.server_state.tasks:
            self._quiet_since = at
        left = self._drained_at + GRACE_SECONDS - at
        self.config.timeout_graceful_shutdown = max(1, round(left))
        quiet = at - self._quiet_since >= (0 if hurried else min(seconds, QUIET_SECONDS))
        return left < 0 or self.force_exit or (quiet and not self.server_state.tasks)

    def _take_no_more(self) -> None:
        for server in self.servers:
            server.close()
        self._context.news.close()


def main() -> int:
    """Serve until told to stop; the exit code."""
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
    context.door.most = most_connections(settings.max_connections)
    config = uvicorn.Config(
        app,
        http=protocol(context.door),
        access_log=False,
        log_config=None,
        timeout_keep_alive=IDLE_SECONDS,
        proxy_headers=False,
    )
    try:
        Server(config, context).run(sockets=[listener])
    except KeyboardInterrupt:
        return 130
    return 0


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio sends small packets at once (TCP_NODELAY): an answer whose
    # body follows its headers would otherwise wait 40 ms for the client's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings.host, settings.port))
    listener.listen(1024)
    return listener


def _exit(sig: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
