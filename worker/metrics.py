"""Prometheus metrics of a worker. Knows no Redis and no engine.

Clients cannot create label values: a label that the model does not have counts as `other`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pathar.contract import Priority
from runtime.buckets import bounds

if TYPE_CHECKING:
    from model.memory import Memory

Stage = Literal["queue", "decode", "vq_decode", "png", "store", "total"]
Outcome = Literal["finished", "failed", "canceled", "lost", "handed_back", "retried"]

SECONDS = tuple(bounds(0.001, 1500))
"""Buckets for a PNG on a fast processor up to the wait behind a bulk job on a laptop."""


@dataclass(frozen=True)
class PartKind:
    """The metric labels of an image."""

    label: str
    priority: str


class WorkerMetrics:
    """Metrics of one worker process that serves the model named `model`, in their own registry.
    `build` has the other labels of `pathar_worker_info`.
    """

    def __init__(self, model: str, build: Mapping[str, str]) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        counter = partial(Counter, registry=self.registry)
        self._seconds = Histogram(
            "pathar_image_seconds",
            "Seconds that one image spent in a stage",
            ["stage", "label", "priority", "model"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._images = counter(
            "pathar_images_total",
            "Images that left this worker, by outcome",
            ["status", "label", "priority", "model"],
        )
        self._refused = counter(
            "pathar_refused_parts_total",
            "Records in Redis that were rejected or unreadable",
            ["model"],
        )
        self._slots = Gauge(
            "pathar_slots",
            "Slots of the engine, by state",
            ["state", "model"],
            registry=self.registry,
        )
        self._steps = counter(
            "pathar_steps_total", "Decode steps, each for all live rows", ["model"]
        )
        self._rows = counter(
            "pathar_step_rows_total",
            "Rows over all decode steps; divided by the steps, the mean batch size",
            ["model"],
        )
        self._tokens = counter(
            "pathar_tokens_total", "Tokens of finished images, of both streams", ["model"]
        )
        self._stored = counter(
            "pathar_dataset_pairs_total",
            "Pairs of data sets that this worker has stored in shards",
            ["model"],
        )
        for each in (self._refused, self._steps, self._rows, self._tokens, self._stored):
            each.labels(model)  # start at 0: a rate does not see a series' first sample
        names = ["model", *build]
        info = Gauge(
            "pathar_worker_info", "Facts about this worker; always 1", names, registry=self.registry
        )
        info.labels(model, *build.values()).set(1)
        ProcessCollector(registry=self.registry)

    def expect(self, labels: Iterable[str]) -> None:
        """Start the counters of images with these labels at 0, for each outcome and priority. A
        rate does not see the first event of a series that starts with it."""
        ways = product(get_args(Outcome), labels, get_args(Priority))
        for outcome, label, priority in ways:
            self._images.labels(outcome, label, priority, self._model)

    def seconds(self, stage: Stage, kind: PartKind, seconds: float) -> None:
        """Record how long one image of this kind spent in a stage."""
        self._seconds.labels(stage, kind.label, kind.priority, self._model).observe(seconds)

    def image(self, outcome: Outcome, kind: PartKind) -> None:
        """Count an image of this kind that left this worker."""
        self._images.labels(outcome, kind.label, kind.priority, self._model).inc()

    def refused(self, records: int = 1) -> None:
        """Count records that were rejected or unreadable."""
        self._refused.labels(self._model).inc(records)

    def step(self, rows: int) -> None:
        """Count one decode step for `rows` rows."""
        self._steps.labels(self._model).inc()
        self._rows.labels(self._model).inc(rows)

    def tokens(self, count: int) -> None:
        """Count drawn tokens."""
        self._tokens.labels(self._model).inc(count)

    def stored(self, pairs: int) -> None:
        """Count pairs of data sets, which may be those of any model."""
        self._stored.labels(self._model).inc(pairs)

    def slots(self, busy: int, free: int) -> None:
        """Set how many slots are in use and free."""
        self._slots.labels("busy", self._model).set(busy)
        self._slots.labels("free", self._model).set(free)

    def device(self, memory: Callable[[], Memory | None], use: Callable[[], float]) -> None:
        """Export the device's memory and its recent utilization (0 to 1) from now on. A value that
        raises or is None is left out of that scrape.
        """
        self.registry.register(DeviceCollector(self._model, memory, use))

    def serve(self, host: str, port: int) -> None:
        """Serve `GET /metrics` on this address, in its own thread. OSError if the port is taken."""
        start_http_server(port, addr=host, registry=self.registry)


@dataclass(eq=False)
class DeviceCollector(Collector):
    """Reads the GPU driver or the kernel at each scrape. If that fails, only the metrics of the
    device are missing.
    """

    model: str
    memory: Callable[[], Memory | None]
    use: Callable[[], float]

    def collect(self) -> Iterator[Metric]:
        """Yields the metric families of one scrape."""
        with suppress(Exception):
            if told := self.memory():
                memory = GaugeMetricFamily(
                    "pathar_device_memory_bytes",
                    "Memory of the worker's GPU, or of its machine, by state",
                    labels=["state", "model"],
                )
                memory.add_metric(["free", self.model], told.free)
                memory.add_metric(["used", self.model], told.total - told.free)
                yield memory
        with suppress(Exception):
            use = GaugeMetricFamily(
                "pathar_device_use_ratio",
                "Utilization of the GPU, or of the machine's cores, 0 to 1",
                labels=["model"],
            )
            use.add_metric([self.model], self.use())
            yield use
