"""The service's settings, read from PATHAR_ environment variables.

Knows nothing of HTTP. Settings are built once, where a process or an app starts; no other file of
the service reads the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model.request import MAX_IMAGES
from store.jobs import MAX_WAITING

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


class SettingsError(ValueError):
    """A setting that cannot be used. Names the key, the value and what would be right."""

    def __init__(self, key: str, value: str, expected: str) -> None:
        super().__init__(f"{key}={value!r}: expected {expected}")


@dataclass(frozen=True)
class Settings:
    """What the service can be told. `result_ttl` is in seconds; port 0 lets the system choose."""

    host: str = "127.0.0.1"
    port: int = 8000
    redis_url: str = "redis://127.0.0.1:6379/0"
    max_n: int = MAX_IMAGES
    max_waiting: int = MAX_WAITING
    result_ttl: int = 86400


def read_settings(env: Mapping[str, str]) -> Settings:
    """The settings that `env` names, defaults for the rest. SettingsError on a bad value."""
    default = Settings()
    return Settings(
        host=env.get("PATHAR_HOST") or default.host,
        port=_integer(env, "PATHAR_PORT", default.port, 0, 65535),
        redis_url=_redis_url(env, "PATHAR_REDIS_URL", default.redis_url),
        max_n=_integer(env, "PATHAR_MAX_N", default.max_n, 1, MAX_IMAGES),
        max_waiting=_integer(env, "PATHAR_MAX_WAITING", default.max_waiting, 1, 10_000_000),
        result_ttl=_integer(env, "PATHAR_RESULT_TTL", default.result_ttl, 1, 365 * 86400),
    )


def _integer(env: Mapping[str, str], key: str, default: int, low: int, high: int) -> int:
    text = env.get(key) or str(default)
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not low <= int(text) <= high:
        raise SettingsError(key, text, f"an integer from {low} to {high}")
    return int(text)


def _redis_url(env: Mapping[str, str], key: str, default: str) -> str:
    text = env.get(key) or default
    if not text.startswith(REDIS_SCHEMES):
        raise SettingsError(key, text, f"a URL that starts with {', '.join(REDIS_SCHEMES)}")
    return text
