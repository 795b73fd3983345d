"""`Client` and `AsyncClient`: pairs from a service, as objects.

    with Client() as client:  # PATHAR_URL, PATHAR_API_KEY
        for pair in client.stream("histology", n=100):
            pair.image.save(f"{pair.index}.png")

`flows.py` says what a call does, `drivers.py` sends the requests. Knows nothing of models or Redis.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack
from urllib.parse import urlsplit

import httpx
from numpy.typing import ArrayLike

from pathar import flows, pulling
from pathar.contract import Priority, Setting, Status
from pathar.drivers import AsyncDriver, Driver
from pathar.errors import UsageError
from pathar.following import Progress
from pathar.given import Field, Given, Picture, decoded, encoded, given_form
from pathar.pair_files import whole_file
from pathar.pairs import Event, Job, Label, Pair, Pairs
from pathar.recipe import Asked, Format, Recipe
from pathar.retries import Patience

DEFAULT_URL = "http://127.0.0.1:8000"
QUOTES = ("'", '"', "`", "\u2018", "\u2019", "\u201c", "\u201d")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def read_key(text: str) -> str:
    """An API key as read from a file or variable, without a line end; "" for none.

    UsageError on what cannot be a key. The error does not show it."""
    key = text.strip()
    expected = "expected one line of ASCII, as `pathar keys make` prints it"
    if key[:1] in QUOTES or key[-1:] in QUOTES:
        raise UsageError(f"key: it has quotes around it; {expected}")
    if key.lower().startswith("bearer"):
        raise UsageError(f"key: it begins with the word Bearer; {expected}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"key: {expected}")
    return key


class GenerateSettings(TypedDict, total=False):
    """How pairs are drawn. The model's defaults hold for what is not given.

    `scale`: one of those of the label; 0.5 shows it at half of its magnification.
    `width` and `height`: pixels of an image larger than the model's patches.
    `structure`: a mask (the path of a PNG, or a Pillow image), a pair whose structure to take, or
    what the API takes; `appearance`: the same with an image. Only the rest is drawn then. `keep`: a
    picture of the region that is kept of them, white, while the rest is drawn anew; each pair is
    the one of `best_of` draws that what is kept fits best.
    A setting is a number, or one for each stream: `temperature={"structure": 1.0, "appearance":
    1.1}`.
    """

    structure: Given
    appearance: Given
    keep: Picture
    best_of: int
    scale: float
    width: int
    height: int
    model: str
    seed: int
    cfg_scale: Setting
    temperature: Setting
    top_k: Setting
    top_p: Setting
    priority: Priority


def _order(label: str | Sequence[str], n: int, settings: GenerateSettings) -> dict[str, Any]:
    """The body of a request."""
    shown = {"label": label} if isinstance(label, str) else {"labels": list(label)}
    order: dict[str, Any] = {**shown, "n": n, **settings}
    keep = order.pop("keep", None)
    fields: tuple[Field, ...] = ("structure", "appearance")
    given = {field: given_form(field, order[field], keep) for field in fields if field in order}
    if keep is not None and not given:
        raise UsageError("keep: expected structure or appearance beside it, to keep some of")
    return order | given


def _total(label: str | Sequence[str], n: int) -> int:
    return n if isinstance(label, str) else n * len(label)


def _alone(
    label: str, model: str | None, size: tuple[int | None, int | None], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The body of a request for one pair of which all is given, or all but the appearance."""
    width, height = size
    own = {"label": label, "model": model, "width": width, "height": height}
    return {**own, "n": 1, "seed": 0, **given}


class RecipeFields(TypedDict, total=False):
    """What a recipe has beside its labels. A setting may be a range (low, high) to draw from,
    and a value for each stream."""

    seed: int
    model: str
    format: Format
    shard_size: int
    min_agreement: float
    best_of: int
    cfg_scale: Asked
    temperature: Asked
    top_k: Asked
    top_p: Asked
    width: int
    height: int


class _Base:
    """Settings of both clients: the URL of the service, the key, and how long to retry."""

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
        self._patience = Patience(patience)
        self._options: dict[str, Any] = {
            "base_url": base,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            # A proxy for the internet cannot reach the loopback address of this machine.
            "trust_env": parts.hostname not in LOOPBACK,
        }


