"""The dashboard: what its script prints, in a form that Grafana reads, and fit to be read."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest
from pydantic import ConfigDict, TypeAdapter, ValidationError

from tests.deploy.files import ROOT
from tests.deploy.promql import DASHBOARD, dashboard, panels, selectors

SDK = "grafana_foundation_sdk"
ANY = ConfigDict(arbitrary_types_allowed=True)
# It would have us use a form of dashboards that Grafana before 12 does not read.
pytestmark = pytest.mark.filterwarnings("ignore:Prefer using:DeprecationWarning")


@pytest.fixture(scope="module")
def units() -> set[str]:
    module = importlib.import_module(f"{SDK}.models.units")
    return {value for value in vars(module).values() if isinstance(value, str)}


@pytest.mark.processes
def test_it_is_what_its_script_prints() -> None:
    script = ROOT / "deploy" / "grafana" / "dashboard.py"
    made = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert made.stdout == DASHBOARD.read_text(), (
        "python deploy/grafana/dashboard.py > deploy/grafana/dashboards/pathar.json"
    )


# The library's models are made from Grafana's own schema. Read into them and written again, the
# dashboard loses every field that the schema does not know; and every value in them must be of the
# type that the schema gives it: enumerations, numbers, lists. That is what this check is worth. It
# does not know PromQL (test_prometheus.py does) nor what an option that is free to have any type
# means to a panel.


def read_into_models(document: dict[str, Any]) -> Any:
    module, plugins = (
        importlib.import_module(f"{SDK}.{name}") for name in ("models.dashboard", "cog.plugins")
    )
    plugins.register_default_plugins()
    model = module.Dashboard.from_json(document)
    for panel in model.panels:
        raw = getattr(panel, "transformations", None) or []  # which the library leaves as it is
        if raw:
            panel.transformations = [module.DataTransformerConfig.from_json(each) for each in raw]
    return model


def written(model: object) -> dict[str, Any]:
    encoder = importlib.import_module(f"{SDK}.cog.encoder").JSONEncoder()
    found: dict[str, Any] = json.loads(encoder.encode(model))
    return found


def wrong_types(model: object) -> Iterator[str]:
    """Every value below a model that is not of the type that its class declares."""
    if isinstance(model, list | tuple):
        for each in model:
            yield from wrong_types(each)
    elif isinstance(model, dict):
        yield from wrong_types(list(model.values()))
    elif type(model).__module__.startswith(SDK) and not isinstance(model, Enum):
        hints = typing.get_type_hints(type(model))
        for name, value in vars(model).items():
            try:
                TypeAdapter(hints[name], config=ANY).validate_python(value)
            except ValidationError as error:
                yield f"{type(model).__name__}.{name}: {error}"
            yield from wrong_types(value)


def test_grafanas_schema_knows_every_field_and_value_of_it() -> None:
    model = read_into_models(dashboard())
    assert written(model) == dashboard()
    assert list(wrong_types(model)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["refresh"], 10),
        (["graphTooltip"], 7),
        (["panels", 1, "gridPos", "w"], "wide"),
        (["panels", 1, "options", "graphMode"], "zigzag"),
        (["panels", 1, "targets", 0, "expr"], ["up"]),
        (["templating", "list", 1, "sort"], "up"),
    ],
)
def test_the_check_finds_values_that_are_wrong(path: list[Any], value: object) -> None:
    document = dashboard()
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    assert path[-1] in place
    place[path[-1]] = value
    assert list(wrong_types(read_into_models(document))) != []


def test_the_check_finds_fields_that_do_not_exist() -> None:
    document = dashboard()
    document["panels"][1]["targets"][0]["expression"] = "up"
    assert written(read_into_models(document)) != document


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_in_which_unit(panel: dict[str, Any], units: set[str]) -> None:
    assert panel["description"].endswith(".")
    unit = panel["fieldConfig"]["defaults"]["unit"]
    assert unit in units or unit.startswith("suffix: ")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert target["legendFormat"]
        assert selectors(target["expr"])
    if panel["type"] == "timeseries":
        assert panel["options"]["legend"]["showLegend"] is True


def test_panels_fill_rows_of_24_columns_and_have_ids_of_their_own() -> None:
    document = dashboard()
    heights: dict[int, int] = {}
    for panel in document["panels"]:
        heights[panel["gridPos"]["y"]] = (
            heights.get(panel["gridPos"]["y"], 0) + panel["gridPos"]["w"]
        )
    assert set(heights.values()) == {24}
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in document["panels"]]
    assert len(set(titles)) == len(titles)


def test_every_metric_is_shown_or_is_one_that_says_little() -> None:
    from tests.test_documentation import api_metrics, metrics, worker_metrics

    known = metrics(api_metrics().registry) | metrics(worker_metrics().registry)
    shown = " ".join(t["expr"] for panel in panels() for t in panel["targets"])
    left_out = {name for name in known if name not in shown}
    assert left_out == {
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
    }


def test_what_every_api_process_tells_alike_is_never_summed_over_them() -> None:
    shared = (
        *("pathar_queue_", "pathar_started_images", "pathar_ready_slots", "pathar_jobs_total"),
        *("pathar_key_queue_", "pathar_key_stored_"),
    )
    for panel in panels():
        for target in panel["targets"]:
            for name in shared:
                before, found, _ = target["expr"].partition(name)
                if found:
                    assert "max by" in before, target["expr"]
