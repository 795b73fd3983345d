"""Every error that users of this package meet, as one tree.

    CommandError               a command failed: exit code 1
    UsageError                 a command cannot do what it was asked for: exit code 2
    ServiceError               what a service answered, or that it did not; `detail` is a sentence
    |-- ConnectionLost         no answer, tried again until patience ended
    |-- BadBody                400
    |-- Unauthorized           401
    |-- Forbidden              403
    |-- NotFound               404
    |-- MethodNotAllowed       405
    |-- JobCanceled            409
    |-- NotFinished            409
    |-- OtherJob               409
    |-- Gone                   410
    |-- BodyTooLarge           413
    |-- UnsupportedMediaType   415
    |-- RangeNotSatisfiable    416
    |-- InvalidRequest         422  `errors` names each field, its value and what is expected
    |-- TooManyRequests        429  `retry_after` seconds
    |-- JobFailed              500
    |-- InternalError          500
    `-- Unavailable            503
        |-- StoreDown
        |-- ResultsDown
        |-- NoModel
        `-- NoWorker

The names below ServiceError are the service's own (service/errors.py); they go by the `type` of
its problem documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class CommandError(Exception):
    """The command failed: exit code 1."""


class UsageError(Exception):
    """The command was asked for something that it cannot do as asked: exit code 2."""


class ServiceError(Exception):
    """A service refused or failed. `errors` has field, value and expected of each wrong field."""

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
        retry_after: float | None = None,
    ) -> None:
        self.detail = detail
        self.status = status
        self.errors = tuple(errors)
        self.retry_after = retry_after
        super().__init__(detail)


class ConnectionLost(ServiceError):
    """No answer, though it was tried for as long as the client has patience."""


class BadBody(ServiceError):
    """The body was not JSON."""


class Unauthorized(ServiceError):
    """No API key, or none that is known."""


class Forbidden(ServiceError):
    """Without keys a service answers its own machine alone."""


class NotFound(ServiceError):
    """There is no such job or image."""


class MethodNotAllowed(ServiceError):
    """The route exists for other methods."""


class JobCanceled(ServiceError):
    """The job was canceled."""


class NotFinished(ServiceError):
    """The job has images that are not drawn yet."""


class OtherJob(ServiceError):
    """The id stands for a job with another body."""


class Gone(ServiceError):
    """The job has expired."""


class BodyTooLarge(ServiceError):
    """The body was too large."""


class UnsupportedMediaType(ServiceError):
    """The body was not sent as JSON."""


class RangeNotSatisfiable(ServiceError):
    """Range asked for bytes beyond the end of a file."""


class InvalidRequest(ServiceError):
    """Fields that are unknown, of a wrong type or out of range."""


class TooManyRequests(ServiceError):
    """Over a limit, longer than the client has patience."""


class JobFailed(ServiceError):
    """The job failed."""


class InternalError(ServiceError):
    """A defect of the service."""


class Unavailable(ServiceError):
    """Something that the service needs was away for longer than the client has patience."""


class StoreDown(Unavailable):
    """Redis did not answer the service."""


class ResultsDown(Unavailable):
    """The storage that files lie in did not answer the service."""


class NoModel(Unavailable):
    """No worker has reported a model lately."""


class NoWorker(Unavailable):
    """No warm worker lives."""


class Draining(Unavailable):
    """The process that was asked has been told to stop."""


BY_TYPE: Mapping[str, type[ServiceError]] = {
    "urn:pathar:bad-body": BadBody,
    "urn:pathar:unauthorized": Unauthorized,
    "urn:pathar:forbidden": Forbidden,
    "urn:pathar:not-found": NotFound,
    "urn:pathar:method-not-allowed": MethodNotAllowed,
    "urn:pathar:job-canceled": JobCanceled,
    "urn:pathar:not-finished": NotFinished,
    "urn:pathar:other-job": OtherJob,
    "urn:pathar:gone": Gone,
    "urn:pathar:body-too-large": BodyTooLarge,
    "urn:pathar:unsupported-media-type": UnsupportedMediaType,
    "urn:pathar:range-not-satisfiable": RangeNotSatisfiable,
    "urn:pathar:invalid-request": InvalidRequest,
    "urn:pathar:too-many-requests": TooManyRequests,
    "urn:pathar:job-failed": JobFailed,
    "urn:pathar:internal-error": InternalError,
    "urn:pathar:store-down": StoreDown,
    "urn:pathar:results-down": ResultsDown,
    "urn:pathar:no-model": NoModel,
    "urn:pathar:no-worker": NoWorker,
    "urn:pathar:draining": Draining,
}
"""The error for each `type` of a problem document."""
