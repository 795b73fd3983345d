"""Why a Redis that answers refuses writes, from its error replies and from INFO.

Knows no keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import redis
from redis.exceptions import MasterDownError

Condition = Literal["full", "read_only", "loading", "disk"]
"""Why a Redis that answers refuses writes: it is over `maxmemory`, it is a replica, it still loads
its file (and refuses reads too), or it cannot write to its disk. A replica that has lost its master
may be set to refuse reads too."""

_SIGNS: Mapping[Condition, tuple[tuple[type[Exception], ...], tuple[str, ...]]] = {
    "full": ((redis.OutOfMemoryError,), ("OOM ",)),
    "read_only": ((redis.ReadOnlyError, MasterDownError), ("READONLY ", "MASTERDOWN ")),
    "loading": ((redis.BusyLoadingError,), ("LOADING ",)),
    "disk": ((), ("MISCONF ",)),
}
"""redis-py's classes of each, and the codes that begin an error without a class of its own."""


def condition(error: Exception) -> Condition | None:
    """Why Redis refused; None for any other error."""
    for each, (kinds, codes) in _SIGNS.items():
        if isinstance(error, kinds):
            return each
        if isinstance(error, redis.ResponseError) and str(error).startswith(codes):
            return each
    return None


def conditions(client: redis.Redis) -> dict[Condition, bool]:
    """Whether each condition holds now. RedisError, also when the user may not run INFO."""
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
