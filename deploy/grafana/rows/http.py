"""What clients ask the API, and what they are answered."""

from __future__ import annotations

from grafana_foundation_sdk.models import units

from rows.panels import Panel, lines, stacked
from rows.queries import PROBES, Query, W


def panels() -> list[Panel]:
    """The panels of this row."""
    requests = f"rate(pathar_http_requests_total{W})"
    return [
        stacked(
            "Requests by route",
            "Requests answered, a second.",
            units.RequestsPerSecond,
            Query(f"sum by (route) ({requests})", "{{route}}"),
            span=6,
        ),
        stacked(
            "Requests by status",
            "Requests answered, a second, those of probes left out.",
            units.RequestsPerSecond,
            Query(
                f"sum by (status) (rate(pathar_http_requests_total{{{PROBES}}}{W}))", "{{status}}"
            ),
            span=6,
        ),
        lines(
            "Seconds a request, by route",
            "What 90 of 100 requests did not exceed. POST /generate waits for its images, and "
            "/jobs/{job_id}/events for the end of a job.",
            units.Seconds,
            Query(
                "histogram_quantile(0.9, sum by (route, le) "
                f"(rate(pathar_http_request_seconds_bucket{{{PROBES}}}{W})))",
                "{{route}}",
            ),
            span=3,
        ),
        lines(
            "Problems by type",
            "Refusals and failures by the type of their problem document; docs/api.md says what "
            "each means.",
            units.RequestsPerSecond,
            Query(f"sum by (type) (rate(pathar_http_problems_total{W}))", "{{type}}"),
            span=3,
        ),
        lines(
            "Connections",
            "Connections of each API process, and those and requests for which none was free.",
            units.Short,
            Query("pathar_connections", "{{instance}}"),
            Query(f"rate(pathar_connections_refused_total{W})", "{{instance}} refused a second"),
            span=3,
        ),
        lines(
            "Webhooks",
            "Tries to send the end of a job to its URL. failed: it is tried again. given_up: the "
            "receiver wants no more, may not be called, or did not answer for most of a day.",
            units.RequestsPerSecond,
            Query(f"sum by (outcome) (rate(pathar_webhooks_total{W}))", "{{outcome}}"),
            span=3,
        ),
    ]
