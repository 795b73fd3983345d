"""The Lua scripts (`lua/*.lua`). Each change of a part's state is one script, so it is atomic. The
shared code (`lua/shared`) is put before each script.

All times are seconds from Redis TIME, so that clocks of two hosts are never compared. The record of
a job has the state of its parts. The execution that `start` wrote to it ("execution:<index>") owns
the part; any other is rejected. If the same execution or call retries a change because the first
answer was lost, the change is made once and the answer is the same. End states are written once
("outcome:<index>") and never change, whatever RQ's own tools do to the RQ hash later. If those
tools cancel, stop or delete a part before its end, its job is canceled when a script next reads the
part.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, Final

import redis

from pathar.contract import MAX_IMAGES, PRIORITIES
from runtime.settings import LONGEST_TTL_S
from store import keys

RETRIES = 3
"""How often a part is retried after its worker died or could not draw it."""
LOST_WORKER: Final = "lost worker"
LOST_REASON = "lost worker: each worker that drew this image died"
"""Cause and reason of a part that failed because its workers died."""
GONE_S = 7 * 86400
"""How long an expired job's id is remembered."""
BOOKED_S = 30
"""How long a booking stays valid after its time."""
CAUTION = 0.8
"""The share of the measured rate that bookings rely on."""
OVERBOOKING = 1.1
"""The factor by which a booked order may exceed a limit, in case the measured rate was too high."""
UNKNOWN_S = 30
"""The time to wait while no worker has measured a rate."""
EARLY_S = 0.5
"""How much earlier than its booking an order may come."""
REFUSED_S = 30
"""How long the answer to a refused order is kept. redis-py's retries take less."""
MOST_BOOKINGS = 10_000
"""The most bookings that one owner may have in one queue."""
CLOCK_S = 86400
"""How long the virtual clocks of an unused queue are kept."""
KEPT_S = LONGEST_TTL_S + 90 * 86400
"""How long an inactive owner's lists are kept. A job in them may wait for 90 days and then keep its
results for the longest time that can be set, so it expires before the lists."""
RECORD_BYTES = 16384
"""The bytes that a job counts beside its images: its record with the longest URL, its events, which
Redis stores in blocks of 4 KiB, and its entries in lists."""
PART_BYTES = 2560
"""The bytes that an image counts until its job ends: RQ's hash, and its entry in a queue or its
execution. Until it is drawn, the largest size of its files counts as well."""
IMAGE_BYTES = 2560
"""The bytes that a finished image counts beside its files after its job has ended: their entries,
and what Redis adds to round up the memory of four files. At most PART_BYTES, so that a finished
image never counts more than one that waits."""
GONE_BYTES = 512
"""The bytes that the id of an expired job counts while it is remembered."""
TIDIED = 100
"""The most entries of an owner's list that a script checks in one call."""

log = logging.getLogger("pathar.store")

_READ = frozenset(("snapshot", "summaries", "part", "statistics"))
"""Scripts that only read. They declare no flags, so a full Redis and a replica run them."""
_GROW = frozenset(("submit", "claim", "start", "adopt"))
"""Scripts that start something. A full Redis refuses them before they write. It runs all others:
they end something, free memory or renew leases. So a full Redis still accepts the results of the
images that are in slots."""
_SHARED = ("basics", "events", "rq", "states", "line", "notices", "ends")
"""In this order: each file uses those before it."""
_CONSTANTS: Mapping[str, str | float | tuple[str, ...]] = {
    name: value
    for name, value in {**vars(keys), **globals()}.items()
    if name.isupper() and not name.startswith("_")
} | {"PRIORITIES": PRIORITIES, "MAX_IMAGES": MAX_IMAGES}
"""The constants above and in `store/keys.py`; they have the same names in Lua."""


class Script:
    """One of the scripts, on one Redis. Thread-safe, as its client is.

    `damaged` is called with the number of records that the script could not read.
    """

    def __init__(
        self, client: redis.Redis, name: str, damaged: Callable[[int], None] | None = None
    ) -> None:
        self._script = client.register_script(script(name))
        self._damaged = damaged

    def __call__(self, *args: str | int | float | bytes) -> Any:
        """Run the script; returns its answer."""
        answer, damaged = self._script(args=args)
        if damaged:
            log.warning("%d records in Redis could not be read", damaged)
            if self._damaged is not None:
                self._damaged(damaged)
        return answer


UNREADABLE = (AttributeError, KeyError, RecursionError, TypeError, ValueError)
"""What reading a damaged or forged record can raise."""


def unreadable(what: str, error: Exception) -> None:
    """Log that a record in Redis cannot be read. The caller treats it as missing."""
    log.warning("the record of %.200s in Redis cannot be read: %.200r", what, error)


def script(name: str) -> str:
    """The text of one script, preceded by the constants and the shared code."""
    constants = (f"local {name} = {_literal(value)}" for name, value in _CONSTANTS.items())
    shared = (_read(f"shared/{each}") for each in _SHARED)
    body = ["local function run()", _read(name), "end", "return {run() or false, damaged}"]
    text = "\n".join([*constants, *shared, *body])
    if name in _READ:
        return text
    # Without this line Redis checks its memory only at a script's first write.
    return f"#!lua flags={'' if name in _GROW else 'allow-oom'}\n{text}"


def _read(name: str) -> str:
    return (files("store") / "lua" / f"{name}.lua").read_text()


def _literal(value: str | float | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return "{" + ", ".join(map(_literal, value)) + "}"
    return f"'{value}'" if isinstance(value, str) else repr(value)
