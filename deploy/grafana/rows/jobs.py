"""How jobs end, and why they fail."""

from __future__ import annotations

from rows.panels import IMAGES_PER_S, JOBS_PER_S, Panel, lines, stacked
from rows.queries import MODEL, Query, W, jobs


def panels() -> list[Panel]:
    """The panels of this row."""
    return [
        stacked(
            "Jobs by their end",
            "Jobs that end, a second.",
            JOBS_PER_S,
            Query(jobs("status", ""), "{{status}}"),
        ),
        lines(
            "Failed jobs by cause",
            "engine: a defect or a broken device. timeout: more than 10 minutes in a slot. "
            "request: the model cannot draw it. lost worker: too many workers died over it. "
            "numerics: only workers with other bits are left. refused: not written by this API.",
            JOBS_PER_S,
            Query(jobs("cause, model", 'status="failed", '), "{{cause}}, {{model}}"),
        ),
        lines(
            "Images that were not finished",
            "canceled: they had a slot when their job ended otherwise. lost: another worker had "
            "taken them over. handed_back: by a worker that stopped. retried: a worker could not "
            "draw them. failed: see the cause of their job.",
            IMAGES_PER_S,
            Query(
                f'sum by (status) (rate(pathar_images_total{{status!="finished", {MODEL}}}{W}))',
                "{{status}}",
            ),
            Query(
                f"sum(rate(pathar_refused_parts_total{{{MODEL}}}{W}))",
                "record that the API did not write",
            ),
        ),
    ]
