"""Jobs whose numerics nobody draws any more, say after torch was upgraded on every worker.

A job is bound to one model version and one numerics, so that all its images have the same bits.
When no worker of its numerics has been seen for a while, a worker of the same version and other
numerics takes over jobs that have no image yet; a job that has some cannot be completed with the
same bits and fails with that reason. Jobs of another version wait for their workers, for a week:
then they fail, so that nobody waits for ever.
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
"""A queue whose workers were last seen this long ago has none."""

ABANDONED_S = 7 * 86400.0
"""A model whose workers were last seen this long ago will not come back."""
AT_ONCE = 100
"""Jobs that fail in one go, so that Redis is not held up."""

_NO_WORKER = "no worker of its model has come for a week; send the request again"
_REASON = (
    "its first images were drawn with numerics {old}, which no worker has any more; "
    "send the request again"
)


def adopt_orphans(
    client: redis.Redis,
    model: ModelInfo,
    *,
    result_ttl: int,
    damaged: Callable[[int], None] | None = None,
) -> int:
    """Bind orphaned jobs of this version to `model`'s numerics, and give up what is a week old;
    returns how many jobs moved. `damaged` is told how many records could not be read."""
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
        # What its workers held when they died is in no line: only a sweep finds it.
        PartStore(client, queue, "", result_ttl=result_ttl, damaged=damaged).sweep()
        if abandoned:
            abandon(queue, result_ttl, _NO_WORKER, AT_ONCE)
            continue
        reason = _REASON.format(old=old.numerics)
        moved += int(adopt(queue, target, model.numerics, result_ttl, reason))
    return moved
