"""A real Prometheus looks at a running service: every expression of the dashboard and of the rules
has data there, and its sums are what the clients counted.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from model.request import GenerationRequest, SamplingSettings
from store import keys
from store.access import ANYBODY
from store.statistics import CAUSES
from tests.conftest import DEADLINE_S, RedisServer
from tests.deploy.files import ROOT
from tests.deploy.prometheus import Prometheus
from tests.deploy.promql import (
    Asked,
    dashboard,
    of_dashboard,
    of_rules,
    rules,
    selectors,
    without_comparisons,
)
from tests.deploy.test_containers import free_port
from tests.running import Up, wait_until
from tests.service.conftest import LoneService
from tests.system import program

pytestmark = pytest.mark.system

TEST, ORGANS = "test-random", "organs-random"
GRAFANA = {"$__rate_interval": "10s", "$__range": "60s", "$model": ".*"}
PACE_S = 1.0
ONCE = "max by (status, cause, label, priority, model) (pathar_jobs_total)"


class Clients:
    """The API processes, and what they answered: POST /generate by status, problems by type."""

    def __init__(self, *urls: str) -> None:
        self.answers: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self._lock = threading.Lock()
        hooks = {"response": [self._count]}
        self._http = [httpx.Client(base_url=u, timeout=DEADLINE_S, event_hooks=hooks) for u in urls]

    def ask(self, wait: int = 0, *, through: int = 0, **body: Any) -> httpx.Response:
        """POST /generate; `through` the first or the second API process."""
        return self._http[through].post(f"/generate?wait={wait}", json=body)

    def look(self, path: str) -> httpx.Response:
        """GET something."""
        return self._http[0].get(path)

    def cancel(self, job_id: str) -> None:
        self._http[0].delete(f"/jobs/{job_id}").raise_for_status()

    def _count(self, answer: httpx.Response) -> None:
        answer.read()
        with self._lock:
            if answer.request.url.path == "/generate":
                self.answers[str(answer.status_code)] += 1
            if answer.is_error:
                self.problems[answer.json()["type"].removeprefix("urn:pathar:")] += 1

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs, once they have ended."""
        wait_until(lambda: not self.look("/jobs?status=queued").json()["jobs"], "the last start")
        wait_until(lambda: not self.look("/jobs?status=started").json()["jobs"], "the last end")
        found: list[dict[str, Any]] = []
        page = self.look("/jobs?limit=100").json()
        found += page["jobs"]
        while page["next"]:
            page = self.look(f"/jobs?limit=100&cursor={page['next']}").json()
            found += page["jobs"]
        return [self.look(f"/jobs/{each['job_id']}").json() for each in found]

    def close(self) -> None:
        for http in self._http:
            http.close()


@dataclass(frozen=True)
class Watched:
    """A service that was used, its jobs, what the clients counted, and the Prometheus that watched
    it from `start` to `end`."""

    prometheus: Prometheus
    clients: Clients
    jobs: list[dict[str, Any]]
    start: float
    end: float

    def has_numbers(self, expr: str) -> bool:
        for name, value in GRAFANA.items():
            expr = expr.replace(name, value)
        assert "$" not in expr, expr
        return self.prometheus.numbers(expr, self.start, self.end) > 0


@pytest.fixture(scope="module")
def watched(slow_checkpoint: Path, organ_checkpoint: Path) -> Iterator[Watched]:
    """Two API processes, two workers, each with a model of its own."""
    import torch

    binary, metrics = program("prometheus"), free_port(count=2)
    words = ["--checkpoint", str(slow_checkpoint), "--checkpoint", str(organ_checkpoint)]
    settings = {"PATHAR_WORKER_METRICS_PORT": str(metrics), "PATHAR_SLOTS": "4"}
    if torch.cuda.is_available():
        settings["PATHAR_DEVICE"] = "cuda"
    up = Up(Path("/nowhere"), *words, **settings)
    try:
        urls, workers = [up.ready().run()["url"]], [f"127.0.0.1:{metrics + n}" for n in range(2)]
        with tempfile.TemporaryDirectory(prefix="pathar-") as name:
            folder = Path(name)
            shared = RedisServer(folder)
            shared.url = up.run()["redis_url"]
            second = LoneService(shared, folder / "second-api.log")
            urls.append(second.url)
            targets = {
                "pathar-api": [url.removeprefix("http://") for url in urls],
                "pathar-worker": workers,
            }
            prometheus = Prometheus(binary, folder, free_port(), **targets)
            clients = Clients(*urls)
            try:
                load(clients, second, prometheus)
                jobs = clients.jobs()
                prometheus.wait_for_a_scrape()
                yield Watched(prometheus, clients, jobs, prometheus.started, time.time())
            finally:
                clients.close()
                prometheus.close()
                second.close()
    finally:
        up.close()


