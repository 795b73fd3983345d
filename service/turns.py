"""Limits how many expensive requests of one key are answered at the same time.

The key's other requests wait without a thread. So a key with many requests delays only itself.
Knows no routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MOST_EXPENSIVE = 2
"""Expensive requests of one key at once. The state of a job of 1,000 images takes about 20 ms of a
core."""


class Turns:
    """The turns of one process, by owner."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def take(self, owner_id: str) -> AsyncIterator[None]:
        """Wait for one of an owner's turns, and hold it until the context ends."""
        line, there = self._lines.get(owner_id) or (asyncio.Semaphore(MOST_EXPENSIVE), 0)
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
