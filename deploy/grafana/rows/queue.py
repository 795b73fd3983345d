"""Who waits, how long, and what for."""

from __future__ import annotations

from grafana_foundation_sdk.models import units

from rows.panels import Panel, lines, stacked
from rows.queries import MODEL, OLDEST, WAITING, Query, percentile


def panels() -> list[Panel]:
    """The panels of this row."""
    return [
        stacked(
            "Images that wait, by priority",
            "Images that have no slot yet.",
            units.Short,
            Query(f"sum by (priority) ({WAITING})", "{{priority}}"),
            span=6,
        ),
        lines(
            "Age of the oldest",
            "Seconds since the oldest image that waits was asked for.",
            units.Seconds,
            Query(OLDEST, "{{model}}, {{priority}}"),
            span=6,
        ),
        lines(
            "Being drawn, and room",
            "Images in slots, and slots of the workers that live, by model. No slot means that no "
            "worker of this model lives.",
            units.Short,
            Query(f"max by (model) (pathar_started_images{{{MODEL}}})", "{{model}}, drawn"),
            Query(f"max by (model) (pathar_ready_slots{{{MODEL}}})", "{{model}}, slots"),
            span=6,
        ),
        lines(
            "Waiting for a slot",
            "Seconds from request to slot that 90 of 100 images did not exceed.",
            units.Seconds,
            Query(percentile(0.9, "priority", 'stage="queue"'), "{{priority}}"),
            span=6,
        ),
    ]
