"""Why a Redis that answers refuses writes, from its error replies and from INFO.

Knows no keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import redis

Condition = Literal["full", "read_only", "loading", "disk"]
"""Why a Redis that answers refuses writes: it is over `maxmemory`, it is a replica, it still loads
its file (and refuses reads too), or it cannot write to its disk."""

_SIGNS: Mapping[Condition, tuple[type[Exception], str]] = {
    "full": (redis.OutOfMemoryError, "OOM "),
    "read_only": (redis.ReadOnlyError, "READONLY "),
    "loading": (redis.BusyLoadingError, "LOADING "),
    "disk": (redis.ResponseError, "MISCONF "),
}
"""redis-py's class of each, and the code that begins the error where it has no class of its own."""


def condition(error: Exception) -> Condition | None:
    """The reason why Redis refused a command; None for any other error."""
    for each, (kind, code) in _SIGNS.items():
        if kind is not redis.ResponseError and isinstance(error, kind):
            return each
        if isinstance(error, redis.ResponseError) and str(error).startswith(code):
            return each
    return None


def conditions(client: redis.Redis) -> dict[Condition, bool]:
    """Whether each condition holds now. RedisError, also when the user may not run INFO."""
    told: dict[str, Any] = {}
    for section in ("memory", "persistence", "replication"):
        told.update(client.info(section))
    most = int(told.get("maxmemory", 0))
    replica = told.get("role") == "slave" and bool(told.get("slave_read_only", 1))
    written = (told.get("aof_last_write_status", "ok"), told.get("rdb_last_bgsave_status", "ok"))
    found: dict[Condition, bool] = {
        "full": 0 < most < int(told.get("used_memory", 0)),
        "read_only": replica,
        "loading": bool(told.get("loading")),
        "disk": any(status != "ok" for status in written),
    }
    assert set(found) == set(get_args(Condition))
    return found
