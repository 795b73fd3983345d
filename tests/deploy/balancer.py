"""A load balancer such as a Service of Kubernetes: it passes connections on, not requests.

Each new connection goes to the next process that is ready; it stays there, whatever becomes of that
process. That one is not ready any more is noticed some time after the fact. Nothing is sent twice,
so what fails behind it fails before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from itertools import count

import httpx

LOOK_S = 0.25
"""Pause between two looks at /readyz."""
PIECE = 1 << 16


class Balancer:
    """For processes on this machine, by their ports."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = ports
        self._ready: tuple[int, ...] = ()
        self._turn = count()

    def serves(self, *ports: int) -> bool:
        """Whether it knows these, and no others, to be ready."""
        return set(ports) == set(self._ready)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Its URL, for as long as the context lasts."""
        watchers = [asyncio.create_task(self._watch(port)) for port in self._ports]
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        try:
            host, port = server.sockets[0].getsockname()
            yield f"http://{host}:{port}"
        finally:
            server.close()
            for each in watchers:
                each.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    async def _watch(self, port: int) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            while True:
                ready = False
                with suppress(httpx.HTTPError):
                    ready = (await http.get("/readyz")).status_code == 200
                others = tuple(each for each in self._ready if each != port)
                self._ready = (*others, port) if ready else others
                await asyncio.sleep(LOOK_S)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError), closing(writer):
            ready = sorted(self._ready)
            if not ready:
                return
            port = ready[next(self._turn) % len(ready)]
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
            with closing(there_writer):
                ways = [_copy(reader, there_writer), _copy(there_reader, writer)]
                tasks = [asyncio.create_task(way) for way in ways]
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in tasks:
                        task.cancel()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
