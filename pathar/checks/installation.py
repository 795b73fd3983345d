"""What the checks of `pathar doctor` share: what a finding is, what is installed, where the service
is, and connections that give up soon.

Loads nothing but the client's own packages until it is asked for more. Prints nothing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import httpx

from pathar.client import DEFAULT_URL, LOOPBACK

if TYPE_CHECKING:
    import redis

Verdict = Literal["ok", "warning", "failed"]
ANSWER_S = 2.0
"""How long Redis and the API are given for each answer."""
SPARED = ("nvidia-ml-py",)
"""Packages without which a figure is missing and nothing else."""
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[([^]]*)\])?([^;]*)(?:;(.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")


@dataclass(frozen=True)
class Finding:
    """What a check found, in a sentence, and, unless all is well, how to mend it in another."""

    check: str
    verdict: Verdict
    found: str
    mend: str = ""


Check = Callable[["Installation"], Iterator[Finding]]
"""Finds nothing where it does not apply. Writes nothing, raises nothing that it expects."""


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
        """Whether the version that is installed is one that it takes."""
        has = _numbers(self.installed() or "")
        bounds = re.findall(r"(>=|<)\s*([\d.]+)", self.versions)
        return all((has >= _numbers(b)) == (sign == ">=") for sign, b in bounds)


class Installation:
    """One installation as `env` describes it. What has to be asked for is asked for once."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env

    @cached_property
    def extras(self) -> dict[str, tuple[Needed, ...]]:
        """The packages of each extra, "" for those of the client; none where nothing says so."""
        try:
            lines = metadata.requires("pathar") or []
        except metadata.PackageNotFoundError:
            return {}
        found: dict[str, list[tuple[str, str, str]]] = {}
        for line in lines:
            if match := _REQUIREMENT.fullmatch(line.strip()):
                name, others, versions, marker = (group or "" for group in match.groups())
                extra = _EXTRA.search(marker)
                found.setdefault(extra[1] if extra else "", []).append((name, others, versions))
        return {extra: tuple(_packages(extra, found)) for extra in found}

    def lacks(self, extra: str) -> list[str]:
        """The packages of an extra that are not installed, and without which it does not run."""
        needed = [each for each in self.extras.get(extra, ()) if each.name not in SPARED]
        return [each.name for each in needed if each.installed() is None]

    def has(self, extra: str) -> bool:
        """Whether all that an extra asks for is installed."""
        return extra in self.extras and not self.lacks(extra)

    @cached_property
    def home(self) -> Path | None:
        """PATHAR_HOME; None for a user without a home."""
        try:
            return Path(self.env.get("PATHAR_HOME") or "~/.pathar").expanduser().absolute()
        except RuntimeError:
            return None

    @cached_property
    def run(self) -> dict[str, Any]:
        """What `run.json` says of a `pathar up`, living or dead; nothing where there is none."""
        with suppress(OSError, ValueError):
            found = json.loads(((self.home or Path("/nowhere")) / "run.json").read_text())
            if isinstance(found, dict) and {"url", "redis_url", "pid"} <= found.keys():
                return found
        return {}

    @cached_property
    def up(self) -> dict[str, Any]:
        """What `run.json` says of the `pathar up` that runs here; nothing where none does."""
        pid = self.run.get("pid")
        if not isinstance(pid, int) or pid < 1:
            return {}
        try:
            os.kill(pid, 0)
        except PermissionError:
            return self.run  # it lives, and is somebody else's
        except OSError:
            return {}
        return self.run

    @cached_property
    def redis_url(self) -> str | None:
        """PATHAR_REDIS_URL, or that of the `pathar up` that runs here; None without either."""
        return self.env.get("PATHAR_REDIS_URL") or self.up.get("redis_url")

    @cached_property
    def redis(self) -> redis.Redis | Exception | None:
        """A client for that Redis once it has answered, or why it did not; None without a URL, or
        where its package is missing."""
        if self.redis_url is None or not self.has_redis:
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

    @property
    def has_redis(self) -> bool:
        """Whether the packages that read the service's Redis are there."""
        return all(map(importlib.util.find_spec, ("redis", "rq")))

    @cached_property
    def api_url(self) -> str:
        """Where the client looks for the API, and without PATHAR_URL where `pathar up` has it."""
        return self.env.get("PATHAR_URL") or str(self.up.get("url") or DEFAULT_URL)

    def get(self, url: str, *, key: str | None = None) -> httpx.Response | Exception:
        """The answer to a GET, or why there is none."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            # As the client has it: a proxy for the outside world cannot reach this machine.
            through_proxy = urlsplit(url).hostname not in LOOPBACK
            with httpx.Client(timeout=ANSWER_S, trust_env=through_proxy) as client:
                return client.get(url, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            return error

    def is_api(self, url: str) -> bool:
        """Whether a PathAR API answers there."""
        answer = self.get(f"{url}/healthz")
        return isinstance(answer, httpx.Response) and said(answer) == {"status": "ok"}


def said(answer: httpx.Response) -> Any:
    """What an answer says in JSON; nothing where it says something else."""
    try:
        return answer.json()
    except ValueError:
        return {}


def listed(names: list[str]) -> str:
    """Names in a sentence."""
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


def _packages(extra: str, found: Mapping[str, list[tuple[str, str, str]]]) -> Iterator[Needed]:
    """The packages of an extra and of those that it names (`pathar[worker]`)."""
    for name, others, versions in found.get(extra, ()):
        if name == "pathar":
            for other in others.split(","):
                yield from _packages(other.strip(), found)
        else:
            yield Needed(name, versions.strip())


def _numbers(version: str) -> tuple[int, ...]:
    """2.13.0+cpu as (2, 13, 0, 0), to compare."""
    numbers = [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:4]]
    return (*numbers, *[0] * (4 - len(numbers)))
