"""Who asks for how much, by the names of API keys."""

from __future__ import annotations

from grafana_foundation_sdk.models import units

from rows.panels import IMAGES_PER_S, Panel, stacked
from rows.queries import Query, W


def panels() -> list[Panel]:
    """The panels of this row."""
    return [
        stacked(
            "Images accepted, by key",
            "Images of accepted jobs, a second.",
            IMAGES_PER_S,
            Query(f"sum by (key) (rate(pathar_key_images_total{W}))", "{{key}}"),
        ),
        stacked(
            "Images that wait, by key",
            "Images that have no slot yet.",
            units.Short,
            Query("sum by (key) (max by (key, priority) (pathar_key_queue_images))", "{{key}}"),
        ),
        stacked(
            "Bytes of results, by key",
            "Bytes of results and of records of jobs, as the limit of a key counts them. Results "
            "in object storage are among them.",
            units.BytesIEC,
            Query("max by (key) (pathar_key_stored_bytes)", "{{key}}"),
        ),
    ]
