"""Shared by the checks of `pathar doctor`: findings, installed packages, where the service is, and
connections with short time-outs.

Imports only the client's own packages until a check needs more. Prints nothing.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import httpx

from pathar import run_file
from pathar.client import DEFAULT_URL, LOOPBACK
from pathar.run_file import read_run
from pathar.server import lacking

if TYPE_CHECKING:
    import redis

Verdict = Literal["ok", "warning", "failed"]
ANSWER_S = 2.0
"""Time-out of each request to Redis and the API."""
OF_THE_CLIENT = ("", "top", "sign", "parquet")
"""Extras that are of use without the server."""
SPARED = ("nvidia-ml-py",)
"""Packages whose absence costs a metric and nothing else."""
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^]]*\])?([^;]*)(?:;(.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")


@dataclass(frozen=True)
class Finding:
    """What a check found, in one sentence; if something is wrong, how to fix it in another. The
    caller of the check fills in its name."""

    check: str
    verdict: Verdict
    found: str
    fix: str = ""


ok = partial(Finding, "", "ok")
warning = partial(Finding, "", "warning")
failed = partial(Finding, "", "failed")


def named(check: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings with the name of their check, where they have none."""
    return (each if each.check else replace(each, check=check) for each in findings)


Check = Callable[["Installation"], Iterator[Finding]]
"""Finds nothing where it does not apply. Changes nothing. Turns expected errors into findings."""


@dataclass(frozen=True)
class Needed:
    """A package that an extra asks for, with the versions that it takes, such as `>=2.12,<3`."""

    name: str
    versions: str

    def installed(self) -> str | None:
        """Its version here; None where it is not."""
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(self.name)
        return None

    def fits(self) -> bool:
        """Whether the installed version is an allowed one."""
        has = _numbers(self.installed() or "")
        bounds = re.findall(r"(>=|<)\s*([\d.]+)", self.versions)
        return all((has >= _numbers(b)) == (sign == ">=") for sign, b in bounds)


class Installation:
    """One installation as `env` describes it. Each service is asked once."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env

    @cached_property
    def extras(self) -> dict[str, tuple[Needed, ...]]:
        """The packages of each extra, "" for the client's; empty without package metadata."""
        try:
            lines = metadata.requires("pathar") or []
        except metadata.PackageNotFoundError:
            return {}
        found: dict[str, tuple[Needed, ...]] = {}
        for line in lines:
            if match := _REQUIREMENT.fullmatch(line.strip()):
                name, versions, marker = (group or "" for group in match.groups())
                extra = each[1] if (each := _EXTRA.search(marker)) else ""
                found[extra] = (*found.get(extra, ()), Needed(name, versions.strip()))
        return found

    def lacks(self, extra: str) -> list[str]:
        """The packages that an extra needs and that are not installed."""
        needed = [each for each in self.extras.get(extra, ()) if each.name not in SPARED]
        return [each.name for each in needed if each.installed() is None]

    def has(self, extra: str) -> bool:
        """Whether all packages of an extra are installed, and the server where it is for that."""
        usable = extra in OF_THE_CLIENT or not self.lacks_server
        return usable and extra in self.extras and not self.lacks(extra)

    @cached_property
    def lacks_server(self) -> str:
        """What the server's code lacks to run; see `pathar.server.lacking`."""
        return lacking()

    @cached_property
    def home(self) -> Path | None:
        """PATHAR_HOME; None for a user without a home."""
        try:
            return run_file.home(self.env)
        except RuntimeError:
            return None

    @cached_property
    def run(self) -> dict[str, Any]:
        """The content of `run.json`, of a running or dead `pathar up`; empty without the file."""
        found = read_run(self.home or Path("/nowhere"))
        return found if {"url", "redis_url", "pid"} <= found.keys() else {}

    @cached_property
    def up(self) -> dict[str, Any]:
        """The content of `run.json` of the `pathar up` that runs here; empty where none runs."""
        pid = self.run.get("pid")
        if not isinstance(pid, int) or pid < 1:
            return {}
        try:
            os.kill(pid, 0)
        except PermissionError:
            return self.run  # it is alive, and another user's
        except OSError:
            return {}
        return self.run

    @cached_property
    def redis_url(self) -> str | None:
        """PATHAR_REDIS_URL, or the URL of the `pathar up` that runs here; None without either."""
        return self.env.get("PATHAR_REDIS_URL") or self.up.get("redis_url")

    @cached_property
    def redis(self) -> redis.Redis | Exception | None:
        """A client of that Redis after its first answer, or the error. None without a URL or
        without what reads it."""
        reads = not self.lacks_server and all(map(importlib.util.find_spec, ("redis", "rq")))
        if self.redis_url is None or not reads:
            return None
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        from runtime import settings

        limits = {"socket_timeout": ANSWER_S, "socket_connect_timeout": ANSWER_S}
        try:
            url = settings.redis_url({"PATHAR_REDIS_URL": self.redis_url})
            client = redis.Redis.from_url(url, **limits, retry=Retry(NoBackoff(), 0))
            client.ping()
        except (redis.RedisError, ValueError, OSError) as error:
            return error
        return client

    @cached_property
    def info(self) -> dict[str, Any]:
        """What Redis says of itself; empty where the user may not ask, or it does not answer."""
        if self.redis is None or isinstance(self.redis, Exception):
            return {}
        from redis.exceptions import ResponseError

        with suppress(ResponseError):
            return dict(self.redis.info())
        return {}

    @cached_property
    def api_url(self) -> str:
        """PATHAR_URL, or the URL of the `pathar up` that runs here, or the client's default."""
        url = self.env.get("PATHAR_URL") or str(self.up.get("url") or DEFAULT_URL)
        return url.rstrip("/")

    @cached_property
    def health(self) -> httpx.Response | Exception:
        """The API's answer, whatever it is, or the error."""
        return self.get(f"{self.api_url}/healthz")

    @property
    def has_api(self) -> bool:
        """Whether a PathAR API answered."""
        return is_api(self.health)

    def get(self, url: str, *, key: str | None = None) -> httpx.Response | Exception:
        """The answer to a GET, or the error."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            # As in the client: a proxy for the internet cannot reach this machine.
            through_proxy = urlsplit(url).hostname not in LOOPBACK
            with httpx.Client(timeout=ANSWER_S, trust_env=through_proxy) as client:
                return client.get(url, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            return error


def is_api(health: httpx.Response | Exception) -> bool:
    """Whether this answer to GET /healthz comes from a PathAR API."""
    return bool(said(health) == {"status": "ok"})


def said(answer: httpx.Response | Exception) -> Any:
    """The JSON object of an answer; empty where it is something else, or there is no answer."""
    with suppress(ValueError):
        return answer.json() if isinstance(answer, httpx.Response) else {}
    return {}


def listed(names: list[str]) -> str:
    """Names as in a sentence: a, b and c."""
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


def _numbers(version: str) -> tuple[int, ...]:
    """A version to compare: 2.13.0+cpu is (2, 13, 0, 0)."""
    numbers = [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:4]]
    return (*numbers, *[0] * (4 - len(numbers)))
