"""What a worker measures, for Prometheus. Knows no Redis and no engine.

Label values are bounded whatever clients send: a label that the model does not have is `other`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
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

from model.contract import Priority
from runtime.buckets import bounds

if TYPE_CHECKING:
    from model.memory import Memory

Stage = Literal["queue", "decode", "vq_decode", "png", "store", "total"]
Outcome = Literal["finished", "failed", "canceled", "lost", "handed_back", "retried"]

SECONDS = tuple(bounds(0.001, 1500))
"""From a PNG on a fast processor to the wait behind a bulk job on a laptop."""


@dataclass(frozen=True)
class Kind:
    """What an image's figures are told apart by."""

    label: str
    priority: str


class WorkerMetrics:
    """Counters of one worker process, which serves the model named `model`, in a registry of their
    own. `build` is what else is said of the process, once.
    """

    def __init__(self, model: str, build: Mapping[str, str]) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self._seconds = Histogram(
            "pathar_image_seconds",
            "Seconds that one image spent in a stage",
            ["stage", "label", "priority", "model"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._images = Counter(
            "pathar_images_total",
            "Images that left this worker, by how",
            ["status", "label", "priority", "model"],
            registry=self.registry,
        )
        self._refused = Counter(
            "pathar_refused_parts_total",
            "Records in Redis that were none of ours, or could not be read",
            ["model"],
            registry=self.registry,
        )
        self._slots = Gauge(
            "pathar_slots",
            "Slots of the engine, by state",
            ["state", "model"],
            registry=self.registry,
        )
        self._steps = Counter(
            "pathar_steps_total",
            "Decode steps, each for all live rows",
            ["model"],
            registry=self.registry,
        )
        self._rows = Counter(
            "pathar_step_rows_total",
            "Rows that decode steps were made for: over the steps, the mean fill of a step",
            ["model"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "pathar_tokens_total",
            "Tokens of finished images, of both streams",
            ["model"],
            registry=self.registry,
        )
        for counter in (self._refused, self._steps, self._rows, self._tokens):
            counter.labels(model)  # from 0 on, or the first event would be no increase
        names = ["model", *build]
        info = Gauge(
            "pathar_worker_info", "What this worker is; always 1", names, registry=self.registry
        )
        info.labels(model, *build.values()).set(1)
        ProcessCollector(registry=self.registry)

    def expect(self, labels: Iterable[str]) -> None:
        """Tell of every way in which images of these labels can leave, from 0 on: a rate does not
        see the first event of a series that begins with it."""
        ways = product(get_args(Outcome), labels, get_args(Priority))
        for outcome, label, priority in ways:
            self._images.labels(outcome, label, priority, self._model)

    def seconds(self, stage: Stage, kind: Kind, seconds: float) -> None:
        """One image of this kind spent this long in a stage."""
        self._seconds.labels(stage, kind.label, kind.priority, self._model).observe(seconds)

    def image(self, outcome: Outcome, kind: Kind) -> None:
        """One more image of this kind left this worker."""
        self._images.labels(outcome, kind.label, kind.priority, self._model).inc()

    def refused(self, records: int = 1) -> None:
        """So many more records were none of ours, or could not be read."""
        self._refused.labels(self._model).inc(records)

    def step(self, rows: int) -> None:
        """One more decode step was made, for so many rows."""
        self._steps.labels(self._model).inc()
        self._rows.labels(self._model).inc(rows)

    def tokens(self, count: int) -> None:
        """So many tokens were drawn."""
        self._tokens.labels(self._model).inc(count)

    def slots(self, busy: int, free: int) -> None:
        """So many slots are in use now."""
        self._slots.labels("busy", self._model).set(busy)
        self._slots.labels("free", self._model).set(free)

    def device(self, memory: Callable[[], Memory | None], use: Callable[[], float]) -> None:
        """Tell of the device from now on: of its memory, and of the share of the last moment in
        which it had work. What raises, or is None, is not told of then.
        """
        self.registry.register(DeviceCollector(self._model, memory, use))

    def serve(self, host: str, port: int) -> None:
        """Answer `GET /metrics` there, in a thread of its own. OSError if the port is taken."""
        start_http_server(port, addr=host, registry=self.registry)


class DeviceCollector(Collector):
    """Asks the GPU's driver or the kernel when it is scraped. One that does not answer, or was
    never there to be asked, costs the figures of the device and no other.
    """

    def __init__(
        self, model: str, memory: Callable[[], Memory | None], use: Callable[[], float]
    ) -> None:
        self._model, self._memory, self._use = model, memory, use

    def collect(self) -> Iterator[Metric]:
        """The families of one scrape."""
        with suppress(Exception):
            if told := self._memory():
                memory = GaugeMetricFamily(
                    "pathar_device_memory_bytes",
                    "Memory of the worker's GPU, or of its machine, by state",
                    labels=["state", "model"],
                )
                memory.add_metric(["free", self._model], told.free)
                memory.add_metric(["used", self._model], told.total - told.free)
                yield memory
        with suppress(Exception):
            use = GaugeMetricFamily(
                "pathar_device_use_ratio",
                "Share of time in which the GPU, or the machine's cores, had work, 0 to 1",
                labels=["model"],
            )
            use.add_metric([self._model], self._use())
            yield use
