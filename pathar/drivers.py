"""Carrying out flows, at once or with asyncio: the only code of the clients that knows sockets.

Streams have connections of their own, so that many that are followed at once cannot keep away the
requests which they lead to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing, closing
from typing import Any, TypeVar

import httpx

from pathar.flows import Answer, Flow, Give, Pause, Read, Send, giving, next_effect

CONNECT_S = (1.0, 10.0)
READ_S = (5.0, 30.0)
"""The least and the most time that is given to a request; the service pings a stream every 15 s."""
POOL_S = 1.0
"""How long a stream waits for a connection where too many are open; jobs are looked at then."""
STREAMS = httpx.Limits(max_connections=64, max_keepalive_connections=8)
T = TypeVar("T")


class Driver:
    """Carries out flows; `options` are httpx.Client's."""

    def __init__(self, **options: Any) -> None:
        self._requests = httpx.Client(**options)
        self._streams = httpx.Client(**options, limits=STREAMS)

    def close(self) -> None:
        """Close the connections."""
        self._requests.close()
        self._streams.close()

    def ready(self) -> bool:
        """Whether the service answers and has a warm worker."""
        try:
            return self._requests.get("/readyz", timeout=2).is_success
        except httpx.HTTPError:
            return False

    def run(self, flow: Flow[T]) -> T:
        """What a flow returns."""
        result: T
        [result] = self.each(giving(flow))
        return result

    def each(self, flow: Flow[None]) -> Generator[Any, None, None]:
        """What a flow gives."""
        with closing(_Hands(self._requests, self._streams)) as hands:
            answer: Answer = None
            while (effect := next_effect(flow, answer)) is not None:
                answer = None
                if isinstance(effect, Give):
                    yield effect.what
                else:
                    answer = hands.do(effect)


class AsyncDriver:
    """`Driver` for asyncio."""

    def __init__(self, **options: Any) -> None:
        self._requests = httpx.AsyncClient(**options)
        self._streams = httpx.AsyncClient(**options, limits=STREAMS)

    async def close(self) -> None:
        """Close the connections."""
        await self._requests.aclose()
        await self._streams.aclose()

    async def ready(self) -> bool:
        """Whether the service answers and has a warm worker."""
        try:
            return (await self._requests.get("/readyz", timeout=2)).is_success
        except httpx.HTTPError:
            return False

    async def run(self, flow: Flow[T]) -> T:
        """What a flow returns."""
        result: T
        [result] = [each async for each in self.each(giving(flow))]
        return result

    async def each(self, flow: Flow[None]) -> AsyncGenerator[Any, None]:
        """What a flow gives."""
        async with aclosing(_AsyncHands(self._requests, self._streams)) as hands:
            answer: Answer = None
            while (effect := next_effect(flow, answer)) is not None:
                answer = None
                if isinstance(effect, Give):
                    yield effect.what
                else:
                    answer = await hands.do(effect)


class _Hands:
    """Do what one flow wants done, and hold the stream that it reads."""

    def __init__(self, requests: httpx.Client, streams: httpx.Client) -> None:
        self._requests = requests
        self._streams = streams
        self._stream: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def do(self, effect: Send | Read | Pause) -> Answer:
        try:
            if isinstance(effect, Pause):
                time.sleep(effect.seconds)
                return None
            if isinstance(effect, Read):
                return next(self._pieces, b"")
            if not effect.stream:
                return self._requests.send(_request(self._requests, effect))
            self.close()
            self._stream = self._streams.send(_request(self._streams, effect), stream=True)
            if not self._stream.is_success:
                self._stream.read()
            self._pieces = self._stream.iter_bytes()
            return self._stream
        except httpx.RequestError as error:
            return error

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


class _AsyncHands:
    """`_Hands` for asyncio."""

    def __init__(self, requests: httpx.AsyncClient, streams: httpx.AsyncClient) -> None:
        self._requests = requests
        self._streams = streams
        self._stream: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes]

    async def do(self, effect: Send | Read | Pause) -> Answer:
        try:
            if isinstance(effect, Pause):
                await asyncio.sleep(effect.seconds)
                return None
            if isinstance(effect, Read):
                return await anext(self._pieces, b"")
            if not effect.stream:
                return await self._requests.send(_request(self._requests, effect))
            await self.aclose()
            self._stream = await self._streams.send(_request(self._streams, effect), stream=True)
            if not self._stream.is_success:
                await self._stream.aread()
            self._pieces = self._stream.aiter_bytes()
            return self._stream
        except httpx.RequestError as error:
            return error

    async def aclose(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()


def _request(http: httpx.Client | httpx.AsyncClient, send: Send) -> httpx.Request:
    read, connect = (min(most, max(least, send.seconds)) for least, most in (READ_S, CONNECT_S))
    return http.build_request(
        send.method,
        send.path,
        json=send.json,
        params=send.params,
        headers=send.headers,
        timeout=httpx.Timeout(read, connect=connect, pool=POOL_S if send.stream else read),
    )
