"""Reads metrics for `pathar top`: scrapes API and workers and compares with the last reading.

Knows no terminal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 2.0

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Reading:
    """The samples of several `/metrics` at one time, and the URLs that did not answer."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]
    silent: tuple[str, ...] = ()

    def sum(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 where there are none."""
        wanted = set(labels.items())
        found = self.samples.get(name, {})
        return sum(value for given, value in found.items() if wanted <= given)

    def largest(self, name: str, **labels: str) -> float:
        """The largest of a metric's samples with these labels, where all processes report the same
        quantity; 0 where there are none.
        """
        urls = self.values(name, "instance")
        return max((self.sum(name, instance=url, **labels) for url in urls), default=0.0)

    def values(self, name: str, label: str) -> list[str]:
        """The values of a label, sorted."""
        found = {dict(given)[label] for given in self.samples.get(name, {}) if label in dict(given)}
        return sorted(found)


@dataclass
class Source:
    """Where metrics come from: `/metrics` of API processes and of workers."""

    urls: Sequence[str]
    http: httpx.Client

    def read(self) -> Reading:
        """Scrape all URLs. Those without an answer are listed in the result."""
        samples: dict[str, dict[Labels, float]] = {}
        silent = []
        for url in self.urls:
            try:
                text = self.http.get(url).raise_for_status().text
            except httpx.HTTPError:
                silent.append(url)
                continue
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    labels = frozenset({**sample.labels, "instance": url}.items())
                    samples.setdefault(sample.name, {})[labels] = sample.value
        return Reading(time.monotonic(), samples, tuple(silent))


def rate(now: Reading, before: Reading, name: str, **labels: str) -> float:
    """A counter's growth per second; 0 after a restart of the process."""
    seconds = now.at - before.at
    grown = now.sum(name, **labels) - before.sum(name, **labels)
    return max(0.0, grown) / seconds if seconds > 0 else 0.0


def quantile(share: float, now: Reading, before: Reading, name: str, **labels: str) -> float | None:
    """A quantile of a histogram between two readings, computed as Prometheus' histogram_quantile.

    Without samples between them, the quantile of all samples; None without any."""
    grown = _buckets(now, name, labels)
    last = _buckets(before, name, labels)
    recent = {bound: count - last.get(bound, 0.0) for bound, count in grown.items()}
    return _quantile(share, recent) or _quantile(share, grown)


def _buckets(reading: Reading, name: str, labels: Mapping[str, str]) -> dict[float, float]:
    wanted = set(labels.items())
    found: dict[float, float] = {}
    for given, value in reading.samples.get(f"{name}_bucket", {}).items():
        if wanted <= given:
            bound = float(dict(given)["le"])
            found[bound] = found.get(bound, 0.0) + value
    return found


def _quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None
    rank, lower, below = share * buckets[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - below) / max(count - below, 1e-12)
        lower, below = bound, count
    return lower
