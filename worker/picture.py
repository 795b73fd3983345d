"""One image while it is drawn: a patch in one slot, or in one for each of its draws, or a large
image in a slot for each window.

Knows no queue, no files, and nothing of other images.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model.canvas import Canvas
from model.engine import Engine, LogLikelihood, TokenGrids
from model.given import Given
from model.layout import Layout
from model.request import ImageRequest, ModelInfo, check_best_of
from model.windows import Overlap, Window


class Picture:
    """An image, its slots in the engine, and what is drawn of it. One thread uses it.

    Of several draws it keeps the one with the highest log-likelihood of what was given, the first
    of those that are equal.
    """

    def __init__(self, image: ImageRequest, model: ModelInfo) -> None:
        self._image, self._steps = image, model.steps
        self._layout: Layout | None = None
        self._canvas: Canvas | None = None
        self._slots: dict[int, Window | int] = {}
        """What is drawn in its slots: windows, or draws."""
        self._draws = image.draws()
        self._begun = 0
        self._ended: dict[int, TokenGrids] = {}
        if image.size is not None:
            self._canvas = Canvas(*model.grid(image.size), Overlap.of(model.grid_size))
        check_best_of(len(self._draws), image.given if isinstance(image.given, Given) else None)
        self.cost = model.cost(image.size) * len(self._draws)
        self.drawn = image
        """What was drawn, once it is complete: the image alone."""

    @property
    def ready(self) -> int:
        """How many slots it could take now beside those it has."""
        if self._canvas is not None:
            return self._canvas.ready
        return len(self._draws) - self._begun

    @property
    def slots(self) -> set[int]:
        """The slots that it has."""
        return set(self._slots)

    def admit(self, engine: Engine) -> int:
        """Take a slot for its next row, which must be `ready`; RequestError, RuntimeError."""
        if self._canvas is None:
            slot = engine.admit(self._draws[self._begun])
            self._slots[slot] = self._begun
            self._begun += 1
            return slot
        if self._layout is None and self._image.given is not None:
            self._layout = engine.layout_of(self._image)
        window, given = self._canvas.begin()
        if self._layout is not None:
            given = np.stack([self._layout.of(window).flatten(), given[:, 1]], 1)
        row = replace(self._image, seed=window.seed(self._image.seed), given=None, size=None)
        slot = engine.admit(row, given, window.steps)
        self._slots[slot] = window
        return slot

    def end(self, engine: Engine, slot: int) -> TokenGrids | None:
        """Give back the slot of a complete row; the tokens of the image when that was the last."""
        row = self._slots.pop(slot)
        if self._canvas is None or isinstance(row, int):
            assert isinstance(row, int)
            self._ended[row] = engine.retire(slot)
            return self._best() if len(self._ended) == len(self._draws) else None
        log_probability = engine.log_probability(slot)
        drawn = engine.retire(slot)
        tokens = np.stack([drawn.structure, drawn.appearance], 2)
        self._canvas.take(row, tokens, log_probability)
        if not self._canvas.complete:
            return None
        return TokenGrids(*self._canvas.tokens, LogLikelihood(*self._canvas.log_likelihood))

    def leave(self, engine: Engine) -> None:
        """Give back all slots: the image will not be drawn to its end."""
        for slot in self._slots:
            engine.retire(slot)
        self._slots.clear()

    def step(self, engine: Engine) -> int:
        """How far it is, in steps of a patch."""
        if self._canvas is not None:
            return self._canvas.drawn * self._steps // len(self._canvas.windows)
        made = sum(engine.age(slot) for slot in self._slots) + len(self._ended) * self._steps
        return made // len(self._draws)

    def _best(self) -> TokenGrids:
        """The tokens of the draw that fits best."""
        best = max(range(len(self._draws)), key=lambda draw: (self._fit(draw), -draw))
        self.drawn = self._draws[best]
        return self._ended[best]

    def _fit(self, draw: int) -> float:
        fit = self._ended[draw].kept_log_likelihood
        return 0.0 if fit is None else fit.structure + fit.appearance
