"""All errors of the package `pathar`.

A ServiceError is an error answer of the service (see `pathar/contract.py`). A retry can help after
Unavailable, TooManyRequests and ConnectionLost.
"""

from __future__ import annotations

# Each is imported as itself, which exports it (PEP 484); isort would write one block for each.
# ruff: noqa: I001
from pathar.contract import (
    BadBody as BadBody,
    BodyTooLarge as BodyTooLarge,
    Busy as Busy,
    Draining as Draining,
    Forbidden as Forbidden,
    Gone as Gone,
    InternalError as InternalError,
    InvalidRequest as InvalidRequest,
    JobCanceled as JobCanceled,
    JobFailed as JobFailed,
    MethodNotAllowed as MethodNotAllowed,
    NoModel as NoModel,
    NotFinished as NotFinished,
    NotFound as NotFound,
    NotOffered as NotOffered,
    NoWorker as NoWorker,
    OtherJob as OtherJob,
    RangeNotSatisfiable as RangeNotSatisfiable,
    RequestTimeout as RequestTimeout,
    ResultsDown as ResultsDown,
    ServiceError as ServiceError,
    StoreDisk as StoreDisk,
    StoreDown as StoreDown,
    StoreFull as StoreFull,
    StoreLoading as StoreLoading,
    StoreReadOnly as StoreReadOnly,
    TooManyRequests as TooManyRequests,
    TooMuchStored as TooMuchStored,
    Unauthorized as Unauthorized,
    Unavailable as Unavailable,
    UnsupportedMediaType as UnsupportedMediaType,
)


class CommandError(Exception):
    """The command failed: exit code 1."""


class UsageError(Exception):
    """The arguments are wrong: exit code 2."""


class ConnectionLost(ServiceError):
    """The service did not answer for as long as the client's `patience`."""
