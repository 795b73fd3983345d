"""Every error that users of this package meet.

Those that a service answers are ServiceErrors, and stand in `model/contract.py`. Those that pass by
themselves, when it is tried again, are Unavailable, TooManyRequests and ConnectionLost.
"""

from __future__ import annotations

# Each is imported as itself, which exports it (PEP 484); isort would write one block for each.
# ruff: noqa: I001
from model.contract import (
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
    NoWorker as NoWorker,
    OtherJob as OtherJob,
    RangeNotSatisfiable as RangeNotSatisfiable,
    RequestTimeout as RequestTimeout,
    ResultsDown as ResultsDown,
    ServiceError as ServiceError,
    StoreDown as StoreDown,
    TooManyRequests as TooManyRequests,
    Unauthorized as Unauthorized,
    Unavailable as Unavailable,
    UnsupportedMediaType as UnsupportedMediaType,
)


class CommandError(Exception):
    """The command failed: exit code 1."""


class UsageError(Exception):
    """The command was asked for something that it cannot do as asked: exit code 2."""


class ConnectionLost(ServiceError):
    """No answer, though it was tried for as long as the client has patience."""
