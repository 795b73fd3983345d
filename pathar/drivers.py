"""Runs flows, blocking or with asyncio: the only code of the clients that uses sockets.

Streams have a connection pool of their own, so that many open streams cannot block requests.

A connection belongs to one process: two processes on one connection would read each other's
answers. After a fork the child opens its own. It does not close the parent's, which would send
bytes (a TLS close, say) on the parent's connection. A stream that was open before the fork is
opened again, as after a lost connection.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import aclosing, closing
from functools import partial
from typing import Any, Generic, TypeVar

import httpx

from pathar.errors import ServiceError, UsageError
from pathar.flows import Answer, Flow, Give, Pause, Read, Send, giving, next_effect

CONNECT_S, READ_S = 10.0, 30.0
"""The longest time-outs of a request. The service pings a stream every 15 s."""
POOL_S = 1.0
"""How long a stream waits for a free connection; after that the client polls the job."""
STREAMS = httpx.Limits(max_connections=64, max_keepalive_connections=8)
ERRORS = (ServiceError, UsageError)
"""What flows raise. Its traceback ends here: how a flow came to it helps nobody who reads it."""
T = TypeVar("T")


class _PerProcess(Generic[T]):
    """A value that each process makes for itself."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._of_parents: list[T] = []
        self._process, self._here = os.getpid(), make()

    def is_ours(self) -> bool:
        """Whether this process has made its value."""
        return os.getpid() == self._process

    def get(self) -> T:
        """The value of this process, made on first use."""
        if not self.is_ours():
            self._of_parents.append(self._here)  # kept: garbage collection would close it
            self._process, self._here = os.getpid(), self._make()
        return self._here


Kind = TypeVar("Kind", httpx.Client, httpx.AsyncClient)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Those that are trusted, read once: that takes longer than most requests."""
    return httpx.create_ssl_context()


def _pools(kind: Callable[..., Kind], options: Mapping[str, Any]) -> tuple[Kind, Kind]:
    """Connections for requests, and those for streams."""
    trusted = {**options, "verify": _certificates()}
    return kind(**trusted), kind(**trusted, limits=STREAMS)


class Driver:
    """Runs flows; `options` are httpx.Client's. Can be pickled, without its connections."""

    def __init__(self, **options: Any) -> None:
        self._made = _PerProcess(lambda: _pools(httpx.Client, options))
        self._options = options

    def clients(self) -> tuple[httpx.Client, httpx.Client]:
        """This process's connections for requests, and those for streams."""
        return self._made.get()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Driver, **self._options), ()

    def close(self) -> None:
        """Close this process's connections."""
        if self._made.is_ours():
            for client in self.clients():
                client.close()

    def ready(self) -> bool:
        """Whether the service answers and has a warm worker."""
        try:
            return self.clients()[0].get("/readyz", timeout=2).is_success
        except httpx.HTTPError:
            return False

    def run(self, flow: Flow[T]) -> T:
        """What a flow returns."""
        result: T
        try:
            [result] = self.each(giving(flow))
        except ERRORS as error:
            raise error.with_traceback(None) from None
        return result

    def each(self, flow: Flow[None]) -> Generator[Any, None, None]:
        """What a flow gives."""
        try:
            with closing(_Runner(self)) as runner:
                answer: Answer = None
                while (effect := next_effect(flow, answer)) is not None:
                    answer = None
                    if isinstance(effect, Give):
                        yield effect.what
                    else:
                        answer = runner.do(effect)
        except ERRORS as error:
            raise error.with_traceback(None) from None


class AsyncDriver:
    """`Driver` for asyncio."""

    def __init__(self, **options: Any) -> None:
        self._made = _PerProcess(lambda: _pools(httpx.AsyncClient, options))
        self._options = options

    def clients(self) -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
        """As of `Driver`."""
        return self._made.get()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(AsyncDriver, **self._options), ()

    async def close(self) -> None:
        """Close this process's connections."""
        if self._made.is_ours():
            for client in self.clients():
                await client.aclose()

    async def ready(self) -> bool:
        """Whether the service answers and has a warm worker."""
        try:
            return (await self.clients()[0].get("/readyz", timeout=2)).is_success
        except httpx.HTTPError:
            return False

    async def run(self, flow: Flow[T]) -> T:
        """What a flow returns."""
        result: T
        try:
            [result] = [each async for each in self.each(giving(flow))]
        except ERRORS as error:
            raise error.with_traceback(None) from None
        return result

    async def each(self, flow: Flow[None]) -> AsyncGenerator[Any, None]:
        """What a flow gives."""
        try:
            async with aclosing(_AsyncRunner(self)) as runner:
                answer: Answer = None
                while (effect := next_effect(flow, answer)) is not None:
                    answer = None
                    if isinstance(effect, Give):
                        yield effect.what
                    else:
                        answer = await runner.do(effect)
        except ERRORS as error:
            raise error.with_traceback(None) from None


class _Runner:
    """Runs the effects of one flow, and holds the stream that it reads."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._process = os.getpid()
        self._stream: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def do(self, effect: Send | Read | Pause) -> Answer:
        try:
            if isinstance(effect, Pause):
                time.sleep(effect.seconds)
                return None
            if isinstance(effect, Read):
                return self._read()
            requests, streams = self._driver.clients()
            if not effect.stream:
                return requests.send(_request(requests, effect))
            self.close()
            self._process = os.getpid()
            self._stream = streams.send(_request(streams, effect), stream=True)
            if not self._stream.is_success:
                self._stream.read()
            self._pieces = self._stream.iter_bytes()
            return self._stream
        except httpx.RequestError as error:
            return error

    def _read(self) -> bytes:
        if self._stream is not None and os.getpid() != self._process:
            raise _forked(self._stream)
        return next(self._pieces, b"")

    def close(self) -> None:
        if self._stream is not None and os.getpid() == self._process:
            self._stream.close()


class _AsyncRunner:
    """`_Runner` for asyncio."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver
        self._process = os.getpid()
        self._stream: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes]

    async def do(self, effect: Send | Read | Pause) -> Answer:
        try:
            if isinstance(effect, Pause):
                await asyncio.sleep(effect.seconds)
                return None
            if isinstance(effect, Read):
                return await self._read()
            requests, streams = self._driver.clients()
            if not effect.stream:
                return await requests.send(_request(requests, effect))
            await self.aclose()
            self._process = os.getpid()
            self._stream = await streams.send(_request(streams, effect), stream=True)
            if not self._stream.is_success:
                await self._stream.aread()
            self._pieces = self._stream.aiter_bytes()
            return self._stream
        except httpx.RequestError as error:
            return error

    async def _read(self) -> bytes:
        if self._stream is not None and os.getpid() != self._process:
            raise _forked(self._stream)
        return await anext(self._pieces, b"")

    async def aclose(self) -> None:
        if self._stream is not None and os.getpid() == self._process:
            await self._stream.aclose()


def _forked(stream: httpx.Response) -> httpx.RequestError:
    return httpx.ReadError(
        "begun by the process that this one was forked from", request=stream.request
    )


def _request(http: httpx.Client | httpx.AsyncClient, send: Send) -> httpx.Request:
    read, connect = min(send.seconds, READ_S), min(send.seconds, CONNECT_S)
    return http.build_request(
        send.method,
        send.path,
        json=send.json,
        params=send.params,
        headers=send.headers,
        timeout=httpx.Timeout(read, connect=connect, pool=POOL_S if send.stream else read),
    )
