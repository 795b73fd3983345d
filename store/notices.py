"""Webhooks to send: jobs that have ended and whose request named a URL. Knows no HTTP.

Each try has a lease: if its process dies, another process retries. So delivery is at least once
while the job's record is kept, and a receiver may get a message twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import redis

from store import keys
from store.scripts import Script

TRY_S = 60
"""How long a process has for one try before another process retries."""


@dataclass(frozen=True)
class Notice:
    """A job whose webhook is due, and how many tries have failed."""

    owner: str
    job_id: str
    tries: int


class NoticeStore:
    """The notices of all owners. Thread-safe, as its client is."""

    def __init__(self, client: redis.Redis) -> None:
        self._notice = Script(client, "notice")
        self._noticed = Script(client, "noticed")

    def next(self, without: Iterable[str] = ()) -> Notice | None:
        """The next due notice of an owner that is not in `without`; None when there is none."""
        found = self._notice(TRY_S, *without)
        if found is None:
            return None
        owner, job_id = keys.split_owned_id(found[0].decode())
        return Notice(owner, job_id, int(found[1]))

    def delivered(self, notice: Notice) -> None:
        """Record that the receiver accepted it."""
        self._settle(notice, "", "")

    def failed(self, notice: Notice, reason: str, again_s: float | None) -> None:
        """Record a failed try. The next try is in `again_s` seconds; None for no retry."""
        self._settle(notice, "" if again_s is None else f"{again_s:.3f}", reason)

    def _settle(self, notice: Notice, again: str, reason: str) -> None:
        self._noticed(keys.owned_id(notice.owner, notice.job_id), notice.owner, again, reason)
