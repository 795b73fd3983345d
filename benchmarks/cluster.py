"""A deployment on hosts of its own: Redis and API on one, a worker on each of two, one to ask from.

As an operator sets it up: over TCP, Redis with a password, the API with a key. Hosts are those of
`netns.py`, on this machine.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import httpx

from benchmarks.netns import Host, HostNetwork, inside
from pathar.embedded_redis import find_redis_server

PASSWORD = "a1b2c3d4"
API_PORT, REDIS_PORT, METRICS_PORT = 8000, 6379, 9100
START_S = 600.0
TICK_S = 0.05
MANY = ["--rate", "1000000"]
"""A key that may ask more often than a person would."""


class Cluster:
    """`settings` are the environment of all processes; each worker has `cores` of its own, if any.

    NoNetwork, TimeoutError.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str],
        cores: Sequence[Collection[int]] = ((), ()),
    ) -> None:
        self._network = HostNetwork(folder)
        try:
            self.home, self.asking = self._network.host(), self._network.host()
            self._folder, self._cores = folder, cores
            home = self.home.address
            self.url = f"http://{home}:{API_PORT}"
            self.redis_url = f"redis://:{PASSWORD}@{home}:{REDIS_PORT}/0"
            self._env = {**settings, "PATHAR_REDIS_URL": self.redis_url, "NO_PROXY": "*"}
            self.workers = [self._worker(own) for own in cores]
            self._serve()
            self.key = self._make_key()
        except BaseException:
            self.close()
            raise

    def ready(self) -> None:
        """Wait until the API answers and two workers are there, new ones in place of dead ones.

        TimeoutError.
        """
        pairs = list(zip(self.workers, self._cores, strict=True))
        self.workers = [w if w.runs("worker") else self._worker(own) for w, own in pairs]
        for each in self.workers:
            _wait(lambda each=each: "worker ready" in each.log("worker"), "a worker")  # type: ignore[misc]
        with inside(self.asking.space):
            _wait(lambda: answers(f"{self.url}/readyz"), "the API")

    def close(self) -> None:
        """End all of it."""
        self._network.close()

    def _serve(self) -> None:
        options = {"bind": self.home.address, "port": REDIS_PORT, "requirepass": PASSWORD}
        options |= {"save": "", "appendonly": "yes", "dir": self._folder}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self.home.start("redis", [find_redis_server(), *words], self._env)
        told = {"PATHAR_HOST": self.home.address, "PATHAR_PORT": str(API_PORT)}
        self.home.start("service", [*_python(), "service"], {**self._env, **told})

    def _worker(self, cores: Collection[int]) -> Host:
        host = self._network.host()
        told = {"PATHAR_HOST": host.address, "PATHAR_WORKER_METRICS_PORT": str(METRICS_PORT)}
        host.start("worker", [*_python(), "worker"], {**self._env, **told})
        if cores:
            os.sched_setaffinity(host.pid("worker"), cores)
        return host

    def _make_key(self) -> str:
        """On the host of Redis; without a key the API lets nobody in from elsewhere."""
        _wait(lambda: "Ready to accept" in self.home.log("redis"), "Redis")
        self.home.start("keys", [*_python(), "pathar", "keys", "make", "test", *MANY], self._env)
        _wait(lambda: not self.home.runs("keys"), "a key")
        return self.home.log("keys").split()[0]


def answers(url: str) -> bool:
    """Whether that is answered, and well."""
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _python() -> list[str]:
    return [sys.executable, "-W", "error", "-m"]


def _wait(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + START_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} was not there within {START_S:g} s")
        time.sleep(TICK_S)
