"""Which answers are errors, which of them are worth a retry, and how long to wait before it.

Knows neither routes nor sockets.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Mapping

import httpx

from pathar.contract import ERRORS
from pathar.errors import (
    BodyTooLarge,
    ConnectionLost,
    Forbidden,
    InternalError,
    ServiceError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)

FIRST_CONTACT_S = 2.0
"""How long a service that never answered is tried, and after how long a wait for it is logged."""
LONG_S = 10.0
"""A wait that may take longer than this is logged."""
LEAST_S = 5.0
"""What a request to a service that has answered may take at least."""
FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
PASSING = (ConnectionLost, TooManyRequests, Unavailable)
"""Errors after which a retry can help."""


FOREIGN: Mapping[int, type[ServiceError]] = {
    **{401: Unauthorized, 403: Forbidden, 413: BodyTooLarge, 429: TooManyRequests},
    **{502: Unavailable, 503: Unavailable, 504: Unavailable},
}
"""The error for a status that something else than the service answered, such as a proxy."""
OWN_ADDRESS = "see that the URL is that of the API itself"
log = logging.getLogger("pathar")


class Patience:
    """For how many seconds a client retries. Its requests share one, and what it knows of the
    service.

    A service that was never reached is tried for FIRST_CONTACT_S: its URL is wrong, or it does not
    run.
    """

    def __init__(self, seconds: float, *, reached: bool = False) -> None:
        self._seconds = seconds
        self.reached = reached
        self.logged = False
        """Whether the log says that the service is waited for."""

    def seconds(self) -> float:
        """How long to retry."""
        return self._seconds if self.reached else min(self._seconds, FIRST_CONTACT_S)


class Waiting:
    """How long to keep retrying while the service is away or full.

    The time runs from the start of the first failed request to the next success, so the time that
    failing requests take counts too.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._since: float | None = None
        self._backoff = FIRST_BACKOFF_S

    def begin(self) -> None:
        """Note that a request is sent now."""
        if self._since is None:
            self._since = time.monotonic()

    def answered(self) -> None:
        """Note a success: the time starts again with the next failure."""
        self._since = None
        self._patience.logged = False

    def allowed(self) -> float:
        """Seconds that the next request may take."""
        return max(LEAST_S, self.left()) if self._patience.reached else FIRST_CONTACT_S

    def reached(self, answer: object) -> None:
        """Note what came of a request: any answer, and any error but that nobody was reached."""
        if not isinstance(answer, httpx.ConnectError | httpx.ConnectTimeout):
            self._patience.reached = True

    def left(self) -> float:
        """Seconds left for retries; negative when they are over."""
        return self._patience.seconds() - self._waited()

    def _waited(self) -> float:
        return 0.0 if self._since is None else time.monotonic() - self._since

    def pause(self, error: Exception) -> float:
        """Seconds to wait before the next retry. Raises `error` when no retry can help in time."""
        left = self.left()
        if not isinstance(error, PASSING) or left < 0:
            raise error
        if error.retry_after is not None:
            if error.retry_after > left:
                raise error
            seconds = error.retry_after
        else:
            seconds = min(self._backoff * random.uniform(1, 1.5), max(left, FIRST_BACKOFF_S))
            self._backoff = min(2 * self._backoff, LONGEST_BACKOFF_S)
        return seconds

    def log(self, error: Exception, pause: float) -> None:
        """Log that a client waits, where it has for FIRST_CONTACT_S and will for long."""
        left = self.left()
        if (
            self._waited() + pause >= FIRST_CONTACT_S
            and left > LONG_S
            and not self._patience.logged
        ):
            self._patience.logged = True
            log.warning("%s; trying again for %.0f s", error, left)


def error_of(answer: httpx.Response | httpx.RequestError) -> ServiceError:
    """The error for an answer, from the service or a proxy (which sends no problem document)."""
    if isinstance(answer, httpx.RequestError):
        url = answer.request.url
        where = f"{url.scheme}://{url.netloc.decode()}"
        late = "timed out" if isinstance(answer, httpx.TimeoutException) else ""
        return ConnectionLost(f"{where} does not answer: {late or str(answer) or 'cut off'}")
    retry_after = answer.headers.get("retry-after", "")
    seconds = float(retry_after) if retry_after.isdigit() else None
    try:
        problem = answer.json()
        kind, detail = ERRORS[problem["type"]], str(problem["detail"])
        errors = problem.get("errors") or ()
    except (ValueError, KeyError, TypeError):
        kind, errors = FOREIGN.get(answer.status_code, InternalError), ()
        detail = foreign(answer)
    return kind(detail, status=answer.status_code, errors=errors, retry_after=seconds)


def foreign(answer: httpx.Response) -> str:
    """Describes an answer that did not come from the service."""
    said, to = f"answered {answer.status_code}", answer.headers.get("location")
    if to:
        return f"{said} and leads to {to[:200]!r}; {OWN_ADDRESS}"
    text = answer.text
    if text.lstrip()[:1] != "<":
        return f"{said} with something else than expected: {text[:100]!r}"
    title = re.search("(?is)<title[^>]*>(.{1,200}?)</title>", text)
    named = f" ({' '.join(title[1].split())!r})" if title else ""
    return f"{said} with a page of HTML{named}, as a proxy does; {OWN_ADDRESS}"
