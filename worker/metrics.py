"""What a worker measures, for Prometheus. Knows no Redis and no engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

Stage = Literal["queue", "decode", "vq_decode", "png", "store", "total"]
Outcome = Literal["finished", "failed", "refused", "lost", "handed_back"]

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class WorkerMetrics:
    """Counters of one worker process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "pathar_image_seconds",
            "Seconds that one image spent in a stage",
            ["stage"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._images = Counter(
            "pathar_images_total",
            "Parts that left this worker, by how",
            ["status"],
            registry=self.registry,
        )
        self._slots = Gauge(
            "pathar_slots", "Slots of the engine, by state", ["state"], registry=self.registry
        )
        self._steps = Counter(
            "pathar_steps_total", "Decode steps, each for all live rows", registry=self.registry
        )

    def seconds(self, stage: Stage, seconds: float) -> None:
        """One image spent this long in a stage."""
        self._seconds.labels(stage).observe(seconds)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Observe how long the body takes."""
        start = perf_counter()
        yield
        self.seconds(stage, perf_counter() - start)

    def image(self, outcome: Outcome) -> None:
        """One more part left this worker."""
        self._images.labels(outcome).inc()

    def step(self) -> None:
        """One more decode step was made."""
        self._steps.inc()

    def slots(self, busy: int, free: int) -> None:
        """So many slots are in use now."""
        self._slots.labels("busy").set(busy)
        self._slots.labels("free").set(free)

    def serve(self, port: int) -> None:
        """Answer `GET /metrics` on this port, in a thread of its own. OSError if it is taken."""
        start_http_server(port, registry=self.registry)
