"""The service's settings, read from PATHAR_ environment variables.

Knows nothing of HTTP. Settings are built once, where a process or an app starts; no other file of
the service reads the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model.request import MAX_IMAGES
from runtime.settings import (
    HOST,
    REDIS_URL,
    RESULT_TTL,
    integer,
    redis_url,
    result_ttl,
    results_url,
)
from store.jobs import MAX_WAITING


@dataclass(frozen=True)
class Settings:
    """What the service can be told. `result_ttl` and `drain` are in seconds; port 0 lets the system
    choose.
    """

    host: str = HOST
    port: int = 8000
    redis_url: str = REDIS_URL
    max_n: int = MAX_IMAGES
    max_waiting: int = MAX_WAITING
    result_ttl: int = RESULT_TTL
    results_url: str | None = None
    drain: int = 0


def read_settings(env: Mapping[str, str]) -> Settings:
    """The settings that `env` names, defaults for the rest. SettingsError on a bad value."""
    default = Settings()
    return Settings(
        host=env.get("PATHAR_HOST") or default.host,
        port=integer(env, "PATHAR_PORT", default.port, 0, 65535),
        redis_url=redis_url(env),
        max_n=integer(env, "PATHAR_MAX_N", default.max_n, 1, MAX_IMAGES),
        max_waiting=integer(env, "PATHAR_MAX_WAITING", default.max_waiting, 1, 10_000_000),
        result_ttl=result_ttl(env),
        results_url=results_url(env),
        drain=integer(env, "PATHAR_DRAIN_SECONDS", default.drain, 0, 300),
    )
