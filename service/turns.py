"""Turns: of what costs most to answer, one key has few requests at work at once.

The others wait for their turn, and take no thread meanwhile; so a key that asks for much keeps
nobody waiting but itself. Knows no routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

AT_ONCE = 2
"""The state of a job of 1,000 images takes some 20 ms of a core."""


class Turns:
    """Of one process, by owner."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def take(self, owner_id: str) -> AsyncIterator[None]:
        """Wait for one of an owner's turns, and hold it."""
        line, there = self._lines.get(owner_id) or (asyncio.Semaphore(AT_ONCE), 0)
        self._lines[owner_id] = (line, there + 1)
        try:
            async with line:
                yield
        finally:
            line, there = self._lines[owner_id]
            if there > 1:
                self._lines[owner_id] = (line, there - 1)
            else:
                del self._lines[owner_id]
