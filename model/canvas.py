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


class Canvas:
    """Both streams of a grid of [rows, columns] locations, decided window by window."""

    def __init__(self, rows: int, columns: int, overlap: Overlap) -> None:
        self._side = overlap.side
        self.windows = plan(rows, columns, overlap)
        self._tokens = np.full((rows, columns, 2), FREE, np.int64)
        self._log_probability = np.zeros((rows, columns, 2), np.float32)
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
    def log_likelihood(self) -> tuple[float, float]:
        """Of structure and appearance, in nats: the sum over locations of log p(id | label, what
        its window had before it)."""
        structure, appearance = self._log_probability.reshape(-1, 2).T
        return math.fsum(structure), math.fsum(appearance)

    def begin(self) -> tuple[Window, Tokens]:
        """The first window that is ready, and its table of given tokens [side * side, 2].
        IndexError when none is ready.
        """
        window = self.windows[heappop(self._ready)]
        return window, self._tokens[self._place(window)].reshape(-1, 2)

    def take(self, window: Window, tokens: Tokens, log_probability: NDArray[np.float32]) -> None:
        """Keep what a window decides of its tokens, and their log probabilities, both [side, side,
        2]."""
        (first, last), (begin, end) = window.rows, window.columns
        here = slice(first, last), slice(begin, end)
        there = (
            slice(first - window.top, last - window.top),
            slice(begin - window.left, end - window.left),
        )
        self._tokens[here] = tokens[there]
        self._log_probability[here] = log_probability[there]
        self.drawn += 1
        for number in self._needed_by[window.number]:
            self._open_needs[number] -= 1
            if not self._open_needs[number]:
                heappush(self._ready, number)

    def _place(self, window: Window) -> tuple[slice, slice]:
        side = self._side
        return slice(window.top, window.top + side), slice(window.left, window.left + side)
