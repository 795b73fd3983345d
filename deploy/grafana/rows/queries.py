"""What panels ask: expressions that several of them share.

What the API tells of models, queues and jobs is the same whichever process is asked: it is read
with `max by`, never summed over processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from grafana_foundation_sdk.models.prometheus import PromQueryFormat

MODEL = 'model=~"$model"'
W = "[$__rate_interval]"

WAITING = f"max by (model, priority) (pathar_queue_images{{{MODEL}}})"
OLDEST = f"max by (model, priority) (pathar_queue_oldest_seconds{{{MODEL}}})"
WORKER = f"max by (job, instance, model) (pathar_worker_info{{{MODEL}}})"
OF_WORKERS = f"* on (job, instance) group_left (model) {WORKER}"
PROBES = 'route!~"/metrics|/healthz|/readyz"'


@dataclass(frozen=True)
class Query:
    """One expression and how its series are called."""

    expr: str
    legend: str
    format: PromQueryFormat = PromQueryFormat.TIME_SERIES


def percentile(share: float, by: str, where: str) -> str:
    """Seconds of an image that this share of them does not exceed, by a label."""
    rate = f"rate(pathar_image_seconds_bucket{{{where}, {MODEL}}}{W})"
    return f"histogram_quantile({share}, sum by ({by}, le) ({rate}))"


def jobs(by: str, where: str) -> str:
    """Jobs that end, a second, by a label."""
    each = f"rate(pathar_jobs_total{{{where}{MODEL}}}{W})"
    return f"sum by ({by}) (max by (status, cause, label, priority, model) ({each}))"