def load(clients: Clients, second: LoneService, prometheus: Prometheus) -> None:
    """Jobs that finish, fail, are canceled; requests that are refused; until an alert about the
    failures fires. A job ends well before any fails, as with every service that ever worked.
    """
    clients.ask(60, label="blood", model=TEST)
    wait_until(lambda: TEST in models(prometheus, "pathar:jobs_failed:sum"), "the first job")
    stop = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        steady = pool.submit(until, stop, clients)
        try:
            spoil(clients, second, pool)
            cancel(clients)
            for number in range(5):
                assert clients.ask(label=f"granite {number}", through=number % 2).is_error
            for number in range(3):
                assert clients.look(f"/jobs/nobody-{number}").status_code == 404
            fires = 'ALERTS{alertstate="firing", alertname="PatharJobsFail"}'
            wait_until(lambda: models(prometheus, fires) == {TEST}, "an alert about failures")
        finally:
            stop.set()
        steady.result()


def models(prometheus: Prometheus, expr: str) -> set[str]:
    return {dict(labels).get("model", "") for labels in prometheus.query(expr)}


def until(stop: threading.Event, clients: Clients) -> None:
    """Both models, both priorities, several labels, through both API processes."""
    number = 0
    while not stop.wait(PACE_S):
        number += 1
        clients.ask(60, label="histology", model=ORGANS, n=2, seed=number, through=number % 2)
        if number % 4 == 1:
            label = ("cytology", "cervix")[number % 8 > 3]
            clients.ask(label=label, model=TEST, n=8, seed=number, priority="bulk")
            clients.ask(60, label="blood", n=1, seed=number, model=TEST)


def spoil(clients: Clients, second: LoneService, pool: ThreadPoolExecutor) -> None:
    """Jobs that fail: two whose record somebody overwrites while they wait, one of them with its
    client waiting for it; and two for a label that the model does not have.
    """
    body = {"label": "blood", "model": TEST, "priority": "bulk"}
    blocker = clients.ask(n=200, **body).json()["job_id"]
    waiting = pool.submit(clients.ask, 60, **{**body, "label": "fluorescence"})
    jobs = "/jobs?label=fluorescence&status=queued"
    wait_until(lambda: clients.look(jobs).json()["jobs"], "the job that is waited for")
    spoiled = [clients.look(jobs).json()["jobs"][0]["job_id"], clients.ask(**body).json()["job_id"]]
    with second.redis_server.client() as client:
        for job_id in spoiled:
            part = keys.part_id(keys.owned_id(ANYBODY.id, job_id), 0)
            assert client.hset(keys.PART + part, "data", b"not ours") == 0, "it waits no more"
    clients.cancel(blocker)
    assert waiting.result().json()["type"] == "urn:pathar:job-failed"
    [model] = [m.info for m in second.registry.models() if m.info.name == TEST]
    for seed in range(2):
        request = GenerationRequest(("kidney",), 1, seed, (SamplingSettings(),))
        second.jobs.submit(request, model, owner=ANYBODY)


def cancel(clients: Clients) -> None:
    """A job that is canceled with some of its images drawn and some not."""
    job_id = clients.ask(label="histology", model=TEST, n=200).json()["job_id"]
    drawn = '"finished"'
    wait_until(lambda: drawn in clients.look(f"/jobs/{job_id}").text, "an image")
    clients.cancel(job_id)


