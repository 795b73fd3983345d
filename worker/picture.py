"""One image while it is drawn: a patch in one slot, or in one for each of its draws, or a large
image in a slot for each window, of each of its draws.

Knows no queue, no files, and nothing of other images.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model.canvas import Canvas
from model.decoder import FREE
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
        given = image.given if isinstance(image.given, Given) else None
        self._draws = image.draws()
        self._layout: Layout | None = None
        self._canvases: list[Canvas] = []
        """Of a large image, one for each draw."""
        self._slots: dict[int, tuple[int, Window | None]] = {}
        """What is drawn in its slots: which draw, and of a large image which window."""
        self._begun = 0
        self._ended: dict[int, TokenGrids] = {}
        check_best_of(len(self._draws), given)
        self._in_part = given is not None and given.in_part
        if image.size is not None:
            grid, overlap = model.grid(image.size), Overlap.of(model.grid_size)
            kept = None
            if given is not None:
                kept = np.array(given.kept(grid[0] * grid[1])).T.reshape(*grid, 2)
            self._canvases = [Canvas(*grid, overlap, kept) for _ in self._draws]
        self.cost = model.cost(image.size, given) * len(self._draws)
        self.drawn = image
        """What was drawn, once it is complete: the image alone."""

    @property
    def ready(self) -> int:
        """How many slots it could take now beside those it has."""
        if self._canvases:
            return sum(canvas.ready for canvas in self._canvases)
        return len(self._draws) - self._begun

    @property
    def slots(self) -> set[int]:
        """The slots that it has."""
        return set(self._slots)

    def admit(self, engine: Engine) -> int:
        """Take a slot for its next row, which must be `ready`; RequestError, RuntimeError."""
        if self._canvases:
            return self._admit_window(engine)
        slot = engine.admit(self._draws[self._begun])
        self._slots[slot] = (self._begun, None)
        self._begun += 1
        return slot

    def _admit_window(self, engine: Engine) -> int:
        if self._layout is None and self._image.given is not None:
            self._layout = engine.layout_of(self._image)
        draw = next(draw for draw, canvas in enumerate(self._canvases) if canvas.ready)
        window, given = self._canvases[draw].begin()
        if self._layout is not None:
            given = np.where(given == FREE, self._layout.of(window), given)
        of_draw = self._draws[draw]
        row = replace(of_draw, seed=window.seed(of_draw.seed), given=None, size=None)
        slot = engine.admit(row, given, window.steps)
        self._slots[slot] = (draw, window)
        return slot

    def end(self, engine: Engine, slot: int) -> TokenGrids | None:
        """Give back the slot of a complete row; the tokens of the image when that was the last."""
        draw, window = self._slots.pop(slot)
        if window is None:
            self._ended[draw] = engine.retire(slot)
        else:
            canvas = self._canvases[draw]
            log_probability = engine.log_probability(slot) if window.steps else None
            drawn = engine.retire(slot)
            tokens = np.stack([drawn.structure, drawn.appearance], 2)
            canvas.take(window, tokens, log_probability)
            if canvas.complete:
                self._ended[draw] = self._whole(canvas)
        return self._best() if len(self._ended) == len(self._draws) else None

    def leave(self, engine: Engine) -> None:
        """Give back all slots: the image will not be drawn to its end."""
        for slot in self._slots:
            engine.retire(slot)
        self._slots.clear()

    def step(self, engine: Engine) -> int:
        """How far it is, in steps of a patch."""
        if self._canvases:
            drawn = sum(canvas.drawn for canvas in self._canvases)
            return drawn * self._steps // sum(len(canvas.windows) for canvas in self._canvases)
        made = sum(engine.age(slot) for slot in self._slots) + len(self._ended) * self._steps
        return made // len(self._draws)

    def _whole(self, canvas: Canvas) -> TokenGrids:
        """The tokens of a large image, with what is known of their likelihood."""
        seen = canvas.log_likelihood
        return TokenGrids(
            *canvas.tokens,
            None if seen is None else LogLikelihood(*seen),
            LogLikelihood(*canvas.kept_log_likelihood) if self._in_part else None,
        )

    def _best(self) -> TokenGrids:
        """The tokens of the draw that fits best."""
        best = max(range(len(self._draws)), key=lambda draw: (self._fit(draw), -draw))
        self.drawn = self._draws[best]
        return self._ended[best]

    def _fit(self, draw: int) -> float:
        fit = self._ended[draw].kept_log_likelihood
        return 0.0 if fit is None else fit.structure + fit.appearance
