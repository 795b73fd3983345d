"""`Client` and `AsyncClient`: pairs from a service, as objects.

    with Client() as client:  # PATHAR_URL, PATHAR_API_KEY
        for pair in client.stream("histology", n=100):
            pair.image.save(f"{pair.index}.png")

Both carry out the flows of `flows.py`. Knows nothing of models or Redis.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack
from urllib.parse import urlsplit

import httpx

from pathar import flows
from pathar.errors import UsageError
from pathar.pairs import Event, Job, Label, Pair, Priority, Status

DEFAULT_URL = "http://127.0.0.1:8000"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
T = TypeVar("T")


class Settings(TypedDict, total=False):
    """How pairs are drawn; what is not given is the model's default."""

    model: str
    seed: int
    cfg_scale: float
    temperature: float
    top_k: int
    top_p: float
    priority: Priority


class _Base:
    """What both clients know: where the service is, the key, and how long to be patient."""

    def __init__(
        self, url: str | None = None, key: str | None = None, *, patience: float = 300.0
    ) -> None:
        self.url = url or os.environ.get("PATHAR_URL") or DEFAULT_URL
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"url {self.url!r}: expected a URL such as {DEFAULT_URL}")
        key = key or os.environ.get("PATHAR_API_KEY")
        self._patience = flows.Patience(patience)
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": TIMEOUT,
            # A proxy that is set for the outside world cannot reach this machine's loopback.
            "trust_env": parts.hostname not in LOOPBACK,
        }


class Client(_Base):
    """Talks to one service. Raises the errors of `pathar.errors`, UsageError for a wrong URL.

    `patience`: seconds in a row that it waits for a service that is away or full.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, patience: float = 300.0
    ) -> None:
        super().__init__(url, key, patience=patience)
        self._http = httpx.Client(**self._options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(
        self,
        label: str,
        n: int = 1,
        *,
        job_id: str | None = None,
        progress: bool | None = None,
        **settings: Unpack[Settings],
    ) -> list[Pair]:
        """Draw `n` pairs and return them in order; shows a bar where somebody is looking."""
        pairs = self.stream(label, n, job_id=job_id, **settings)
        return sorted(_shown(pairs, n, progress), key=lambda pair: pair.index)

    def stream(
        self, label: str, n: int = 1, *, job_id: str | None = None, **settings: Unpack[Settings]
    ) -> Iterator[Pair]:
        """Draw `n` pairs and give each as soon as it is finished."""
        order = {"label": label, "n": n, **settings}
        return self._pairs(flows.draw(order, job_id, self._patience))

    def submit(
        self, label: str, n: int = 1, *, job_id: str | None = None, **settings: Unpack[Settings]
    ) -> Job:
        """Make a job and do not wait for it."""
        order = {"label": label, "n": n, **settings}
        return self._run(flows.submit(order, job_id, self._patience))

    def job(self, job_id: str) -> Job:
        """A job's state."""
        return self._run(flows.look(job_id, self._patience))

    def jobs(self, *, status: Status | None = None, label: str | None = None) -> Iterator[Job]:
        """Your jobs, the newest first."""
        cursor = None
        while True:
            params = {"status": status, "label": label, "cursor": cursor}
            found, cursor = self._run(flows.page(params, self._patience))
            yield from found
            if cursor is None:
                return

    def cancel(self, job_id: str) -> Job:
        """End a job; one that has ended stays as it is."""
        return self._run(flows.cancel(job_id, self._patience))

    def events(self, job_id: str, after: str | None = None) -> Iterator[Event]:
        """What happens to a job until it ends, after the event `after` or from its beginning."""
        headers = {"Last-Event-ID": after} if after else {}
        with self._http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
            if not answer.is_success:
                answer.read()
                raise flows.error_of(answer)
            parser = _EventParser()
            for line in answer.iter_lines():
                yield from parser.feed(line)

    def labels(self) -> list[Label]:
        """What can be asked for."""
        return self._run(flows.labels(self._patience))

    def ready(self) -> bool:
        """Whether the service answers and has a warm worker."""
        try:
            return self._http.get("/readyz", timeout=2).is_success
        except httpx.HTTPError:
            return False

    def _run(self, flow: flows.Flow[T]) -> T:
        try:
            effect = next(flow)
            while True:
                effect = flow.send(self._do(effect))
        except StopIteration as end:
            result: T = end.value
            return result

    def _pairs(self, flow: flows.Flow[None]) -> Iterator[Pair]:
        answer: flows.Answer = None
        while True:
            try:
                effect = flow.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(effect, flows.Give):
                yield effect.pair
            else:
                answer = self._do(effect)

    def _do(self, effect: flows.Effect) -> flows.Answer:
        if isinstance(effect, flows.Pause):
            time.sleep(effect.seconds)
            return None
        assert isinstance(effect, flows.Send)
        try:
            return self._http.request(
                effect.method, effect.path, json=effect.json, params=effect.params
            )
        except httpx.TransportError as error:
            return error


