"""What users import and type: the client of the service, and the `pathar` command.

from pathar import Client, errors
"""

from model.contract import VERSION as __version__
from pathar import errors
from pathar.client import AsyncClient, Client
from pathar.errors import ServiceError, UsageError
from pathar.pairs import Event, Job, Label, Pair

__all__ = [
    "AsyncClient",
    "Client",
    "Event",
    "Job",
    "Label",
    "Pair",
    "ServiceError",
    "UsageError",
    "__version__",
    "errors",
]
