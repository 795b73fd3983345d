"""`python -m service`: the API on PATHAR_HOST and PATHAR_PORT until SIGTERM or Ctrl-C.

Exit codes: 0 stopped, 1 failed, 2 a bad setting, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from types import FrameType
from typing import NoReturn

import uvicorn

from service.app import create_app
from service.settings import Settings, read_settings
from service.waiting import JobNews
from store.settings import SettingsError
from store.telemetry import log_as_json

GRACE_SECONDS = 10


class Server(uvicorn.Server):
    """Uvicorn that answers waiting requests (202) when it is asked to stop, then ends."""

    def __init__(self, config: uvicorn.Config, news: JobNews) -> None:
        super().__init__(config)
        self._news = news

    async def on_tick(self, counter: int) -> bool:
        """Wake the waiting requests as soon as the process is to end."""
        leaving = await super().on_tick(counter)
        if leaving:
            self._news.close()
        return leaving


def main() -> int:
    """Serve until told to stop; the exit code."""
    signal.signal(signal.SIGTERM, _exit)
    log_as_json()
    try:
        settings = read_settings(os.environ)
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
    app = create_app()
    config = uvicorn.Config(
        app, access_log=False, log_config=None, timeout_graceful_shutdown=GRACE_SECONDS
    )
    try:
        Server(config, app.state.context.news).run(sockets=[listener])
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
