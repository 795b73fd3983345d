"""The tokens of one large image while its windows are drawn: what is given to each, and what stays.

Knows no decoder, no pixels and nothing of who draws the windows.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from model.decoder import FREE
from model.windows import Overlap, Window, plan

Tokens = NDArray[np.int64]
Kept = NDArray[np.bool_]


class Canvas:
    """Both streams of a grid of [rows, columns] locations, decided window by window. `kept` [rows,
    columns, 2] says which tokens are given to the image; none without it.
    """

    def __init__(self, rows: int, columns: int, overlap: Overlap, kept: Kept | None = None) -> None:
        self._side, self._kept = overlap.side, kept
        given = None if kept is None else [bool(both) for both in kept.all(2).flatten()]
        self.windows = plan(rows, columns, overlap, given)
        self._tokens = np.full((rows, columns, 2), FREE, np.int64)
        self._log_probability = np.zeros((rows, columns, 2), np.float32)
        self._seen = np.zeros((rows, columns), bool)
        """Whose log probability is known: the prior had them in a window."""
        self._open_needs = [len(window.needs) for window in self.windows]
        self._needed_by: list[list[int]] = [[] for _ in self.windows]
        for window in self.windows:
            for needed in window.needs:
                self._needed_by[needed].append(window.number)
        self._ready = [0]
        self.drawn = 0

    @property
    def ready(self) -> int:
        """How many windows could be begun now."""
        return len(self._ready)

    @property
    def complete(self) -> bool:
        """Whether every window was drawn."""
        return self.drawn == len(self.windows)

    @property
    def tokens(self) -> tuple[Tokens, Tokens]:
        """Structure and appearance ids [rows, columns]; FREE where none is decided."""
        return self._tokens[..., 0].copy(), self._tokens[..., 1].copy()

    @property
    def log_likelihood(self) -> tuple[float, float] | None:
        """Of structure and appearance, in nats: the sum over locations of log p(id | label, what
        its window had before it). None where windows were given whole, so not seen by the prior."""
        return self._sums(np.ones_like(self._tokens, bool)) if self._seen.all() else None

    @property
    def kept_log_likelihood(self) -> tuple[float, float]:
        """The same of the given tokens alone, in the windows that were drawn."""
        assert self._kept is not None
        return self._sums(self._kept & self._seen[..., None])

    def begin(self) -> tuple[Window, Tokens]:
        """The first window that is ready, and its table of decided tokens [side * side, 2].
        IndexError when none is ready.
        """
        window = self.windows[heappop(self._ready)]
        return window, self._tokens[self._place(window)].reshape(-1, 2)

    def take(
        self, window: Window, tokens: Tokens, log_probability: NDArray[np.float32] | None
    ) -> None:
        """Keep what a window decides of its tokens, and their log probabilities, both [side, side,
        2]; these are None of a window without steps."""
        (first, last), (begin, end) = window.rows, window.columns
        here = slice(first, last), slice(begin, end)
        there = (
            slice(first - window.top, last - window.top),
            slice(begin - window.left, end - window.left),
        )
        self._tokens[here] = tokens[there]
        if log_probability is not None:
            self._log_probability[here], self._seen[here] = log_probability[there], True
        self.drawn += 1
        for number in self._needed_by[window.number]:
            self._open_needs[number] -= 1
            if not self._open_needs[number]:
                heappush(self._ready, number)

    def _sums(self, counted: NDArray[np.bool_]) -> tuple[float, float]:
        structure, appearance = (
            math.fsum(self._log_probability[..., stream][counted[..., stream]])
            for stream in range(2)
        )
        return structure, appearance

    def _place(self, window: Window) -> tuple[slice, slice]:
        side = self._side
        return slice(window.top, window.top + side), slice(window.left, window.left + side)
