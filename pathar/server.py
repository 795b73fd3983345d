"""Whether the server is here: it lies beside this package in a checkout of PathAR or an image, and
an installation holds this package alone.

Others have packages of the same names. So before any of the server is imported, what Python finds
must be what lies beside this package. Knows nothing of what the server does.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pathar.errors import UsageError

FOLDERS = ("model", "runtime", "store", "worker", "service")
CHECKOUT = Path(__file__).resolve().parents[1]


def is_checkout() -> bool:
    """Whether the folder that this package lies in is the project's."""
    return (CHECKOUT / "pyproject.toml").is_file()


def lacking() -> str:
    """What keeps this process from running the server, with a way out; "" where nothing does."""
    if not is_checkout():
        return "the server: run it in a checkout of PathAR (make up) or a container"
    for name in FOLDERS:
        if (found := _found(name)) != CHECKOUT:
            where = f"{name} of {CHECKOUT}, and Python finds {found / name if found else 'none'}"
            return f"{where}: give PathAR an environment of its own (make up)"
    return ""


def need(command: str, *, or_url: bool = False) -> None:
    """UsageError where `command` cannot run the server; `or_url` where --url would do."""
    if what := lacking():
        raise UsageError(f"pathar {command} needs {'--url, or ' if or_url else ''}{what}")


def _found(name: str) -> Path | None:
    """The folder that an import would take a package or a module from."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).resolve()
    return path.parents[1] if path.name == "__init__.py" else path.parent
