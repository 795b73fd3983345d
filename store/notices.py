"""Jobs whose end is to be sent to the URL that their request named. Knows no HTTP.

A try is leased: if its process dies, another one tries again. So a receiver may hear of an end
twice, and never less than once while the job's record is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import redis

from store import keys
from store.scripts import Script

LEASE_S = 60
"""How long a process has for one try before another process makes it."""


@dataclass(frozen=True)
class Notice:
    """A job whose end is to be sent now, and how many tries have failed."""

    owner: str
    job_id: str
    tries: int


class NoticeStore:
    """Notices of all owners. Thread-safe, as its client is."""

    def __init__(self, client: redis.Redis) -> None:
        self._notice = Script(client, "notice")
        self._noticed = Script(client, "noticed")

    def next(self, without: Iterable[str] = ()) -> Notice | None:
        """The next that is due of an owner who is not in `without`; None when there is none."""
        found = self._notice(LEASE_S, *without)
        if found is None:
            return None
        owner, job_id = keys.split_owned_id(found[0].decode())
        return Notice(owner, job_id, int(found[1]))

    def delivered(self, notice: Notice) -> None:
        """It has been received."""
        self._settle(notice, "", "")

    def failed(self, notice: Notice, reason: str, again_s: float | None) -> None:
        """It has not been received. The next try is in `again_s` seconds, None for no other."""
        self._settle(notice, "" if again_s is None else f"{again_s:.3f}", reason)

    def _settle(self, notice: Notice, again: str, reason: str) -> None:
        self._noticed(keys.owned_id(notice.owner, notice.job_id), notice.owner, again, reason)
