"""The kinds of panels that rows are made of."""

from __future__ import annotations

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    DataSourceRef,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import Threshold, ThresholdsMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from rows.queries import Query

Panel = stat.Panel | timeseries.Panel | heatmap.Panel | table.Panel
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

IMAGES_PER_S, TOKENS_PER_S, JOBS_PER_S = "suffix: images/s", "suffix: tokens/s", "suffix: jobs/s"


def target(number: int, query: Query) -> prometheus.Dataquery:
    """A panel's query."""
    made = (
        prometheus.Dataquery()
        .ref_id("ABCDEFGH"[number])
        .datasource(SOURCE)
        .expr(query.expr)
        .legend_format(query.legend)
        .format(query.format)
    )
    return made.instant() if query.format is PromQueryFormat.TABLE else made.range()


def thresholds(first: str, *steps: tuple[float, str]) -> dashboard.ThresholdsConfig:
    """A colour for low values, and those from each of the steps on."""
    found = [Threshold(None, first), *(Threshold(value, color) for value, color in steps)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(found)


def figure(title: str, description: str, unit: str, *queries: Query, span: int) -> stat.Panel:
    """Big numbers: the latest value of each series, above its course."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(span)
        .height(5)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .text_mode(BigValueTextMode.VALUE_AND_NAME if len(queries) > 1 else BigValueTextMode.VALUE)
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.AREA)
        .thresholds(thresholds("text"))
        .targets([target(number, query) for number, query in enumerate(queries)])
    )


def lines(
    title: str, description: str, unit: str, *queries: Query, span: int = 8
) -> timeseries.Panel:
    """Lines over time, with a table of them below."""
    legend = (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(LegendDisplayMode.TABLE)
        .placement(LegendPlacement.BOTTOM)
        .calcs(["mean", "max", "lastNotNull"])
    )
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
    return (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(span)
        .height(9)
        .min(0)
        .line_width(2)
        .fill_opacity(8)
        .show_points(VisibilityMode.NEVER)
        .legend(legend)
        .tooltip(tooltip)
        .targets([target(number, query) for number, query in enumerate(queries)])
    )


def from_milliseconds(panel: timeseries.Panel) -> timeseries.Panel:
    """Seconds that differ by orders of magnitude."""
    log = common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
    return panel.scale_distribution(log).min(0.001)


def stacked(
    title: str, description: str, unit: str, *queries: Query, span: int = 8
) -> timeseries.Panel:
    """Areas on top of each other, whose height is their sum."""
    stacking = common.StackingConfig().mode(StackingMode.NORMAL).group("A")
    panel = lines(title, description, unit, *queries, span=span)
    return panel.stacking(stacking).fill_opacity(40).line_width(1)
