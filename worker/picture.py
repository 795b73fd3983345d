"""One image while it is drawn: a patch in one slot, or a large image in a slot for each window.

Knows no queue, no files, and nothing of other images.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model.canvas import Canvas
from model.engine import Engine, LogLikelihood, TokenGrids
from model.layout import Layout
from model.request import ImageRequest, ModelInfo
from model.windows import Overlap, Window


class Picture:
    """An image, its slots in the engine, and what is drawn of it. One thread uses it."""

    def __init__(self, image: ImageRequest, model: ModelInfo) -> None:
        self._image, self._steps = image, model.steps
        self._layout: Layout | None = None
        self._canvas: Canvas | None = None
        self._slots: dict[int, Window | None] = {}
        if image.size is not None:
            self._canvas = Canvas(*model.grid(image.size), Overlap.of(model.grid_size))
        self._begun = False

    @property
    def ready(self) -> int:
        """How many slots it could take now beside those it has."""
        if self._canvas is not None:
            return self._canvas.ready
        return 0 if self._begun else 1

    @property
    def slots(self) -> set[int]:
        """The slots that it has."""
        return set(self._slots)

    def admit(self, engine: Engine) -> int:
        """Take a slot for its next row, which must be `ready`; RequestError, RuntimeError."""
        if self._canvas is None:
            slot = engine.admit(self._image)
            self._begun, self._slots[slot] = True, None
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
        window = self._slots.pop(slot)
        if self._canvas is None or window is None:
            return engine.retire(slot)
        log_probability = engine.log_probability(slot)
        drawn = engine.retire(slot)
        tokens = np.stack([drawn.structure, drawn.appearance], 2)
        self._canvas.take(window, tokens, log_probability)
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
        if self._canvas is None:
            return max((engine.age(slot) for slot in self._slots), default=0)
        return self._canvas.drawn * self._steps // len(self._canvas.windows)