class Client(_Base):
    """A client of one service. Raises the errors of `pathar.errors`, UsageError on a bad URL or id.

    `patience`: seconds for which it retries while the service is away or full: refused, cut off or
    without an answer. Every request gets at least 5 s. A service that it has never reached is tried
    for 2 s. Longer waits are logged as warnings of the logger `pathar`.
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
        label: str | Sequence[str],
        n: int = 1,
        *,
        job_id: str | None = None,
        progress: bool | None = None,
        **settings: Unpack[GenerateSettings],
    ) -> Pairs:
        """Draw `n` pairs of a label, or of each of several, and return them in order, label by
        label. Shows a progress bar on a terminal."""
        found = []
        with _bar(_total(label, n), progress) as bar:
            for pair in self.stream(label, n, job_id=job_id, **settings):
                found.append(pair)
                bar.update()
        return Pairs(sorted(found, key=lambda pair: pair.index))

    def stream(
        self,
        label: str | Sequence[str],
        n: int = 1,
        *,
        job_id: str | None = None,
        **settings: Unpack[GenerateSettings],
    ) -> Generator[Pair, None, None]:
        """Draw `n` pairs of each label and yield each as soon as it is finished."""
        order = _order(label, n, settings)
        return self._driver.each(flows.draw(order, job_id, self._patience))

    def submit(
        self,
        label: str | Sequence[str],
        n: int = 1,
        *,
        job_id: str | None = None,
        notify: str | None = None,
        **settings: Unpack[GenerateSettings],
    ) -> Job:
        """Submit a job without waiting for it. Its end is sent to the URL `notify`."""
        order = {**_order(label, n, settings), "notify": notify}
        return self._driver.run(flows.submit(order, job_id, self._patience))

    def encode(
        self,
        label: str,
        image: Picture | None = None,
        mask: Picture | None = None,
        *,
        width: int | None = None,
        height: int | None = None,
        model: str | None = None,
        job_id: str | None = None,
    ) -> Pair:
        """The tokens of an image, of its mask, or of both, with their reconstruction.

        Without a mask, the structure is that of the nuclei which the checkpoint's segmenter finds.
        Without an image, the appearance is drawn: tokens of structure and mask are what counts.
        `width` and `height` are those of an image larger than the model's patches.
        """
        return self._one(_alone(label, model, (width, height), encoded(image, mask)), job_id)

    def decode(
        self,
        label: str,
        structure_tokens: ArrayLike,
        appearance_tokens: ArrayLike,
        *,
        width: int | None = None,
        height: int | None = None,
        model: str | None = None,
        job_id: str | None = None,
    ) -> Pair:
        """The pixels of token ids [rows, columns] of both streams. `width` and `height` are those
        of an image larger than the model's patches.
        """
        given = decoded(structure_tokens, appearance_tokens)
        return self._one(_alone(label, model, (width, height), given), job_id)

    def _one(self, order: Mapping[str, Any], job_id: str | None) -> Pair:
        pair: Pair
        [pair] = self._driver.each(flows.draw(order, job_id, self._patience))
        return pair

    def pairs(self, job_id: str) -> Generator[Pair, None, None]:
        """The pairs of one of your jobs, each as soon as it is finished."""
        return self._driver.each(flows.pairs(job_id, self._patience))

    def archive(
        self, job_id: str, path: str | os.PathLike[str], *, progress: bool | None = None
    ) -> None:
        """Write all pairs of a finished job to a ZIP file, whole or not at all. NotFinished.

        Resumes after a lost connection. Shows a progress bar on a terminal.
        """
        with whole_file(Path(path)) as file, _bar(None, progress, "B") as bar:
            for done, total in self._driver.each(flows.archive(job_id, file, self._patience)):
                bar.total = total
                bar.update(done - bar.n)

    def pull(
        self,
        recipe: Mapping[str, int] | str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        progress: bool | None = None,
        **fields: Unpack[RecipeFields],
    ) -> Path:
        """Pull a data set into the folder `out`, and return it. Its manifest is written last.

        `recipe`: labels with counts, or a TOML file. The same call goes on with what an earlier one
        has left, and does nothing when all is there. Shows a progress bar on a terminal.
        """
        settled, folder = Recipe.of(recipe, fields), Path(out)
        for _ in shown(self.pulling(settled, folder), settled.pairs, progress):
            pass
        return folder

    def pulling(
        self, recipe: Recipe, out: Path, *, follow: bool = True
    ) -> Generator[Progress, None, None]:
        """`pull`, step by step: yields how far it is. Without `follow` by jobs of about 100 pairs,
        even where the service offers data sets.
        """
        for step in self._driver.each(pulling.pull(recipe, out, self._patience, follow=follow)):
            if isinstance(step, Progress):
                yield step

    def job(self, job_id: str) -> Job:
        """A job's state."""
        return self._driver.run(flows.look(job_id, self._patience))

    def jobs(
        self, *, status: Status | None = None, label: str | None = None
    ) -> Generator[Job, None, None]:
        """Your jobs, the newest first."""
        return self._driver.each(flows.jobs({"status": status, "label": label}, self._patience))

    def cancel(self, job_id: str, *, files: bool = False) -> Job:
        """Cancel a job. A job that has ended does not change, but `files` drops its results."""
        return self._driver.run(flows.cancel(job_id, self._patience, files=files))

    def events(self, job_id: str, after: str | None = None) -> Generator[Event, None, None]:
        """The events of a job until it ends: those after the event id `after`, or all.

        Resumes when the service was away. Each event comes once.
        """
        return self._driver.each(flows.events(job_id, after, self._patience))

    def labels(self) -> list[Label]:
        """The labels that can be drawn."""
        return self._driver.run(flows.labels(self._patience))

    def ready(self) -> bool:
        """Whether the service answers and a worker is ready."""
        return self._driver.ready()


