"""`run.json` in PATHAR_HOME: where the `pathar up` of this machine is. Knows no processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

NAME = "run.json"


def home(env: Mapping[str, str]) -> Path:
    """PATHAR_HOME, absolute. RuntimeError for a user without a home."""
    return Path(env.get("PATHAR_HOME") or "~/.pathar").expanduser().absolute()


def read_run(folder: Path) -> dict[str, Any]:
    """The content of `run.json` in this home, of a running or dead `pathar up`; empty without."""
    with suppress(OSError, ValueError):
        run = json.loads((folder / NAME).read_text())
        return run if isinstance(run, dict) else {}
    return {}


def url_of(host: str, port: int) -> str:
    """The URL at which this machine reaches what listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
