"""Orphaned jobs: no worker has their numerics, for example after torch was upgraded on all.

A job is bound to one model version and one numerics, so that all its images have the same bits.
When no worker of its numerics has been seen for ORPHANED_S, a worker of the same version with other
numerics takes over jobs without finished images. A job with finished images cannot be completed
with the same bits, so it fails with that reason. Jobs of another version wait a week for their
workers and then fail, so that no client waits forever.
"""

from __future__ import annotations

from collections.abc import Callable

import redis

from model.request import ModelInfo
from store import keys
from store.parts import PartStore
from store.registry import Registry
from store.scripts import Script

ORPHANED_S = 60.0
"""Seconds since the last heartbeat after which a queue counts as having no workers."""

ABANDONED_S = 7 * 86400.0
"""Seconds since the last heartbeat after which the workers of a queue are not expected back."""
MOST_ABANDONED = 100
"""Jobs that fail in one script call, so that Redis is not blocked for long."""

_NO_WORKER = "no worker of its model has run for a week; send the request again"
_REASON = (
    "its first images were drawn with numerics {old}, which no worker has now; "
    "send the request again"
)


def adopt_orphans(
    client: redis.Redis,
    model: ModelInfo,
    *,
    result_ttl: int,
    damaged: Callable[[int], None] | None = None,
) -> int:
    """Move orphaned jobs of this version to `model`'s numerics, and fail the jobs of abandoned
    queues. Returns how many jobs moved. `damaged` is called with the number of unreadable records.
    """
    said = Registry(client).published()
    adopt, abandon = (Script(client, name, damaged) for name in ("adopt", "abandon"))
    target = keys.queue_name(model.version, model.numerics)
    moved = 0
    for queue, seen in said.seen.items():
        old, silent_s = seen.info, said.now - seen.at
        abandoned = silent_s >= ABANDONED_S
        orphaned = old.version == model.version and silent_s >= ORPHANED_S
        if queue == target or not (abandoned or orphaned):
            continue
        # Parts that its workers held when they died are in no list: only a sweep finds them.
        PartStore(client, queue, "", result_ttl=result_ttl, damaged=damaged).sweep()
        if abandoned:
            abandon(queue, result_ttl, _NO_WORKER, MOST_ABANDONED)
            continue
        reason = _REASON.format(old=old.numerics)
        moved += int(adopt(queue, target, model.numerics, result_ttl, reason))
    return moved
