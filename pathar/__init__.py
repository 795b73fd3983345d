"""What users import and type: the client of the service, and the `pathar` command.

from pathar import Client, errors

The client is imported when it is first used: workers and the service, which need `pathar.contract`
alone, load no HTTP client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pathar.contract import VERSION as __version__

if TYPE_CHECKING:
    from pathar import errors
    from pathar.client import AsyncClient, Client
    from pathar.errors import ServiceError, UsageError
    from pathar.pairs import Event, Job, Label, Pair, Pairs

__all__ = [
    "AsyncClient",
    "Client",
    "Event",
    "Job",
    "Label",
    "Pair",
    "Pairs",
    "ServiceError",
    "UsageError",
    "__version__",
    "errors",
]

_PLACES = {
    "AsyncClient": "client",
    "Client": "client",
    "Event": "pairs",
    "Job": "pairs",
    "Label": "pairs",
    "Pair": "pairs",
    "Pairs": "pairs",
    "ServiceError": "errors",
    "UsageError": "errors",
}
"""The module of each name."""


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("pathar.errors")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"pathar.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
