"""Turns complete rows into files (pixels, then PNG); draws many images without a server.

While a GPU decodes, the processor is idle, so threads finish rows during the next steps. On a CPU
the decode uses all cores and threads would lower the throughput (docs/performance.md), so rows are
finished at once. Knows no Redis and no RQ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

from model.engine import Engine, TokenGrids
from model.processors import usable_cores
from model.request import ImageRequest, ModelInfo
from pathar.contract import LARGEST_SIDE
from worker.beside import Inline
from worker.images import check_image, image_files, made_with, numerics
from worker.picture import Picture

Key = TypeVar("Key")

MAX_THREADS = 8


@dataclass(frozen=True)
class Finished(Generic[Key]):
    """The files of one row by name, or the error that prevented them. `key` identifies the row."""

    key: Key
    files: Mapping[str, bytes]
    error: Exception | None
    render_s: float
    png_s: float


def threads_beside(engine: Engine) -> int:
    """The number of threads that finish rows during this engine's steps; 0 on a CPU."""
    if engine.device.type == "cpu":
        return 0
    return max(1, min(MAX_THREADS, usable_cores() // 2))


class Finisher(Generic[Key]):
    """Finishes rows in `threads` threads; with 0, in `give` itself. Keeps the order of the rows."""

    def __init__(self, engine: Engine, model: ModelInfo, *, threads: int) -> None:
        self._engine, self._model, self._facts = engine, model, made_with(engine)
        self._pending: deque[Future[Finished[Key]]] = deque()
        self._pool = ThreadPoolExecutor(threads, "finisher") if threads else Inline()

    @property
    def backlog(self) -> int:
        """The number of rows given and not collected yet."""
        return len(self._pending)

    def give(self, key: Key, request: ImageRequest, tokens: TokenGrids) -> None:
        """Finish this row, at once or in a thread."""
        self._pending.append(self._pool.submit(self._finish, key, request, tokens))

    def collect(self, timeout: float = 0.0) -> list[Finished[Key]]:
        """The rows that are finished. Waits up to `timeout` seconds for the oldest."""
        if timeout and self._pending:
            wait([self._pending[0]], timeout)
        done = []
        while self._pending and self._pending[0].done():
            done.append(self._pending.popleft().result())
        return done

    def close(self) -> None:
        """Drop rows that no thread has begun. Waits for the others."""
        self._pool.shutdown(cancel_futures=True)

    def _finish(self, key: Key, request: ImageRequest, tokens: TokenGrids) -> Finished[Key]:
        started = rendered = perf_counter()
        files: Mapping[str, bytes] = {}
        error = None
        try:
            patch = self._engine.render(tokens)
            rendered = perf_counter()
            files = image_files(patch, tokens, request, self._model, self._facts)
        except Exception as raised:  # an error here affects this row only
            error = raised
        return Finished(key, files, error, rendered - started, perf_counter() - rendered)


def draw(
    engine: Engine, requests: Iterable[ImageRequest]
) -> Iterator[tuple[int, Mapping[str, bytes]]]:
    """Draw all requests without a server, as many at once as the engine has slots. Takes a request
    when a slot is free and no large image before it has a window for the slot.

    Yields (position in `requests`, files) as images complete, not in order. RequestError on a
    request that this model cannot draw. Frees all slots, even if the caller stops early.
    """
    model = engine.info(numerics(engine))
    numbered = enumerate(requests)
    waiting = next(numbered, None)
    live: dict[int, Picture] = {}
    finisher = Finisher[int](engine, model, threads=threads_beside(engine))
    try:
        while waiting or live or finisher.backlog:
            _admit(engine, live.values())
            while waiting and engine.free and finisher.backlog < engine.slots:
                check_image(waiting[1], model, LARGEST_SIDE)
                picture = Picture(waiting[1], model)
                live[waiting[0]] = picture
                _admit(engine, [picture])
                waiting = next(numbered, None)
            for slot in engine.step():
                index = next(index for index, held in live.items() if slot in held.slots)
                picture = live[index]
                if (tokens := picture.end(engine, slot)) is not None:
                    del live[index]
                    finisher.give(index, picture.drawn, tokens)
            for finished in finisher.collect(timeout=0.0 if live else 1.0):
                if finished.error is not None:
                    raise finished.error
                yield finished.key, finished.files
    finally:
        finisher.close()
        for picture in live.values():
            picture.leave(engine)


def _admit(engine: Engine, pictures: Iterable[Picture]) -> None:
    """Give free slots to rows that could be drawn now, in the order of their pictures."""
    for picture in pictures:
        while picture.ready and engine.free:
            picture.admit(engine)
