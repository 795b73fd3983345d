"""Finds out why Redis refuses writes although it answers: from error replies and from INFO.

Knows no keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import redis
from redis.exceptions import MasterDownError

Condition = Literal["full", "read_only", "loading", "disk"]
"""Redis is over `maxmemory`, is a replica, still loads its file, or cannot write to its disk. It
also refuses reads while it loads. So may a replica without its master, by its settings."""

_SIGNS: Mapping[Condition, tuple[tuple[type[Exception], ...], tuple[str, ...]]] = {
    "full": ((redis.OutOfMemoryError,), ("OOM ",)),
    "read_only": ((redis.ReadOnlyError, MasterDownError), ("READONLY ", "MASTERDOWN ")),
    "loading": ((redis.BusyLoadingError,), ("LOADING ",)),
    "disk": ((), ("MISCONF ",)),
}
"""For each condition, redis-py's error classes, and the codes that begin other error replies."""


def condition(error: Exception) -> Condition | None:
    """The condition that caused this error; None for any other error."""
    for each, (kinds, codes) in _SIGNS.items():
        if isinstance(error, kinds):
            return each
        if isinstance(error, redis.ResponseError) and str(error).startswith(codes):
            return each
    return None


def conditions(client: redis.Redis) -> dict[Condition, bool]:
    """Whether each condition holds now. RedisError, for example when the user may not run INFO."""
    told: dict[str, Any] = {}
    for section in ("memory", "persistence", "replication"):
        told.update(client.info(section))
    most, free = int(told.get("maxmemory", 0)), int(told.get("mem_not_counted_for_evict", 0))
    replica = told.get("role") == "slave" and bool(told.get("slave_read_only", 1))
    written = (told.get("aof_last_write_status", "ok"), told.get("rdb_last_bgsave_status", "ok"))
    found: dict[Condition, bool] = {
        "full": 0 < most < int(told.get("used_memory", 0)) - free,
        "read_only": replica,
        "loading": bool(told.get("loading")),
        "disk": any(status != "ok" for status in written),
    }
    assert set(found) == set(get_args(Condition))
    return found