@pytest.mark.parametrize("asked", of_dashboard(), ids=lambda asked: asked.where)
def test_every_expression_of_the_dashboard_has_data(watched: Watched, asked: Asked) -> None:
    assert watched.has_numbers(asked.expr)
    for selector in selectors(asked.expr):
        assert watched.has_numbers(selector), selector


@pytest.mark.parametrize("asked", of_rules(), ids=lambda asked: asked.where)
def test_every_expression_of_the_rules_has_data(watched: Watched, asked: Asked) -> None:
    """An alert has data while it is right to alert. What is asked here is the same without its
    comparisons with numbers, so that what it compares must be there, by labels that match; and
    each of its selectors, since `or` would hide one that finds nothing."""
    assert watched.has_numbers(without_comparisons(asked.expr))
    for selector in selectors(asked.expr):
        assert watched.has_numbers(selector), selector


def test_prometheus_scrapes_every_target_and_evaluates_every_rule(watched: Watched) -> None:
    targets = watched.prometheus.get("targets", state="active")["activeTargets"]
    assert [target["lastError"] for target in targets] == [""] * 4
    groups = watched.prometheus.get("rules")["groups"]
    health = [rule["health"] for group in groups for rule in group["rules"]]
    assert health == ["ok"] * len(rules())


def test_the_dashboards_variable_lists_the_models(watched: Watched) -> None:
    [query] = [v["query"] for v in dashboard()["templating"]["list"] if v["name"] == "model"]
    metric, label = query.removeprefix("label_values(").removesuffix(")").split(", ")
    asked = {"match[]": metric, "start": watched.start, "end": watched.end}
    assert set(watched.prometheus.get(f"label/{label}/values", **asked)) == {TEST, ORGANS}


def test_jobs_agree_with_what_clients_saw(watched: Watched) -> None:
    counted = Counter(job["status"] for job in watched.jobs)
    assert set(counted) == {"finished", "failed", "canceled"}
    assert watched.prometheus.by("status", f"sum by (status) ({ONCE})") == counted
    failed = ONCE.replace("pathar_jobs_total", 'pathar_jobs_total{status="failed"}')
    causes = watched.prometheus.by("cause", f"sum by (cause) ({failed})")
    assert causes == {"refused": 2, "request": 2}
    told = {dict(labels)["cause"] for labels in watched.prometheus.query(failed)}
    assert told == set(CAUSES), "those too that did not happen, as 0"


def test_images_agree_with_what_clients_saw(watched: Watched) -> None:
    finished = 'pathar_images_total{status="finished"}'
    for name in ("label", "priority", "model"):
        counted: Counter[str] = Counter()
        for job in watched.jobs:
            drawn = [image for image in job["images"] if image["status"] == "finished"]
            of_job = {"model": job["model"]["name"], "priority": job["priority"]}
            counted.update((of_job | {"label": image["label"]})[name] for image in drawn)
        found = watched.prometheus.by(name, f"sum by ({name}) ({finished})")
        assert found == +counted, name
    [total] = watched.prometheus.query('sum(pathar_image_seconds_count{stage="total"})').values()
    assert total == sum(counted.values())


def test_answers_and_refusals_agree_with_what_clients_saw(watched: Watched) -> None:
    requests = 'sum by (status) (pathar_http_requests_total{route="/generate"})'
    assert watched.prometheus.by("status", requests) == watched.clients.answers
    problems = "sum by (type) (pathar_http_problems_total)"
    assert watched.prometheus.by("type", problems) == watched.clients.problems


def test_the_picture_of_the_documentation_is_drawn_from_such_data(
    watched: Watched, tmp_path: Path
) -> None:
    script, out = ROOT / "deploy" / "grafana" / "picture.py", tmp_path / "dashboard.png"
    words = ["--url", watched.prometheus.url, "--minutes", "1", "--out", str(out)]
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(out) as drawn, Image.open(ROOT / "docs/operate/dashboard.png") as committed:
        assert drawn.size == committed.size