class AsyncClient(_Base):
    """`Client` for asyncio: the same methods, awaited or iterated with `async for`.

    An iterator that is left before its end keeps a connection until it is closed:

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
        label: str | Sequence[str],
        n: int = 1,
        *,
        job_id: str | None = None,
        progress: bool | None = None,
        **settings: Unpack[GenerateSettings],
    ) -> Pairs:
        """Draw `n` pairs of a label, or of each of several, and return them in order, label by
        label. Shows a progress bar on a terminal."""
        found = []
        with _bar(_total(label, n), progress) as bar:
            async with aclosing(self.stream(label, n, job_id=job_id, **settings)) as pairs:
                async for pair in pairs:
                    found.append(pair)
                    bar.update()
        return Pairs(sorted(found, key=lambda pair: pair.index))

    def stream(
        self,
        label: str | Sequence[str],
        n: int = 1,
        *,
        job_id: str | None = None,
        **settings: Unpack[GenerateSettings],
    ) -> AsyncGenerator[Pair, None]:
        """Draw `n` pairs of each label and yield each as soon as it is finished. Close it if you
        stop early."""
        order = _order(label, n, settings)
        return self._driver.each(flows.draw(order, job_id, self._patience))

    async def submit(
        self,
        label: str | Sequence[str],
        n: int = 1,
        *,
        job_id: str | None = None,
        notify: str | None = None,
        **settings: Unpack[GenerateSettings],
    ) -> Job:
        """Submit a job without waiting for it. Its end is sent to the URL `notify`."""
        order = {**_order(label, n, settings), "notify": notify}
        return await self._driver.run(flows.submit(order, job_id, self._patience))

    async def encode(
        self,
        label: str,
        image: Picture | None = None,
        mask: Picture | None = None,
        *,
        width: int | None = None,
        height: int | None = None,
        model: str | None = None,
        job_id: str | None = None,
    ) -> Pair:
        """As of `Client`."""
        return await self._one(_alone(label, model, (width, height), encoded(image, mask)), job_id)

    async def decode(
        self,
        label: str,
        structure_tokens: ArrayLike,
        appearance_tokens: ArrayLike,
        *,
        width: int | None = None,
        height: int | None = None,
        model: str | None = None,
        job_id: str | None = None,
    ) -> Pair:
        """As of `Client`."""
        given = decoded(structure_tokens, appearance_tokens)
        return await self._one(_alone(label, model, (width, height), given), job_id)

    async def _one(self, order: Mapping[str, Any], job_id: str | None) -> Pair:
        drawn = self._driver.each(flows.draw(order, job_id, self._patience))
        pairs: list[Pair] = [pair async for pair in drawn]
        return pairs[0]

    def pairs(self, job_id: str) -> AsyncGenerator[Pair, None]:
        """The pairs of one of your jobs, each when finished. Close it if you stop early."""
        return self._driver.each(flows.pairs(job_id, self._patience))

    async def archive(
        self, job_id: str, path: str | os.PathLike[str], *, progress: bool | None = None
    ) -> None:
        """Write all pairs of a finished job to a ZIP file, whole or not at all. NotFinished.

        Resumes after a lost connection. Shows a progress bar on a terminal.
        """
        with whole_file(Path(path)) as file, _bar(None, progress, "B") as bar:
            async with aclosing(
                self._driver.each(flows.archive(job_id, file, self._patience))
            ) as pieces:
                async for done, total in pieces:
                    bar.total = total
                    bar.update(done - bar.n)

    async def pull(
        self,
        recipe: Mapping[str, int] | str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        progress: bool | None = None,
        **fields: Unpack[RecipeFields],
    ) -> Path:
        """As of `Client`."""
        settled, folder = Recipe.of(recipe, fields), Path(out)
        with _bar(settled.pairs, progress) as bar:
            async with aclosing(self.pulling(settled, folder)) as steps:
                async for step in steps:
                    _show(bar, step)
        return folder

    async def pulling(
        self, recipe: Recipe, out: Path, *, follow: bool = True
    ) -> AsyncGenerator[Progress, None]:
        """As of `Client`. Close it if you stop early."""
        flow = pulling.pull(recipe, out, self._patience, follow=follow)
        async with aclosing(self._driver.each(flow)) as steps:
            async for step in steps:
                if isinstance(step, Progress):
                    yield step

    async def job(self, job_id: str) -> Job:
        """A job's state."""
        return await self._driver.run(flows.look(job_id, self._patience))

    def jobs(
        self, *, status: Status | None = None, label: str | None = None
    ) -> AsyncGenerator[Job, None]:
        """Your jobs, the newest first."""
        return self._driver.each(flows.jobs({"status": status, "label": label}, self._patience))

    async def cancel(self, job_id: str, *, files: bool = False) -> Job:
        """Cancel a job. A job that has ended does not change, but `files` drops its results."""
        return await self._driver.run(flows.cancel(job_id, self._patience, files=files))

    def events(self, job_id: str, after: str | None = None) -> AsyncGenerator[Event, None]:
        """The events of a job until it ends: those after the event id `after`, or all.

        Resumes when the service was away. Each event comes once. Close it if you stop early.
        """
        return self._driver.each(flows.events(job_id, after, self._patience))

    async def labels(self) -> list[Label]:
        """The labels that can be drawn."""
        return await self._driver.run(flows.labels(self._patience))

    async def ready(self) -> bool:
        """Whether the service answers and a worker is ready."""
        return await self._driver.ready()


def shown(
    steps: Generator[Progress, None, None], total: int, progress: bool | None
) -> Generator[Progress, None, None]:
    """The steps of a pull of `total` pairs, with a progress bar on a terminal."""
    with closing(steps), _bar(total, progress) as bar:
        for step in steps:
            _show(bar, step)
            yield step


def _show(bar: Any, step: Progress) -> None:
    if not bar.n:
        bar.initial = step.safe  # which this run did not draw
    ahead = f"{step.ahead:,} images ahead" if step.ahead else ""
    bar.set_postfix_str(step.trouble or ahead, refresh=bool(step.trouble))
    bar.update(min(step.safe + step.drawn, bar.total) - bar.n)  # not all that is drawn may pass


def _bar(total: int | None, progress: bool | None, unit: str = "pair") -> Any:
    # In a notebook without ipywidgets, tqdm.auto warns that they are missing.
    tqdm = import_module("tqdm.auto" if find_spec("ipywidgets") else "tqdm").tqdm
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    shown = watched if progress is None else progress
    return tqdm(total=total, unit=unit, unit_scale=unit == "B", disable=not shown)
