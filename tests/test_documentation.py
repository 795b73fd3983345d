"""The README names every route, setting, metric and command that the code has."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry

from model.contract import ERRORS
from model.memory import Memory
from pathar import errors
from pathar.cli import build_parser
from service import files, job_routes
from service import routes as service_routes
from service.metrics import ApiMetrics
from store.census import Census, Line
from worker.metrics import WorkerMetrics

ROOT = Path(__file__).parent.parent
PACKAGES = ("model", "store", "worker", "service", "pathar")


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text()


def routes() -> list[str]:
    return [
        f"{method} {route.path}"
        for module in (job_routes, files, service_routes)
        for route in module.router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    ]


def settings() -> set[str]:
    sources = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    found = {key for path in sources for key in re.findall(r"PATHAR_[A-Z_]+\b", path.read_text())}
    return {key for key in found if not key.endswith("_")}


def metrics(registry: CollectorRegistry) -> set[str]:
    return {
        family.name + ("_total" if family.type == "counter" else "")
        for family in registry.collect()
    }


def api_metrics() -> ApiMetrics:
    census = Census((Line("m", "bulk", 1, 1.0),), {"m": 1}, {"m": 1}, ())
    return ApiMetrics("1", lambda: census)


def worker_metrics() -> WorkerMetrics:
    worker = WorkerMetrics("m", {})
    worker.device(lambda: Memory(1, 2), lambda: 0.5)
    return worker


def commands() -> list[str]:
    [sub] = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return sorted(sub.choices)


def _unnamed(text: str) -> str:
    """Paths with the names of their parameters left out."""
    return re.sub(r"\{\w+\}", "{}", text)


@pytest.mark.parametrize("route", routes())
def test_every_route_is_in_the_readme(route: str, readme: str) -> None:
    method, path = route.split()
    assert _unnamed(f"{method} {path}") in _unnamed(readme)


@pytest.mark.parametrize("key", sorted(settings()))
def test_every_setting_is_in_the_readme(key: str, readme: str) -> None:
    assert key in readme


@pytest.mark.parametrize(
    "metric", sorted(metrics(api_metrics().registry) | metrics(worker_metrics().registry))
)
def test_every_metric_is_in_the_readme(metric: str, readme: str) -> None:
    assert metric in readme


@pytest.mark.parametrize("command", commands())
def test_every_command_is_in_the_readme(command: str, readme: str) -> None:
    assert f"pathar {command}" in readme


def test_the_errors_of_the_api_document_are_those_of_the_contract() -> None:
    document = (ROOT / "docs" / "api.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\S+)` \| `(\w+)` \|", document, re.MULTILINE)
    expected = [(str(kind.status), name, kind.__name__) for name, kind in ERRORS.items()]
    assert rows == expected


def test_the_client_has_every_error_of_the_contract() -> None:
    for kind in ERRORS.values():
        assert getattr(errors, kind.__name__) is kind


def test_the_lists_are_read_from_the_code() -> None:
    assert {"PATHAR_HOST", "PATHAR_CHECKPOINT", "PATHAR_HOME"} <= settings()
    assert "POST /generate" in routes()
    assert "generate" in commands()
