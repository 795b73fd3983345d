"""A real Prometheus looks at a running service: every expression of the dashboard and of the rules
has data there, and its sums are what the clients counted.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from PIL import Image

from model.request import GenerationRequest, SamplingSettings
from store import keys
from store.access import ANYBODY
from store.census import CAUSES
from store.jobs import JobStore
from store.registry import Registry
from tests.conftest import DEADLINE_S
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
from tests.running import Up, wait_until
from tests.system import program

pytestmark = pytest.mark.system

TEST, ORGANS = "test-random", "organs-random"
GRAFANA = {"$__rate_interval": "10s", "$__range": "60s", "$model": ".*"}
PACE_S = 0.5
ONCE = "max by (status, cause, label, priority, model) (pathar_jobs_total)"


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@dataclass
class Told:
    """What the clients were told: jobs, answers to POST /generate, and problems by type."""

    jobs: list[dict[str, Any]] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)

    def by_status(self) -> Counter[str]:
        return Counter(job["status"] for job in self.jobs)

    def images(self, name: str) -> Counter[str]:
        """Finished images by label, priority or model of their job."""
        counted: Counter[str] = Counter()
        for job in self.jobs:
            drawn = sum(image["status"] == "finished" for image in job["images"])
            counted[job["model"]["name"] if name == "model" else job[name]] += drawn
        return +counted


class Clients:
    """Everything that asks the service of this test for something, counting as it goes."""

    def __init__(self, up: Up, other: str) -> None:
        self._up = up
        urls = (up.run()["url"], other)
        self._http = [httpx.Client(base_url=url, timeout=DEADLINE_S) for url in urls]
        self._lock = threading.Lock()
        self._asked: list[str] = []
        self.told = Told()

    def ask(self, wait: int = 0, *, through: int = 0, **body: Any) -> httpx.Response:
        """POST /generate; `through` the first or the second API process."""
        answer = self._http[through].post(f"/generate?wait={wait}", json=body)
        with self._lock:
            self.told.answers[str(answer.status_code)] += 1
            self._note(answer)
            if "job_id" in answer.json():
                self._asked.append(answer.json()["job_id"])
        return answer

    def put(self, job_id: str, **body: Any) -> None:
        """A job under an id of its own."""
        self._http[0].put(f"/jobs/{job_id}", json=body).raise_for_status()
        with self._lock:
            self._asked.append(job_id)

    def look(self, path: str) -> httpx.Response:
        """GET something."""
        answer = self._http[0].get(path)
        with self._lock:
            self._note(answer)
        return answer

    def cancel(self, job_id: str) -> None:
        self._http[0].delete(f"/jobs/{job_id}").raise_for_status()

    def also(self, job_id: str) -> None:
        """Count a job that came another way."""
        self._asked.append(job_id)

    def finish(self) -> Told:
        """Wait for the end of all that was asked for."""
        self.told.jobs = [self._up.ended(job_id) for job_id in self._asked]
        return self.told

    def _note(self, answer: httpx.Response) -> None:
        if answer.status_code >= 400:
            self.told.problems[answer.json()["type"].removeprefix("urn:pathar:")] += 1

    def close(self) -> None:
        for http in self._http:
            http.close()


@dataclass(frozen=True)
class Watched:
    """A service under load, the Prometheus that watched it from `start` to `end`, and what the
    clients were told."""

    prometheus: Prometheus
    told: Told
    start: float
    end: float

    def has_numbers(self, expr: str) -> bool:
        for name, value in GRAFANA.items():
            expr = expr.replace(name, value)
        assert "$" not in expr, expr
        return self.prometheus.numbers(expr, self.start, self.end) > 0


def free_ports(count: int) -> list[int]:
    """So many free ports next to each other."""
    while True:
        with ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                for each in range(port + 1, port + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", each))
            except (OSError, OverflowError):
                continue
            return list(range(port, port + count))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="pathar-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def ports() -> list[int]:
    """Of both workers and of Prometheus."""
    return free_ports(3)


@pytest.fixture(scope="module")
def up(slow_checkpoint: Path, organ_checkpoint: Path, ports: list[int]) -> Iterator[Up]:
    program("prometheus")
    words = ["--checkpoint", str(slow_checkpoint), "--checkpoint", str(organ_checkpoint)]
    settings = {"PATHAR_WORKER_METRICS_PORT": str(ports[0]), "PATHAR_SLOTS": "4"}
    if has_gpu():
        settings["PATHAR_DEVICE"] = "cuda"
    running = Up(Path("/nowhere"), *words, **settings)
    try:
        yield running.ready()
    finally:
        running.close()


@pytest.fixture(scope="module")
def second_api(up: Up, folder: Path) -> Iterator[str]:
    """The address of another API process on the same Redis."""
    env = {**os.environ, "PATHAR_REDIS_URL": up.run()["redis_url"], "PATHAR_PORT": "0"}
    log = folder / "second-api.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "service"],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: "serving " in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        url = log.read_text().partition("serving ")[2].split()[0]
        wait_until(lambda: answers(url), "the second API process")
        yield url
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def watched(up: Up, second_api: str, folder: Path, ports: list[int]) -> Iterator[Watched]:
    apis = [url.removeprefix("http://") for url in (up.run()["url"], second_api)]
    workers = [f"127.0.0.1:{port}" for port in ports[:2]]
    targets = {"pathar-api": apis, "pathar-worker": workers}
    prometheus = Prometheus(program("prometheus"), folder, ports[2], **targets)
    clients = Clients(up, second_api)
    try:
        load(up, clients, prometheus)
        told = clients.finish()
        prometheus.wait_for_a_scrape()
        yield Watched(prometheus, told, prometheus.started, time.time())
    finally:
        clients.close()
        prometheus.close()


def load(up: Up, clients: Clients, prometheus: Prometheus) -> None:
    """Jobs that finish, fail, are canceled; requests that are refused; until an alert about the
    failures fires. A job ends well before any fails, as with every service that ever worked.
    """
    clients.ask(60, label="blood", model=TEST)
    wait_until(lambda: TEST in models(prometheus, "pathar:jobs_failed:sum"), "the first job")
    stop = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        steady = pool.submit(until, stop, clients)
        try:
            spoil(up, clients, pool)
            cancel(up, clients)
            refuse(clients)
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


def spoil(up: Up, clients: Clients, pool: ThreadPoolExecutor) -> None:
    """Jobs that fail: two whose record somebody overwrites while they wait, one of them with its
    client waiting for it; and two for a label that the model does not have.
    """
    body = {"label": "blood", "model": TEST, "priority": "bulk"}
    with redis.Redis.from_url(up.run()["redis_url"]) as client:
        blocker = clients.ask(n=200, **body).json()["job_id"]
        waiting = pool.submit(clients.ask, 60, **{**body, "label": "fluorescence"})
        clients.put("spoiled", **body)
        jobs = "/jobs?label=fluorescence&status=queued"
        wait_until(lambda: clients.look(jobs).json()["jobs"], "the job that is waited for")
        waited_for = clients.look(jobs).json()["jobs"][0]["job_id"]
        clients.also(waited_for)
        for job_id in ("spoiled", waited_for):
            part = keys.part_id(keys.owned_id(ANYBODY.id, job_id), 0)
            assert client.hset(keys.PART + part, "data", b"not ours") == 0, "it waits no more"
        clients.cancel(blocker)
        assert waiting.result().json()["type"] == "urn:pathar:job-failed"
        [model] = [m.info for m in Registry(client).models() if m.info.name == TEST]
        store = JobStore(client, result_ttl=600)
        for seed in range(2):
            request = GenerationRequest("kidney", 1, seed, SamplingSettings())
            job, _ = store.submit(request, model, owner=ANYBODY)
            clients.also(job.id)


def cancel(up: Up, clients: Clients) -> None:
    """A job that is canceled with some of its images drawn and some not."""
    job_id = clients.ask(label="histology", model=TEST, n=200).json()["job_id"]
    path = f"/jobs/{job_id}"
    wait_until(
        lambda: any(i["status"] == "finished" for i in clients.look(path).json()["images"]),
        "an image",
    )
    clients.cancel(job_id)


def refuse(clients: Clients) -> None:
    """Requests that are refused."""
    for number in range(5):
        assert clients.ask(label=f"granite {number}", through=number % 2).status_code == 422
    for number in range(3):
        assert clients.look(f"/jobs/nobody-{number}").status_code == 404


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


def test_prometheus_evaluates_every_rule_without_error(watched: Watched) -> None:
    groups = watched.prometheus.get("rules")["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert len(found) == len(rules())
    assert [rule for rule in found if rule["health"] != "ok"] == []


def test_every_target_is_scraped(watched: Watched) -> None:
    found = watched.prometheus.get("targets", state="active")["activeTargets"]
    assert [target["lastError"] for target in found] == [""] * 4
    assert watched.prometheus.by("job", "count by (job) (up)") == {
        "pathar-api": 2,
        "pathar-worker": 2,
    }


def test_the_dashboards_variable_lists_the_models(watched: Watched) -> None:
    [query] = [v["query"] for v in dashboard()["templating"]["list"] if v["name"] == "model"]
    metric, label = query.removeprefix("label_values(").removesuffix(")").split(", ")
    asked = {"match[]": metric, "start": watched.start, "end": watched.end}
    assert set(watched.prometheus.get(f"label/{label}/values", **asked)) == {TEST, ORGANS}


def test_jobs_agree_with_what_clients_saw(watched: Watched) -> None:
    counted = watched.told.by_status()
    assert set(counted) == {"finished", "failed", "canceled"}
    found = watched.prometheus.by("status", f"sum by (status) ({ONCE})")
    assert found == counted
    failed = ONCE.replace("pathar_jobs_total", 'pathar_jobs_total{status="failed"}')
    causes = watched.prometheus.by("cause", f"sum by (cause) ({failed})")
    assert causes == {"refused": 2, "request": 2}
    told = {dict(labels)["cause"] for labels in watched.prometheus.query(failed)}
    assert told == set(CAUSES), "those too that did not happen, as 0"


def test_images_agree_with_what_clients_saw(watched: Watched) -> None:
    finished = 'pathar_images_total{status="finished"}'
    for name in ("label", "priority", "model"):
        found = watched.prometheus.by(name, f"sum by ({name}) ({finished})")
        assert found == watched.told.images(name), name
    total = sum(watched.told.images("label").values())
    count = 'sum(pathar_image_seconds_count{stage="total"})'
    assert list(watched.prometheus.query(count).values()) == [total]


def test_answers_and_refusals_agree_with_what_clients_saw(watched: Watched) -> None:
    requests = 'sum by (status) (pathar_http_requests_total{route="/generate"})'
    assert watched.prometheus.by("status", requests) == watched.told.answers
    problems = "sum by (type) (pathar_http_problems_total)"
    assert watched.prometheus.by("type", problems) == watched.told.problems


def test_the_picture_of_the_documentation_is_drawn_from_such_data(
    watched: Watched, folder: Path
) -> None:
    script, out = ROOT / "deploy" / "grafana" / "picture.py", folder / "dashboard.png"
    words = ["--url", watched.prometheus.url, "--minutes", "1", "--out", str(out)]
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(out) as drawn, Image.open(ROOT / "docs/operate/dashboard.png") as committed:
        assert drawn.size == committed.size
