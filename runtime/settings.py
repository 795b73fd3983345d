"""Reads PATHAR_ environment variables for service and worker. Knows only those that both read:
Redis's URL, the address to listen on, where results go and how long they are kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
HOST = "127.0.0.1"
REDIS_URL = "redis://127.0.0.1:6379/0"
RESULT_TTL_S = 86400
LONGEST_TTL_S = 365 * 86400
_OBJECTS_URL = re.compile(
    r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_.-]+)*|file://(/[^/\x00-\x1f]+)+"
)


class SettingsError(ValueError):
    """An unusable setting. Names the variable, its value and what is expected."""

    def __init__(self, key: str, value: str, expected: str) -> None:
        super().__init__(f"{key}={value!r}: expected {expected}")


def integer(env: Mapping[str, str], key: str, default: int, low: int, high: int) -> int:
    """The integer that `key` is set to, or the default; SettingsError."""
    text = env.get(key) or str(default)
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not low <= int(text) <= high:
        raise SettingsError(key, text, f"an integer from {low} to {high}")
    return int(text)


def redis_url(env: Mapping[str, str]) -> str:
    """PATHAR_REDIS_URL; SettingsError."""
    text = env.get("PATHAR_REDIS_URL") or REDIS_URL
    if not text.startswith(REDIS_SCHEMES):
        expected = f"a URL that starts with {', '.join(REDIS_SCHEMES)}"
        unsecret = re.sub(r"(?s)^(\w+://)?.*@", r"\1...@", text)
        raise SettingsError("PATHAR_REDIS_URL", unsecret, expected)
    # Imported here: `pathar doctor` imports this module where the package may be missing.
    from redis import ConnectionPool, RedisError

    try:
        ConnectionPool.from_url(text).make_connection()  # which connects on first use
    except (ValueError, TypeError, RedisError):  # their messages repeat a part of the URL
        scheme = text.partition("://")[0]
        expected = (
            "a URL such as redis://:PASSWORD@HOST:6379/0, with special characters of the password "
            "percent-encoded (# is %23), and after a ? only options of redis-py"
        )
        raise SettingsError("PATHAR_REDIS_URL", f"{scheme}://...", expected) from None
    return text


def result_ttl(env: Mapping[str, str]) -> int:
    """PATHAR_RESULT_TTL in seconds; SettingsError."""
    return integer(env, "PATHAR_RESULT_TTL", RESULT_TTL_S, 1, LONGEST_TTL_S)


def results_url(env: Mapping[str, str]) -> str | None:
    """PATHAR_RESULTS_URL, s3://bucket/prefix or file:///folder; None where results are kept in
    Redis.

    SettingsError on another URL, and where S3 is named and the package obstore is missing.
    """
    text = (env.get("PATHAR_RESULTS_URL") or "").rstrip("/")
    if not text:
        return None
    if _OBJECTS_URL.fullmatch(text) is None or {".", ".."} & set(text.split("/")):
        expected = "s3://BUCKET, s3://BUCKET/PREFIX or file:///FOLDER"
        raise SettingsError("PATHAR_RESULTS_URL", text, expected)
    if text.startswith("s3:") and find_spec("obstore") is None:
        raise SettingsError("PATHAR_RESULTS_URL", text, "obstore: pip install 'pathar[s3]'")
    return text
