"""`Client` and `AsyncClient`: pairs from a service, as objects.

    with Client() as client:  # PATHAR_URL, PATHAR_API_KEY
        for pair in client.stream("histology", n=100):
            pair.image.save(f"{pair.index}.png")

What they do stands in `flows.py`, how it is carried out in `drivers.py`. Knows nothing of models or
Redis.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack
from urllib.parse import urlsplit

import httpx

from model.contract import Priority, Status
from pathar import flows
from pathar.drivers import AsyncDriver, Driver
from pathar.errors import UsageError
from pathar.files import whole_file
from pathar.pairs import Event, Job, Label, Pair

DEFAULT_URL = "http://127.0.0.1:8000"
QUOTES = ("'", '"', "`", "\u2018", "\u2019", "\u201c", "\u201d")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def read_key(text: str) -> str:
    """An API key from where it was written down, without the end of its line; "" for none.
    UsageError, which does not show it."""
    key = text.strip()
    expected = "expected one line of ASCII, as `pathar keys make` prints it"
    if key[:1] in QUOTES or key[-1:] in QUOTES:
        raise UsageError(f"key: it has quotes around it; {expected}")
    if key.lower().startswith("bearer"):
        raise UsageError(f"key: it begins with the word Bearer; {expected}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"key: {expected}")
    return key


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
        wrong = UsageError(f"url {self.url!r}: expected a URL such as {DEFAULT_URL}")
        try:
            parts, base = urlsplit(self.url), httpx.URL(self.url)
        except (ValueError, httpx.InvalidURL):
            raise wrong from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise wrong
        key = read_key(key or os.environ.get("PATHAR_API_KEY") or "")
        self._patience = patience
        self._options: dict[str, Any] = {
            "base_url": base,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            # A proxy that is set for the outside world cannot reach this machine's loopback.
            "trust_env": parts.hostname not in LOOPBACK,
        }


class Client(_Base):
    """Talks to one service. Raises the errors of `pathar.errors`, UsageError for a wrong URL or id.

    `patience`: seconds in a row that it waits for a service that is away or full, whether it is
    refused, cut off or not answered at all. One request is given 5 s at the least.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, patience: float = 300.0
    ) -> None:
        super().__init__(url, key, patience=patience)
        self._driver = Driver(**self._options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._driver.close()

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
        found = []
        with _bar(n, progress) as bar:
            for pair in self.stream(label, n, job_id=job_id, **settings):
                found.append(pair)
                bar.update()
        return sorted(found, key=lambda pair: pair.index)

    def stream(
        self, label: str, n: int = 1, *, job_id: str | None = None, **settings: Unpack[Settings]
    ) -> Generator[Pair, None, None]:
        """Draw `n` pairs and give each as soon as it is finished."""
        order = {"label": label, "n": n, **settings}
        return self._driver.each(flows.draw(order, job_id, self._patience))

    def submit(
        self, label: str, n: int = 1, *, job_id: str | None = None, **settings: Unpack[Settings]
    ) -> Job:
        """Make a job and do not wait for it."""
        order = {"label": label, "n": n, **settings}
        return self._driver.run(flows.submit(order, job_id, self._patience))

    def pairs(self, job_id: str) -> Generator[Pair, None, None]:
        """The pairs of a job of yours, each as soon as it is finished."""
        return self._driver.each(flows.pairs(job_id, self._patience))

    def archive(
        self, job_id: str, path: str | os.PathLike[str], *, progress: bool | None = None
    ) -> None:
        """Write all pairs of a finished job to a ZIP file, whole or not at all; NotFinished.

        Goes on where it broke off; shows a bar where somebody is looking.
        """
        with whole_file(Path(path)) as file, _bar(None, progress, "B") as bar:
            for done, total in self._driver.each(flows.archive(job_id, file, self._patience)):
                bar.total = total
                bar.update(done - bar.n)

    def job(self, job_id: str) -> Job:
        """A job's state."""
        return self._driver.run(flows.look(job_id, self._patience))

    def jobs(
        self, *, status: Status | None = None, label: str | None = None
    ) -> Generator[Job, None, None]:
        """Your jobs, the newest first."""
        return self._driver.each(flows.jobs({"status": status, "label": label}, self._patience))

    def cancel(self, job_id: str) -> Job:
        """End a job; one that has ended stays as it is."""
        return self._driver.run(flows.cancel(job_id, self._patience))

    def events(self, job_id: str, after: str | None = None) -> Generator[Event, None, None]:
        """What happens to a job until it ends, after the event `after` or from its beginning.

        Goes on where it was when the service was away; each event comes once.
        """
        return self._driver.each(flows.events(job_id, after, self._patience))

    def labels(self) -> list[Label]:
        """What can be asked for."""
        return self._driver.run(flows.labels(self._patience))

    def ready(self) -> bool:
        """Whether the service answers and has a warm worker."""
        return self._driver.ready()


class AsyncClient(_Base):
    """`Client` for asyncio: the same methods, awaited or iterated with `async for`.

    What is iterated and left before its end keeps a connection until it is closed:

        async with contextlib.aclosing(client.stream("blood", n=100)) as pairs:
            async for pair in pairs:
                break
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, patience: float = 300.0
    ) -> None:
        super().__init__(url, key, patience=patience)
        self._driver = AsyncDriver(**self._options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._driver.close()

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
            async with aclosing(self.stream(label, n, job_id=job_id, **settings)) as pairs:
                async for pair in pairs:
                    found.append(pair)
                    bar.update()
        return sorted(found, key=lambda pair: pair.index)

    def stream(
        self, label: str, n: int = 1, *, job_id: str | None = None, **settings: Unpack[Settings]
    ) -> AsyncGenerator[Pair, None]:
        """Draw `n` pairs and give each as soon as it is finished. Close it if you leave it."""
        order = {"label": label, "n": n, **settings}
        return self._driver.each(flows.draw(order, job_id, self._patience))

    async def submit(
        self, label: str, n: int = 1, *, job_id: str | None = None, **settings: Unpack[Settings]
    ) -> Job:
        """Make a job and do not wait for it."""
        order = {"label": label, "n": n, **settings}
        return await self._driver.run(flows.submit(order, job_id, self._patience))

    def pairs(self, job_id: str) -> AsyncGenerator[Pair, None]:
        """The pairs of a job of yours, each as soon as it is finished. Close it if you leave it."""
        return self._driver.each(flows.pairs(job_id, self._patience))

    async def archive(
        self, job_id: str, path: str | os.PathLike[str], *, progress: bool | None = None
    ) -> None:
        """Write all pairs of a finished job to a ZIP file, whole or not at all; NotFinished.

        Goes on where it broke off; shows a bar where somebody is looking.
        """
        with whole_file(Path(path)) as file, _bar(None, progress, "B") as bar:
            async with aclosing(
                self._driver.each(flows.archive(job_id, file, self._patience))
            ) as pieces:
                async for done, total in pieces:
                    bar.total = total
                    bar.update(done - bar.n)

    async def job(self, job_id: str) -> Job:
        """A job's state."""
        return await self._driver.run(flows.look(job_id, self._patience))

    def jobs(
        self, *, status: Status | None = None, label: str | None = None
    ) -> AsyncGenerator[Job, None]:
        """Your jobs, the newest first."""
        return self._driver.each(flows.jobs({"status": status, "label": label}, self._patience))

    async def cancel(self, job_id: str) -> Job:
        """End a job; one that has ended stays as it is."""
        return await self._driver.run(flows.cancel(job_id, self._patience))

    def events(self, job_id: str, after: str | None = None) -> AsyncGenerator[Event, None]:
        """What happens to a job until it ends, after the event `after` or from its beginning.

        Goes on where it was when the service was away; each event comes once. Close it if you
        leave it.
        """
        return self._driver.each(flows.events(job_id, after, self._patience))

    async def labels(self) -> list[Label]:
        """What can be asked for."""
        return await self._driver.run(flows.labels(self._patience))

    async def ready(self) -> bool:
        """Whether the service answers and has a warm worker."""
        return await self._driver.ready()


def _bar(total: int | None, progress: bool | None, unit: str = "pair") -> Any:
    from tqdm.auto import tqdm

    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    shown = watched if progress is None else progress
    return tqdm(total=total, unit=unit, unit_scale=unit == "B", disable=not shown)
