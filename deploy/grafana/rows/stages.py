"""Where the time of an image goes."""

from __future__ import annotations

from grafana_foundation_sdk.builders import heatmap
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from rows.panels import SOURCE, Panel, from_milliseconds, lines, stacked, target
from rows.queries import MODEL, Query, W, percentile


def panels() -> list[Panel]:
    """The panels of this row."""
    rate = f'(rate(pathar_image_seconds_%s{{stage!="total", {MODEL}}}{W}))'
    mean = f"sum by (stage) {rate % 'sum'} / sum by (stage) {rate % 'count'}"
    color = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
    return [
        stacked(
            "Where the time goes",
            "Mean seconds of an image in each stage: waiting for a slot, decode steps, pixels from "
            "tokens, PNGs, Redis.",
            units.Seconds,
            Query(mean, "{{stage}}"),
        ),
        from_milliseconds(
            lines(
                "Half of the images within",
                "Median of each stage.",
                units.Seconds,
                Query(percentile(0.5, "stage", 'stage!="total"'), "{{stage}}"),
            )
        ),
        from_milliseconds(
            lines(
                "99 of 100 images within",
                "The 99th percentile of each stage.",
                units.Seconds,
                Query(percentile(0.99, "stage", 'stage!="total"'), "{{stage}}"),
            )
        ),
        heatmap.Panel()
        .title("From request to result")
        .description("How many images took how long, all priorities.")
        .datasource(SOURCE)
        .unit(units.Seconds)
        .span(12)
        .height(9)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(units.Seconds))
        .color(color)
        .targets(
            [
                target(
                    0,
                    Query(
                        "sum by (le) (increase(pathar_image_seconds_bucket"
                        f'{{stage="total", {MODEL}}}{W}))',
                        "{{le}}",
                        PromQueryFormat.HEATMAP,
                    ),
                )
            ]
        ),
        lines(
            "Decode steps of an image, by label",
            "The 90th percentile of the seconds from a slot to the last token.",
            units.Seconds,
            Query(percentile(0.9, "label", 'stage="decode"'), "{{label}}"),
            span=12,
        ),
    ]
