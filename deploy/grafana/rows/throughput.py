"""How much is drawn, and how full the workers are."""

from __future__ import annotations

from grafana_foundation_sdk.models import units

from rows.panels import IMAGES_PER_S, TOKENS_PER_S, Panel, lines, stacked
from rows.queries import MODEL, Query, W


def panels() -> list[Panel]:
    """The panels of this row."""
    finished = f'rate(pathar_images_total{{status="finished", {MODEL}}}{W})'
    return [
        stacked(
            "Images by label",
            "Finished images a second.",
            IMAGES_PER_S,
            Query(f"sum by (label) ({finished})", "{{label}}"),
        ),
        stacked(
            "Images by model",
            "Finished images a second.",
            IMAGES_PER_S,
            Query(f"sum by (model) ({finished})", "{{model}}"),
        ),
        stacked(
            "Images by worker",
            "Finished images a second.",
            IMAGES_PER_S,
            Query(f"sum by (instance) ({finished})", "{{instance}}"),
        ),
        lines(
            "Tokens",
            "Tokens of finished rows a second, of both streams.",
            TOKENS_PER_S,
            Query(f"sum by (model) (rate(pathar_tokens_total{{{MODEL}}}{W}))", "{{model}}"),
        ),
        lines(
            "Mean fill of a step",
            "Rows that a decode step is made for. A step costs little more for more rows, so the "
            "fuller the better; it cannot be more than the slots of a worker.",
            units.Short,
            Query(
                f"sum by (model) (rate(pathar_step_rows_total{{{MODEL}}}{W}))"
                f" / sum by (model) (rate(pathar_steps_total{{{MODEL}}}{W}))",
                "{{model}}",
            ),
        ),
        stacked(
            "Slots",
            "Slots of the workers, in use and not.",
            units.Short,
            Query(f"sum by (state) (pathar_slots{{{MODEL}}})", "{{state}}"),
        ),
        stacked(
            "Data sets",
            "Pairs a second that workers store in shards of data sets, in bursts of a shard.",
            IMAGES_PER_S,
            Query(f"sum by (instance) (rate(pathar_dataset_pairs_total{W}))", "{{instance}}"),
            span=12,
        ),
        lines(
            "Data sets being drawn",
            "Data sets of all keys, without paused ones.",
            units.Short,
            Query("max(pathar_datasets)", "data sets"),
            span=12,
        ),
    ]
