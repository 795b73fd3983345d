"""The Grafana dashboard: prints what belongs into `dashboards/pathar.json`.

    python deploy/grafana/dashboard.py > deploy/grafana/dashboards/pathar.json

The form that it is in, with panels in a grid, is read by every Grafana in use and can be put in
place from a file.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from rows import http, jobs, keys, now, queue, stages, throughput, workers
from rows.panels import SOURCE

ROWS = {
    "How long does an image take, is anybody waiting, is anything broken": now,
    "Stages of an image": stages,
    "Throughput": throughput,
    "Queue": queue,
    "Keys": keys,
    "Jobs": jobs,
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
        for panel in row.panels():
            number += 1
            made.with_panel(panel.id(number))
    return made


def main() -> None:
    """Print it."""
    print(JSONEncoder(indent=2, sort_keys=True).encode(build().build()))


if __name__ == "__main__":
    main()
