"""One service, two checkpoints: `pathar up` with --checkpoint twice, through the front door."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.engine import load_engine
from model.request import ImageRequest, SamplingSettings
from tests.pathar.test_cli import called
from tests.running import PROBLEM, Up, alive, wait_until
from worker.drawing import draw

pytestmark = pytest.mark.processes

CHILDREN = ("redis", "worker", "worker-2", "service")
TEST, ORGANS = "test-random", "organs-random"
BODY = {"label": "histology", "seed": 7}


@pytest.fixture(scope="module")
def metrics_port() -> int:
    """A free port whose neighbour is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@pytest.fixture(scope="module")
def up(test_checkpoint: Path, organ_checkpoint: Path, metrics_port: int) -> Iterator[Up]:
    words = ["--checkpoint", str(test_checkpoint), "--checkpoint", str(organ_checkpoint)]
    port = {"PATHAR_WORKER_METRICS_PORT": str(metrics_port)}
    running = Up(Path("/nowhere"), *words, **port)
    try:
        yield running.ready()
    finally:
        running.close()


def drawn(checkpoint: Path) -> dict[str, bytes]:
    """What BODY is, drawn by this checkpoint in this process."""
    engine = load_engine(checkpoint, device="cpu", slots=1, threads=1)
    [(_, files)] = draw(engine, [ImageRequest("histology", 7, SamplingSettings())])
    return dict(files)


def post(up: Up, **fields: Any) -> dict[str, Any]:
    answer = up.http.post("/generate", json={**BODY, **fields})
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def test_it_says_ready_when_every_checkpoint_is_served(up: Up) -> None:
    assert up.run()["pids"].keys() == set(CHILDREN)
    assert all(alive(pid) for pid in up.run()["pids"].values())
    labels = up.http.get("/labels").json()["labels"]
    assert all(label["ready"] for label in labels)
    assert [(label["name"], label["model"]) for label in labels] == [
        ("histology", ORGANS),
        ("kidney", ORGANS),
        ("cytology", TEST),
        ("fluorescence", TEST),
        ("histology", TEST),
        ("blood", TEST),
        ("cervix", TEST),
    ]


def test_each_model_draws_its_own_bytes(
    up: Up, test_checkpoint: Path, organ_checkpoint: Path
) -> None:
    for name, checkpoint in ((TEST, test_checkpoint), (ORGANS, organ_checkpoint)):
        job = post(up, model=name)
        assert job["model"]["name"] == name
        assert up.files(job["job_id"], 0) == drawn(checkpoint)
    assert post(up, label="kidney")["model"]["name"] == ORGANS
    assert post(up, label="blood")["model"]["name"] == TEST


def test_a_label_of_both_needs_a_model(up: Up) -> None:
    answer = up.http.post("/generate", json=BODY)
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
    [error] = answer.json()["errors"]
    assert (error["field"], error["value"]) == ("model", None)
    assert TEST in error["expected"]
    assert ORGANS in error["expected"]


def test_a_job_goes_only_to_the_worker_of_its_model(up: Up) -> None:
    os.kill(up.pid("worker-2"), signal.SIGSTOP)
    try:
        waiting = up.http.post("/generate?wait=0", json={"label": "kidney"}).json()["job_id"]
        assert post(up, label="blood", n=3)["status"] == "finished"
        assert post(up, model=TEST, n=3)["status"] == "finished"
        assert up.http.get(f"/jobs/{waiting}").json()["status"] != "finished"
    finally:
        os.kill(up.pid("worker-2"), signal.SIGCONT)
    assert up.ended(waiting)["status"] == "finished"


def finished(url: str) -> float:
    """How many images a worker has counted; it does so after it has given them out."""
    families = text_string_to_metric_families(httpx.get(url).text)
    samples = [sample for family in families for sample in family.samples]
    return sum(s.value for s in samples if s.labels.get("status") == "finished")


def test_each_worker_has_metrics_of_its_own(up: Up, metrics_port: int) -> None:
    post(up, label="blood")
    post(up, label="kidney")
    for port in (metrics_port, metrics_port + 1):
        wait_until(lambda url=f"http://127.0.0.1:{port}/metrics": finished(url))  # type: ignore[misc]


def test_the_command_line_names_a_model(up: Up, organ_checkpoint: Path, tmp_path: Path) -> None:
    words = ("generate", "--label", "histology", "--seed", "7", "--out", str(tmp_path))
    url = ("--url", up.run()["url"])
    refused = called(*words, *url)
    assert refused.returncode == 2
    assert TEST in refused.stderr
    assert ORGANS in refused.stderr
    done = called(*words, *url, "--model", ORGANS)
    assert done.returncode == 0, done.stderr
    [image] = tmp_path.glob("*_image.png")
    assert image.read_bytes() == drawn(organ_checkpoint)["image.png"]


def test_a_local_draw_with_another_model_than_the_checkpoints_is_refused(
    test_checkpoint: Path, tmp_path: Path
) -> None:
    words = ("generate", "--label", "blood", "--out", str(tmp_path), "--model", ORGANS)
    refused = called(*words, checkpoint=test_checkpoint)
    assert refused.returncode == 2
    assert f"model: got '{ORGANS}', expected {TEST}" in refused.stderr


def test_one_checkpoint_that_is_not_there_ends_all_of_it(test_checkpoint: Path) -> None:
    words = ["--checkpoint", str(test_checkpoint), "--checkpoint", "/no/such/folder"]
    up = Up(test_checkpoint, *words)
    try:
        assert up.process.wait() == 2
        assert "/no/such/folder" in up.log()
        assert "Traceback" not in up.log()
    finally:
        up.close()


def test_a_signal_stops_every_worker(up: Up) -> None:
    pids = [up.pid(name) for name in CHILDREN]
    for label in ("kidney", "blood"):
        up.http.post("/generate?wait=0", json={"label": label, "n": 64})
    assert up.stop() == 130
    assert not any(alive(pid) for pid in pids)
