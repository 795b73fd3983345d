"""docs/reference.md names every route, setting, metric and command of the code, and every link
between documents leads somewhere.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry

from model.memory import Memory
from pathar import errors
from pathar.cli import build_parser
from pathar.contract import ERRORS
from service import dataset_routes, draw_routes, files, job_routes
from service import routes as service_routes
from service.metrics import ApiMetrics
from store.statistics import Line, Statistics, Use
from worker.metrics import WorkerMetrics

ROOT = Path(__file__).parent.parent
PACKAGES = ("model", "runtime", "store", "worker", "service", "pathar")


DOCUMENTS = [
    path
    for path in sorted(
        [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("checkpoints/*/*.md")]
    )
    if "parts" not in path.parts
]


@pytest.fixture(scope="module")
def reference() -> str:
    return (ROOT / "docs" / "reference.md").read_text()


def routes() -> list[str]:
    return [
        f"{method} {route.path}"
        for module in (draw_routes, job_routes, files, dataset_routes, service_routes)
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
    line = Line("m", "bulk", 1, 1.0, {})
    statistics = Statistics((line,), {"m": 1}, {"m": 1}, (), (Use("ann", {"bulk": 1}, 1),), 1)
    return ApiMetrics("1", lambda: statistics, lambda: (0, 0), lambda: {"full": False})


def worker_metrics() -> WorkerMetrics:
    worker = WorkerMetrics("m", {})
    worker.device(lambda: Memory(1, 2), lambda: 0.5)
    return worker


def commands() -> list[str]:
    [sub] = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return sorted(sub.choices)


def _unnamed(text: str) -> str:
    """Paths with the names of their parameters left out."""
    return re.sub(r"\{\w+(:path)?\}", "{}", text)


@pytest.mark.parametrize("route", routes())
def test_every_route_is_in_the_reference(route: str, reference: str) -> None:
    method, path = route.split()
    assert _unnamed(f"{method} {path}") in _unnamed(reference)


@pytest.mark.parametrize("key", sorted(settings()))
def test_every_setting_is_in_the_reference(key: str, reference: str) -> None:
    assert key in reference


@pytest.mark.parametrize(
    "metric", sorted(metrics(api_metrics().registry) | metrics(worker_metrics().registry))
)
def test_every_metric_is_in_the_reference(metric: str, reference: str) -> None:
    assert metric in reference


@pytest.mark.parametrize("command", commands())
def test_every_command_is_in_the_reference(command: str, reference: str) -> None:
    assert f"pathar {command}" in reference


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


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """Targets of links and pictures that lie in this repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in links(document.read_text()):
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), target


def test_links_and_anchors_are_found() -> None:
    text = '# How it\'s made\n[a](b.md#c) ![d](e.png) <img src="f.jpg"> [g](https://h.example)'
    assert links(text) == ["b.md#c", "e.png", "f.jpg"]
    assert anchors(text) == {"how-its-made"}


def test_the_readme_is_short_and_leads_to_the_other_documents() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 120
    named = set(links(readme))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        assert path.name == "README.md" or str(path.relative_to(ROOT)) in named


def test_every_path_that_contributors_are_led_to_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"\b[\w./-]+/[\w./-]+\.(?:py|cpp|json)\b", text)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
