"""The Grafana dashboard: prints what belongs into `dashboards/pathar.json`.

    python deploy/grafana/dashboard.py > deploy/grafana/dashboards/pathar.json

The form that it is in, with panels in a grid, is read by every Grafana in use and can be put in
place from a file. What the API tells of models, queues and jobs is the same whichever process is
asked: it is read with `max by`, never summed over processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
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
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Panel = stat.Panel | timeseries.Panel | heatmap.Panel | table.Panel
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

MODEL = 'model=~"$model"'
W = "[$__rate_interval]"
IMAGES_PER_S, TOKENS_PER_S, JOBS_PER_S = "suffix: images/s", "suffix: tokens/s", "suffix: jobs/s"

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


# -- the kinds of panels --------------------------------------------------------------------------


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


# -- the rows -------------------------------------------------------------------------------------


def now() -> list[Panel]:
    """How long does an image take, is anybody waiting, is anything broken."""
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
            "Alerts that fire, targets that Prometheus cannot scrape, and API processes without "
            "Redis. Each alert has an entry in docs/runbook.md.",
            units.Short,
            Query(
                'count(ALERTS{alertstate="firing", alertname=~"Pathar.*"}) or vector(0)', "alerts"
            ),
            Query('count(up{job=~".*pathar.*"} == 0) or vector(0)', "targets down"),
            Query("count(pathar_redis_up == 0) or vector(0)", "without Redis"),
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


def stages() -> list[Panel]:
    """Where the time of an image goes."""
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


def throughput() -> list[Panel]:
    """How much is drawn, and how full the workers are."""
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
    ]


def queue() -> list[Panel]:
    """Who waits, how long, and what for."""
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


def ends() -> list[Panel]:
    """How jobs end, and why they fail."""
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
            "taken them over. handed_back: by a worker that stopped. failed: see the cause of "
            "their job.",
            IMAGES_PER_S,
            Query(
                f'sum by (status) (rate(pathar_images_total{{status!="finished", {MODEL}}}{W}))',
                "{{status}}",
            ),
            Query(
                f"sum(rate(pathar_refused_parts_total{{{MODEL}}}{W}))", "record of another's making"
            ),
        ),
    ]


def http() -> list[Panel]:
    """What clients ask the API, and what they are answered."""
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
            span=6,
        ),
        lines(
            "Problems by type",
            "Refusals and failures by the type of their problem document; docs/api.md says what "
            "each means.",
            units.RequestsPerSecond,
            Query(f"sum by (type) (rate(pathar_http_problems_total{W}))", "{{type}}"),
            span=6,
        ),
    ]


def workers() -> list[Panel]:
    """The processes and their machines."""
    info = "model, model_version, version, numerics, device, decoder, precision"
    hidden = {"Time": True, "__name__": True, "job": True}
    uptime = DynamicConfigValue("unit", units.DurationSeconds)
    return [
        table.Panel()
        .title("What the workers are")
        .description("What each worker is, and how long its process has lived.")
        .datasource(SOURCE)
        .unit(units.Short)
        .span(16)
        .height(8)
        .override_by_name("up for", [uptime, DynamicConfigValue("decimals", 0)])
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": hidden, "renameByName": {"Value": "up for"}},
            )
        )
        .targets(
            [
                target(
                    0,
                    Query(
                        f"(time() - process_start_time_seconds) * on (job, instance) group_left"
                        f" ({info}) pathar_worker_info{{{MODEL}}}",
                        "{{instance}}",
                        PromQueryFormat.TABLE,
                    ),
                )
            ]
        ),
        lines(
            "Starts of a worker",
            "How often the process at an address was started anew within the last hour.",
            units.Short,
            Query(f"changes(process_start_time_seconds[1h]) {OF_WORKERS}", "{{instance}}"),
        )
        .height(8)
        .decimals(0),
        lines(
            "Memory",
            "Resident memory of each process. A worker takes all of it at start.",
            units.BytesIEC,
            Query(f"process_resident_memory_bytes {OF_WORKERS}", "{{model}} at {{instance}}"),
            Query(
                "process_resident_memory_bytes and on (job, instance) pathar_api_info",
                "API at {{instance}}",
            ),
            span=6,
        ),
        lines(
            "Cores in use",
            "CPU seconds a second of each process.",
            units.Short,
            Query(f"rate(process_cpu_seconds_total{W}) {OF_WORKERS}", "{{model}} at {{instance}}"),
            Query(
                f"rate(process_cpu_seconds_total{W}) and on (job, instance) pathar_api_info",
                "API at {{instance}}",
            ),
            span=6,
        ),
        lines(
            "GPU in use",
            "Share of time in which the GPU of a worker had work. Empty without a GPU.",
            units.PercentUnit,
            Query(f"pathar_gpu_use_ratio{{{MODEL}}}", "{{model}} at {{instance}}"),
            span=6,
        ).max(1),
        stacked(
            "Memory of the GPU",
            "Used, whoever uses it, and free. Empty without a GPU.",
            units.BytesIEC,
            Query(f"pathar_gpu_memory_bytes{{{MODEL}}}", "{{state}}, {{model}} at {{instance}}"),
            span=6,
        ),
    ]


ROWS = {
    "How long does an image take, is anybody waiting, is anything broken": now,
    "Stages of an image": stages,
    "Throughput": throughput,
    "Queue": queue,
    "Jobs": ends,
    "HTTP": http,
    "Workers": workers,
}


def _variables() -> list[dashboard.DatasourceVariable | dashboard.QueryVariable]:
    everything = VariableOption(selected=True, text="All", value="$__all")
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    model = (
        dashboard.QueryVariable("model")
        .label("Model")
        .description("Models that workers serve or once served")
        .datasource(SOURCE)
        .query("label_values(pathar_ready_slots, model)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(everything)
    )
    return [source, model]


def build() -> dashboard.Dashboard:
    """The dashboard."""
    alerts = (
        dashboard.AnnotationQuery()
        .name("Alerts")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("red")
        .expr('ALERTS{alertstate="firing", alertname=~"Pathar.*"}')
        .title_format("{{alertname}}")
        .text_format("{{model}} {{instance}}")
        .step("60s")
    )
    made = (
        dashboard.Dashboard("PathAR")
        .uid("pathar")
        .description("How long an image takes, who waits, and what is broken")
        .tags(["pathar"])
        .readonly()
        .time("now-1h", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .annotation(alerts)
    )
    for variable in _variables():
        made.with_variable(variable)
    number = 0
    for title, row in ROWS.items():
        number += 1
        made.with_row(dashboard.Row(title).id(number))
        for panel in row():
            number += 1
            made.with_panel(panel.id(number))
    return made


def main() -> None:
    """Print it."""
    print(JSONEncoder(indent=2, sort_keys=True).encode(build().build()))


if __name__ == "__main__":
    main()
