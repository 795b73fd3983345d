"""A small HTTP client of the service. Knows the routes; knows nothing of models or Redis."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from pathar.errors import CommandError, UsageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONNECT_SECONDS = 10.0
SLACK_SECONDS = 30.0
"""How much longer than the asked wait an answer may take."""


class Client:
    """Talks to one service. CommandError when it fails, UsageError when it refuses a request."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--url {url!r}: expected a URL such as http://127.0.0.1:8000")
        self._url = url
        # A proxy that is set for the outside world cannot reach this machine's loopback.
        self._http = httpx.Client(base_url=url, trust_env=parts.hostname not in LOOPBACK)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._http.close()

    def ready(self) -> bool:
        """Whether the service answers and has a warm worker."""
        try:
            return self._http.get("/readyz", timeout=2).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def labels(self) -> list[str]:
        """The names of the labels that can be asked for, each once."""
        listed = self._ask("GET", "/labels").json()["labels"]
        return list(dict.fromkeys(label["name"] for label in listed))

    def submit(self, fields: Mapping[str, Any], wait: float = 0) -> dict[str, Any]:
        """Ask for pairs: the job after up to `wait` seconds, with its pairs when it is finished."""
        answer = self._ask("POST", "/generate", wait, params={"wait": wait}, json=dict(fields))
        result: dict[str, Any] = answer.json()
        return result

    def job(self, job_id: str) -> dict[str, Any]:
        """A job's state."""
        result: dict[str, Any] = self._ask("GET", f"/jobs/{job_id}").json()
        return result

    def file(self, job_id: str, index: int, name: str) -> bytes:
        """One file of one image of a job."""
        return self._ask("GET", f"/jobs/{job_id}/images/{index}/{name}").content

    def _ask(self, method: str, path: str, wait: float = 0, **options: Any) -> httpx.Response:
        timeout = httpx.Timeout(wait + SLACK_SECONDS, connect=CONNECT_SECONDS)
        try:
            answer = self._http.request(method, path, timeout=timeout, **options)
        except httpx.HTTPError as error:
            raise CommandError(f"no answer from {self._url}: {error}") from error
        if answer.is_success:
            return answer
        message = f"{self._url} answered {answer.status_code}: {_detail(answer)}"
        if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            raise UsageError(message)
        raise CommandError(message)


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
