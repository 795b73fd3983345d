"""What a worker tells of its parts: metrics, a line of the log for each end, and spans.

Knows no Redis and no RQ.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from model.engine import TokenGrids
from model.request import ModelInfo
from runtime.telemetry import Stage, Traces, trace_id
from store import keys
from store.parts import Cause, HeldPart
from store.results import Stored
from worker.metrics import Kind, Outcome, WorkerMetrics

log = logging.getLogger("pathar.worker")


@dataclass(frozen=True)
class Delivery:
    """The end of a part that Redis is to be told of: its files, or why there are none.

    `decode_s` is the time from its slot to its files, `drawn_s` what of that went into tokens, and
    `paint_s` and `png_s` into pixels and PNGs; `sent_s` is what it took to store them elsewhere.
    """

    held: HeldPart
    files: Stored
    decode_s: float = 0.0
    drawn_s: float = 0.0
    paint_s: float = 0.0
    png_s: float = 0.0
    sent_s: float = 0.0
    failure: str | None = None
    cause: Cause = "engine"


class Reports:
    """Tells of the parts of one model, `info`, as they come and go."""

    def __init__(self, info: ModelInfo, metrics: WorkerMetrics, traces: Traces) -> None:
        self._labels = {label.name for label in info.labels}
        self._metrics, self._traces = metrics, traces
        metrics.expect(self._labels)

    def began(self, held: HeldPart) -> None:
        """A part is ours from now on."""
        self._metrics.seconds("queue", self._kind(held), held.queue_s)

    def drawn(self, held: HeldPart, tokens: TokenGrids, drawn_s: float) -> None:
        """It has all its tokens."""
        self._metrics.seconds("decode", self._kind(held), drawn_s)
        self._metrics.tokens(tokens.structure.size + tokens.appearance.size)

    def painted(self, held: HeldPart, paint_s: float, png_s: float) -> None:
        """It has its files."""
        self._metrics.seconds("vq_decode", self._kind(held), paint_s)
        self._metrics.seconds("png", self._kind(held), png_s)

    def dropped(self, held: HeldPart, how: Outcome) -> None:
        """It is ours no more, and was not drawn to its end."""
        log.info("dropped: %s", how, extra=_about(held))
        self._metrics.image(how, self._kind(held))

    def handed_back(self, held: HeldPart) -> None:
        """It is in the queue again."""
        self._metrics.image("handed_back", self._kind(held))

    def broke(self, held: HeldPart, error: Exception, *, known: bool) -> None:
        """It cannot be drawn; an error that is not `known` is told of with its traceback."""
        log.warning("failed: %s", error, exc_info=None if known else error, extra=_about(held))

    def failed(self, held: HeldPart) -> None:
        """Redis has been told that it cannot be drawn."""
        self._metrics.image("failed", self._kind(held))

    def refused(self, held: HeldPart) -> None:
        """Redis wanted to hear nothing of its end: it was ours no more."""
        log.info("result refused, it is no longer ours", extra=_about(held))
        self._metrics.image("lost", self._kind(held))

    def stored(self, held: HeldPart, store_s: float) -> None:
        """Redis was told of its files, whether it wanted them or not."""
        self._metrics.seconds("store", self._kind(held), store_s)

    def finished(self, delivery: Delivery, store_s: float, total_s: float) -> None:
        """It is finished: metrics, a line of the log, and a trace whose stages stand one after the
        other, counted back from now, since the clocks of Redis and of this host may differ."""
        held = delivery.held
        self._metrics.seconds("total", self._kind(held), total_s)
        self._metrics.image("finished", self._kind(held))
        spent = {
            "queue": held.queue_s,
            "decode": delivery.drawn_s,
            "vq_decode": delivery.paint_s,
            "png": delivery.png_s,
            "store": store_s,
        }
        about = {**_about(held), "label": held.image.label, "priority": held.priority}
        told = {f"{stage}_s": round(seconds, 6) for stage, seconds in spent.items()}
        log.info("finished", extra={**about, **told, "total_s": total_s})
        stages, at = [], time.time_ns() - int(1e9 * sum(spent.values()))
        for stage, seconds in spent.items():
            stages.append(Stage(stage, at, at + int(1e9 * seconds)))
            at = stages[-1].end
        self._traces.stages("image", held.trace, stages, about)

    def _kind(self, held: HeldPart) -> Kind:
        label = held.image.label
        return Kind(label if label in self._labels else "other", held.priority)


def _about(held: HeldPart) -> dict[str, str | int]:
    """What every line about a part says."""
    _, job_id = keys.split_owned_id(held.job)
    return {"job": job_id, "image": held.index, "key": held.key, "trace_id": trace_id(held.trace)}
