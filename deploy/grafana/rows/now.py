"""How long does an image take, is anybody waiting, is anything broken."""

from __future__ import annotations

from grafana_foundation_sdk.models import units

from rows.panels import Panel, figure, from_milliseconds, lines, stacked, thresholds
from rows.queries import MODEL, OLDEST, PROBES, WAITING, Query, W, jobs, percentile


def panels() -> list[Panel]:
    """The panels of this row."""
    interactive = 'stage="total", priority="interactive"'
    return [
        figure(
            "An image takes",
            "Seconds from request to result of interactive images, waiting included.",
            units.Seconds,
            Query(percentile(0.5, "priority", interactive), "median"),
            Query(percentile(0.99, "priority", interactive), "99 of 100 within"),
            span=6,
        ).decimals(2),
        figure(
            "In time",
            "Share of interactive images within the objective in the last hour, of the model that "
            "does worst. The objective stands in deploy/prometheus/rules/pathar.yml.",
            units.PercentUnit,
            Query(f"1 - max(pathar:interactive_images_late:ratio_rate1h{{{MODEL}}})", "in time"),
            span=3,
        )
        .decimals(1)
        .thresholds(thresholds("red", (0.9, "orange"), (0.99, "green"))),
        figure(
            "Images that wait",
            "Images that were asked for and have no slot yet.",
            units.Short,
            Query(f"sum({WAITING})", "waiting"),
            span=3,
        ).decimals(0),
        figure(
            "The oldest waits",
            "Seconds since the oldest image that waits was asked for.",
            units.Seconds,
            Query(f"max({OLDEST})", "oldest"),
            span=3,
        )
        .decimals(0)
        .thresholds(thresholds("green", (10, "orange"), (60, "red"))),
        figure(
            "Jobs that fail",
            "Share of the jobs that ended within 15 minutes.",
            units.PercentUnit,
            Query(
                f"sum(increase(pathar:jobs_failed:sum{{{MODEL}}}[15m]))"
                f" / sum(increase(pathar:jobs_ended:sum{{{MODEL}}}[15m]))",
                "failed",
            ),
            span=3,
        )
        .decimals(1)
        .thresholds(thresholds("green", (0.001, "orange"), (0.05, "red"))),
        figure(
            "Broken",
            "Alerts that fire, targets that Prometheus cannot scrape, API processes without "
            "Redis, and whether Redis refuses writes. Each alert has an entry in docs/runbook.md.",
            units.Short,
            Query(
                'count(ALERTS{alertstate="firing", alertname=~"Pathar.*"}) or vector(0)', "alerts"
            ),
            Query('count(up{job=~".*pathar.*"} == 0) or vector(0)', "targets down"),
            Query("count(pathar_redis_up == 0) or vector(0)", "without Redis"),
            Query("max(pathar_redis_refuses) or vector(0)", "Redis refuses writes"),
            span=6,
        )
        .decimals(0)
        .thresholds(thresholds("green", (1, "red"))),
        from_milliseconds(
            lines(
                "How long an image takes",
                "Seconds from request to result, waiting included. Bulk images may wait for long: "
                "they fill what interactive ones leave.",
                units.Seconds,
                Query(percentile(0.5, "priority", 'stage="total"'), "{{priority}}, median"),
                Query(percentile(0.9, "priority", 'stage="total"'), "{{priority}}, 90 of 100"),
                Query(percentile(0.99, "priority", 'stage="total"'), "{{priority}}, 99 of 100"),
            )
        ),
        stacked(
            "Who waits",
            "Images that have no slot yet, by model and priority.",
            units.Short,
            Query(WAITING, "{{model}}, {{priority}}"),
        ),
        lines(
            "What goes wrong",
            "Failed jobs by cause, images that a worker lost or handed back, and answers with 5xx, "
            "all a second.",
            units.CountsPerSecond,
            Query(jobs("cause", 'status="failed", '), "job failed: {{cause}}"),
            Query(
                "sum by (status) (rate(pathar_images_total"
                f'{{status!~"finished|canceled", {MODEL}}}{W}))',
                "image {{status}}",
            ),
            Query(
                f'sum by (status) (rate(pathar_http_requests_total{{status=~"5..", {PROBES}}}{W}))',
                "answered {{status}}",
            ),
        ),
    ]