class AsyncClient(_Base):
    """`Client` for asyncio: the same methods, awaited or iterated with `async for`."""

    def __init__(
        self, url: str | None = None, key: str | None = None, *, patience: float = 300.0
    ) -> None:
        super().__init__(url, key, patience=patience)
        self._http = httpx.AsyncClient(**self._options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def generate(
        self,
        label: str,
        n: int = 1,
        *,
        job_id: str | None = None,
        progress: bool | None = None,
        **settings: Unpack[Settings],
    ) -> list[Pair]:
        """Draw `n` pairs and return them in order; shows a bar where somebody is looking."""
        found = []
        with _bar(n, progress) as bar:
            async for pair in self.stream(label, n, job_id=job_id, **settings):
                found.append(pair)
                bar.update()
        return sorted(found, key=lambda pair: pair.index)

    async def stream(
        self, label: str, n: int = 1, *, job_id: str | None = None, **settings: Unpack[Settings]
    ) -> AsyncIterator[Pair]:
        """Draw `n` pairs and give each as soon as it is finished."""
        flow = flows.draw({"label": label, "n": n, **settings}, job_id, self._patience)
        answer: flows.Answer = None
        while True:
            try:
                effect = flow.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(effect, flows.Give):
                yield effect.pair
            else:
                answer = await self._do(effect)

    async def submit(
        self, label: str, n: int = 1, *, job_id: str | None = None, **settings: Unpack[Settings]
    ) -> Job:
        """Make a job and do not wait for it."""
        order = {"label": label, "n": n, **settings}
        return await self._run(flows.submit(order, job_id, self._patience))

    async def job(self, job_id: str) -> Job:
        """A job's state."""
        return await self._run(flows.look(job_id, self._patience))

    async def jobs(
        self, *, status: Status | None = None, label: str | None = None
    ) -> AsyncIterator[Job]:
        """Your jobs, the newest first."""
        cursor = None
        while True:
            params = {"status": status, "label": label, "cursor": cursor}
            found, cursor = await self._run(flows.page(params, self._patience))
            for job in found:
                yield job
            if cursor is None:
                return

    async def cancel(self, job_id: str) -> Job:
        """End a job; one that has ended stays as it is."""
        return await self._run(flows.cancel(job_id, self._patience))

    async def events(self, job_id: str, after: str | None = None) -> AsyncIterator[Event]:
        """What happens to a job until it ends, after the event `after` or from its beginning."""
        headers = {"Last-Event-ID": after} if after else {}
        async with self._http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
            if not answer.is_success:
                await answer.aread()
                raise flows.error_of(answer)
            parser = _EventParser()
            async for line in answer.aiter_lines():
                for event in parser.feed(line):
                    yield event

    async def labels(self) -> list[Label]:
        """What can be asked for."""
        return await self._run(flows.labels(self._patience))

    async def _run(self, flow: flows.Flow[T]) -> T:
        try:
            effect = next(flow)
            while True:
                effect = flow.send(await self._do(effect))
        except StopIteration as end:
            result: T = end.value
            return result

    async def _do(self, effect: flows.Effect) -> flows.Answer:
        if isinstance(effect, flows.Pause):
            await asyncio.sleep(effect.seconds)
            return None
        assert isinstance(effect, flows.Send)
        try:
            return await self._http.request(
                effect.method, effect.path, json=effect.json, params=effect.params
            )
        except httpx.TransportError as error:
            return error


class _EventParser:
    """Server-sent events from their lines, as far as this service uses the format."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> Iterator[Event]:
        if line:
            name, _, value = line.partition(":")
            self._fields[name] = value.removeprefix(" ")
            return
        fields, self._fields = self._fields, {}
        if "data" in fields:
            data: Mapping[str, Any] = json.loads(fields["data"])
            yield Event(fields.get("id", ""), fields.get("event", ""), data)


def _shown(pairs: Iterable[Pair], n: int, progress: bool | None) -> Iterator[Pair]:
    with _bar(n, progress) as bar:
        for pair in pairs:
            yield pair
            bar.update()


def _bar(n: int, progress: bool | None) -> Any:
    from tqdm.auto import tqdm

    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(total=n, unit="pair", disable=not (watched if progress is None else progress))
