"""The Lua scripts (`lua/*.lua`): every change of a part's state is one of them, hence atomic. What
they share stands before each of them (`lua/shared`).

All times are seconds from Redis TIME, so that clocks of two hosts are never compared. The record of
a job says in what state its parts are. A part is owned by the execution that `start` wrote there
("execution:<index>"); any other is refused. A change that is asked for twice by the same execution
or call, since the first answer was lost, is made once and answered alike. End states are written
there once ("outcome:<index>") and never change, whatever RQ's own tools do to the RQ hash later.
What those tools cancel, stop or delete before its end cancels its job as soon as anybody comes
across it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from model.contract import PRIORITIES
from runtime.settings import LONGEST_TTL
from store import keys

RETRIES = 3
"""How often a part is drawn again after the worker that held it died."""
GONE_S = 7 * 86400
"""How long an expired job's id is remembered."""
GRACE_S = 30
"""How long a booked place is kept for somebody who comes late."""
CAUTION = 0.8
"""The share of the measured rate that bookings count on."""
SPARE = 1.1
"""How far over a limit somebody who booked may go, where the rate was measured too high."""
UNKNOWN_S = 30
"""What to wait where no worker has measured a rate yet."""
EARLY_S = 0.5
"""How much too early somebody who booked may come."""
MOST_BOOKINGS = 10_000
"""Places that one owner may have booked in one queue."""
CLOCK_S = 86400
"""How long the places in line of a queue that nobody uses are remembered."""
KEPT_S = LONGEST_TTL + 90 * 86400
"""How long lists of an owner that does nothing are kept: what they name may wait for 90 days, then
be kept for the longest that can be set, and is gone before them."""
TIDIED = 100
"""How many entries of such a list are looked at in one go."""

_SHARED = ("basics", "events", "rq", "states", "line", "ends")
"""In this order, as each uses those before it."""
_CONSTANTS: Mapping[str, str | float | tuple[str, ...]] = {
    name: value
    for name, value in {"PRIORITIES": PRIORITIES, **vars(keys), **globals()}.items()
    if name.isupper() and not name.startswith("_")
}
"""What stands here and in `store/keys.py` has the same name in Lua."""


def script(name: str) -> str:
    """The text of one script, with what all of them share before it."""
    lines = [f"local {name} = {_literal(value)}" for name, value in _CONSTANTS.items()]
    shared = (_read(f"shared/{each}") for each in _SHARED)
    return "\n".join([*lines, *shared, _read(name)])


def _read(name: str) -> str:
    return (files("store") / "lua" / f"{name}.lua").read_text()


def _literal(value: str | float | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return "{" + ", ".join(map(_literal, value)) + "}"
    return f"'{value}'" if isinstance(value, str) else repr(value)
