"""Reports what happens to a worker's parts: metrics, a log line for each end, and spans.

Knows no Redis and no RQ.
"""

from __future__ import annotations

import logging
import time

from model.engine import TokenGrids
from model.request import ModelInfo
from pathar.contract import Status
from runtime.telemetry import Span, Traces, trace_id
from store import keys
from worker.ledger import Task
from worker.metrics import Outcome, PartKind, WorkerMetrics

log = logging.getLogger("pathar.worker")


class Reports:
    """Reports the parts of one model, `info`."""

    def __init__(self, info: ModelInfo, metrics: WorkerMetrics, traces: Traces) -> None:
        self._labels = {label.name for label in info.labels}
        self._metrics, self._traces = metrics, traces
        metrics.expect(self._labels)

    def began(self, task: Task) -> None:
        """Report that this worker has started a part."""
        self._metrics.seconds("queue", self._kind(task), task.held.queue_s)

    def refused(self, error: Exception) -> None:
        """Report a record that was rejected unread."""
        log.warning("refused %s", error)
        self._metrics.refused()

    def drawn(self, task: Task, tokens: TokenGrids) -> None:
        """Report that a part has all its tokens."""
        self._metrics.seconds("decode", self._kind(task), task.drawn_s)
        self._metrics.tokens(tokens.structure.size + tokens.appearance.size)

    def rendered(self, task: Task) -> None:
        """Report that a part has its files."""
        self._metrics.seconds("vq_decode", self._kind(task), task.render_s)
        self._metrics.seconds("png", self._kind(task), task.png_s)

    def left(self, task: Task, how: Outcome) -> None:
        """Report that this worker no longer owns a part, which did not end here."""
        if how != "handed_back":
            log.info("dropped: %s", how, extra=_about(task))
        self._metrics.image(how, self._kind(task))

    def broke(self, task: Task, error: Exception) -> None:
        """Log that a part cannot be drawn; with a traceback for an error of the engine."""
        known = task.cause != "engine"
        log.warning("failed: %s", error, exc_info=None if known else error, extra=_about(task))

    def ended(self, task: Task, state: Status | None) -> None:
        """Report what writing a part's end to Redis led to: its state, "queued" for a retry. None:
        this worker no longer owned it."""
        if task.failure is None:
            self._metrics.seconds("store", self._kind(task), task.store_s)
        if state == "finished":
            self._finished(task)
            return
        if state is None:
            log.info("result rejected: this worker no longer owns the image", extra=_about(task))
        outcomes: dict[Status | None, Outcome] = {None: "lost", "queued": "retried"}
        self._metrics.image(outcomes.get(state, "failed"), self._kind(task))

    def _finished(self, task: Task) -> None:
        """Write metrics, a log line and a trace. The trace's stages follow each other and end now:
        the clocks of Redis and of this host may differ."""
        total_s = task.total_s or 0.0
        self._metrics.seconds("total", self._kind(task), total_s)
        self._metrics.image("finished", self._kind(task))
        spent = {
            "queue": task.held.queue_s,
            "decode": task.drawn_s,
            "vq_decode": task.render_s,
            "png": task.png_s,
            "store": task.store_s,
        }
        about = {**_about(task), "label": task.held.image.label, "priority": task.held.priority}
        told = {f"{stage}_s": round(seconds, 6) for stage, seconds in spent.items()}
        log.info("finished", extra={**about, **told, "total_s": total_s})
        stages, at = [], time.time_ns() - int(1e9 * sum(spent.values()))
        for stage, seconds in spent.items():
            stages.append(Span(stage, at, at + int(1e9 * seconds)))
            at = stages[-1].end
        self._traces.stages("image", task.held.trace, stages, about)

    def _kind(self, task: Task) -> PartKind:
        label = task.held.image.label
        return PartKind(label if label in self._labels else "other", task.held.priority)


def _about(task: Task) -> dict[str, str | int]:
    """The fields of each log line about a part."""
    held = task.held
    _, job_id = keys.split_owned_id(held.job)
    return {"job": job_id, "image": held.index, "key": held.key, "trace_id": trace_id(held.trace)}
