"""Prometheus metrics of the API: its own requests, and the statistics over all owners from Redis.

All API processes export the same statistics, so use `max` on them, not `sum`. Workers export their
own metrics. Each app has its own registry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial

import redis
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.buckets import bounds
from store.condition import Condition
from store.statistics import Statistics

REDIS_UP = "Whether Redis answers, 1 or 0"
WEBHOOK_OUTCOMES = ("delivered", "failed", "given_up")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SECONDS = tuple(bounds(0.001, 330))
"""Buckets from the answer to a probe to the longest wait for results."""


class ApiMetrics:
    """The metrics of one app. At each scrape `read` reads the statistics from Redis, `connections`
    returns the numbers of open and of rejected connections, and `conditions` whether Redis refuses
    writes, by reason."""

    def __init__(
        self,
        version: str,
        read: Callable[[], Statistics],
        connections: Callable[[], tuple[int, int]],
        conditions: Callable[[], Mapping[Condition, bool]],
    ) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        self.registry.register(AtScrape(lambda: _conditions(conditions)))
        self.registry.register(AtScrape(lambda: _statistics(read)))
        self.registry.register(AtScrape(lambda: _connections(*connections())))
        ProcessCollector(registry=self.registry)
        info = Gauge(
            "pathar_api_info",
            "Facts about this process; always 1",
            ["version"],
            registry=self.registry,
        )
        info.labels(version).set(1)
        self._accepted = counter(
            "pathar_key_images_total", "Images of accepted jobs, by key", ["key"]
        )
        self._problems = counter(
            "pathar_http_problems_total",
            "Requests answered with a problem document, by its type",
            ["type"],
        )
        self._webhooks = counter(
            "pathar_webhooks_total", "Tries to send a webhook, by outcome", ["outcome"]
        )
        for outcome in WEBHOOK_OUTCOMES:
            self._webhooks.labels(outcome)
        self._requests = counter(
            "pathar_http_requests_total", "Answered HTTP requests", ["route", "method", "status"]
        )
        self._seconds = Histogram(
            "pathar_http_request_seconds",
            "Seconds from request to answer, including the wait for results",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )

    def webhook(self, outcome: str) -> None:
        """Count one try to send a webhook."""
        self._webhooks.labels(outcome).inc()

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        known = method if method in METHODS else "other"
        self._requests.labels(route, known, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def problem(self, slug: str) -> None:
        """Count one problem document."""
        self._problems.labels(slug).inc()

    def accepted(self, key: str, images: int) -> None:
        """Count the images of a new job, by the name of its key."""
        self._accepted.labels(key).inc(images)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


class AtScrape(Collector):
    """Exports what a function returns at each scrape."""

    def __init__(self, read: Callable[[], Iterator[Metric]]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Nothing, so that registering needs no Redis."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The families of one scrape."""
        return self._read()


def _connections(open_now: int, refused: int) -> Iterator[Metric]:
    yield GaugeMetricFamily("pathar_connections", "Connections of this process", value=open_now)
    yield CounterMetricFamily(
        "pathar_connections_refused",
        "Connections and requests that were rejected because all connections were in use",
        value=refused,
    )


def _conditions(read: Callable[[], Mapping[Condition, bool]]) -> Iterator[Metric]:
    """Whether a Redis that answers refuses writes, and why; nothing without INFO."""
    refuses = GaugeMetricFamily(
        "pathar_redis_refuses", "Whether Redis refuses writes, by reason", labels=["reason"]
    )
    with suppress(redis.RedisError):
        for reason, holds in read().items():
            refuses.add_metric([reason], holds)
        yield refuses


def _statistics(read: Callable[[], Statistics]) -> Iterator[Metric]:
    """The statistics from Redis; only `pathar_redis_up` without Redis."""
    try:
        statistics = read()
    except redis.RedisError:
        yield GaugeMetricFamily("pathar_redis_up", REDIS_UP, value=0)
        return
    yield GaugeMetricFamily("pathar_redis_up", REDIS_UP, value=1)
    waiting = GaugeMetricFamily(
        "pathar_queue_images", "Images waiting for a slot", labels=["model", "priority"]
    )
    oldest = GaugeMetricFamily(
        "pathar_queue_oldest_seconds",
        "Seconds since the oldest waiting image was submitted",
        labels=["model", "priority"],
    )
    for line in statistics.lines:
        waiting.add_metric([line.model, line.priority], line.images)
        oldest.add_metric([line.model, line.priority], line.oldest_s)
    started = GaugeMetricFamily("pathar_started_images", "Images being drawn", labels=["model"])
    for model, images in statistics.started.items():
        started.add_metric([model], images)
    slots = GaugeMetricFamily(
        "pathar_ready_slots", "Slots of live workers, used or not", labels=["model"]
    )
    for model, count in statistics.slots.items():
        slots.add_metric([model], count)
    jobs = CounterMetricFamily(
        "pathar_jobs",
        "Ended jobs, by status and cause",
        labels=["status", "cause", "label", "priority", "model"],
    )
    for end in statistics.ended:
        jobs.add_metric([end.status, end.cause, end.label, end.priority, end.model], end.jobs)
    datasets = GaugeMetricFamily(
        "pathar_datasets", "Data sets that are being drawn", value=statistics.datasets
    )
    yield from (waiting, oldest, started, slots, jobs, datasets, *_of_keys(statistics))


def _of_keys(statistics: Statistics) -> Iterator[Metric]:
    """Yields the metrics by key. Their names are those of existing keys."""
    waiting = GaugeMetricFamily(
        "pathar_key_queue_images", "Waiting images of a key", labels=["key", "priority"]
    )
    stored = GaugeMetricFamily(
        "pathar_key_stored_bytes", "Bytes of a key's jobs and results", labels=["key"]
    )
    for use in statistics.used:
        for priority, images in use.waiting.items():
            waiting.add_metric([use.key, priority], images)
        stored.add_metric([use.key], use.stored_bytes)
    yield from (waiting, stored)


class MetricsMiddleware:
    """Observes each HTTP request under its route's template, so that ids do not add series."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and observe its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            seconds = time.perf_counter() - started
            self._metrics.observe(route, scope["method"], status, seconds)
