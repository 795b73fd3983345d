"""Results in S3-compatible storage, as clients and operators meet it: real workers, real HTTP."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import signal
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.engine import load_engine
from model.request import ImageRequest, SamplingSettings
from pathar import Client
from pathar.contract import END_STATES, FILE_NAMES
from pathar.pull import pull_here
from pathar.recipe import Recipe
from store import keys
from store.access import ANYBODY
from store.parts import Claim, PartStore, read_part
from store.results import ResultStore
from store.scripts import IMAGE_BYTES, RECORD_BYTES
from tests.conftest import RedisServer
from tests.pathar.test_pull_killed import contents
from tests.running import PROBLEM, wait_until
from tests.s3 import Folder, S3Server
from tests.service.conftest import FILES, MODEL, LoneService
from tests.worker.conftest import WorkerProcess
from worker.drawing import draw

SLOTS = 2
SETTINGS: dict[str, Any] = {"cfg_scale": 2.0, "temperature": 0.9, "top_k": 16, "top_p": 0.95}
BODY = {"label": "blood", "n": 3, **SETTINGS}
HURRY_S = 8.0
"""A worker that is told to stop at once waits for nothing but requests under way, of up to 5 s."""


class Deployment:
    """Redis, storage and the API; workers as a test starts and stops them."""

    def __init__(self, redis_server: RedisServer, folder: Folder, checkpoint: Path) -> None:
        self.folder = folder
        self._logs = Path(tempfile.mkdtemp(prefix="pathar-"))
        self.client = redis_server.client()
        results = {"PATHAR_RESULTS_URL": folder.url}
        # What the API cancels expires soon; what workers finish does not.
        ttl = {"PATHAR_RESULT_TTL": "2"}
        self.api = LoneService(redis_server, self._logs / "api.log", **results, **ttl)
        self.http = self.api.http
        self._workers: list[WorkerProcess] = []
        self._settings = {
            **results,
            "PATHAR_REDIS_URL": redis_server.url,
            "PATHAR_CHECKPOINT": str(checkpoint),
            "PATHAR_DEVICE": "cpu",
            "PATHAR_SLOTS": str(SLOTS),
            "PATHAR_THREADS": "1",
        }

    def worker(self) -> WorkerProcess:
        """The worker, warm; a new one when there is none (any more)."""
        if not self._workers or self._workers[-1].process.poll() is not None:
            log = self._logs / f"worker-{len(self._workers)}.log"
            self._workers.append(WorkerProcess(self._settings, log))
        return self._workers[-1].ready()

    def put(self, job_id: str, body: dict[str, Any]) -> None:
        self.http.put(f"/jobs/{job_id}", json=body).raise_for_status()

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/jobs/{job_id}").raise_for_status().json()
        return found

    def states(self, job_id: str) -> list[str]:
        return [image["status"] for image in self.job(job_id)["images"]]

    def ended(self, job_id: str) -> dict[str, Any]:
        wait_until(lambda: self.job(job_id)["status"] in END_STATES, f"the end of {job_id}")
        return self.job(job_id)

    def jobs_with_objects(self) -> set[str]:
        return {name.split("/")[0] for name in self.folder.names()}

    def leases(self) -> dict[tuple[str, bytes], float]:
        """When the lease of each held part runs out."""
        return {
            (queue.decode(), member): lease
            for queue in self.client.hkeys(keys.MODELS)
            for member, lease in self.client.zrange(
                keys.LEASES + queue.decode(), 0, -1, withscores=True
            )
        }

    def lapse(self) -> None:
        """Let every lease run out now."""
        for queue, member in self.leases():
            self.client.zadd(keys.LEASES + queue, {member: 1.0})

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        self.api.close()
        self.client.close()
        shutil.rmtree(self._logs)


@pytest.fixture(scope="module")
def deployed(s3_server: S3Server, test_checkpoint: Path) -> Iterator[Deployment]:
    with ExitStack() as cleanup:
        redis_server = RedisServer(Path(tempfile.mkdtemp(prefix="pathar-")))
        cleanup.callback(shutil.rmtree, redis_server.folder)
        cleanup.callback(redis_server.kill)
        redis_server.start()
        deployment = Deployment(redis_server, Folder(s3_server), test_checkpoint)
        cleanup.callback(deployment.close)
        yield deployment


class Outage:
    """The storage answers nobody from `begin` to `end`."""

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self._now = False

    def begin(self) -> None:
        self._server.stop()
        self._now = True

    def end(self) -> None:
        if self._now:
            self._server.start()
        self._now = False


@pytest.fixture
def outage(s3_server: S3Server) -> Iterator[Outage]:
    outage = Outage(s3_server)
    yield outage
    outage.end()


def drawn(checkpoint: Path, body: dict[str, Any], job: dict[str, Any]) -> list[dict[str, bytes]]:
    """The files of a job's images as an engine without any server draws them."""
    engine = load_engine(checkpoint, device="cpu", slots=1, threads=1)
    settings = SamplingSettings(**SETTINGS)
    requests = [ImageRequest(body["label"], image["seed"], settings) for image in job["images"]]
    return [dict(files) for _, files in sorted(draw(engine, requests), key=lambda item: item[0])]


def problem(answer: httpx.Response, status: int, slug: str) -> httpx.Response:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == f"urn:pathar:{slug}"
    return answer


def test_files_are_served_from_there_as_from_redis_and_go_when_they_are_dropped(
    deployed: Deployment, test_checkpoint: Path
) -> None:
    deployed.worker()
    answer = deployed.http.post("/generate?wait=60", json={**BODY, "seed": 7})
    assert answer.status_code == 200, answer.text
    job = deployed.job(answer.json()["job_id"])
    job_id = job["job_id"]
    expected = drawn(test_checkpoint, BODY, job)

    # Nothing of them is in Redis, and what counts against a key is their real size.
    owned = keys.owned_id(ANYBODY.id, job_id)
    for index in range(BODY["n"]):
        values = deployed.client.hvals(keys.RESULT + keys.part_id(owned, index))
        assert all(len(value) < 200 for value in values)
    size = RECORD_BYTES + BODY["n"] * IMAGE_BYTES
    size += sum(len(content) for files in expected for content in files.values())
    assert int(deployed.client.hget(keys.BYTES + ANYBODY.id, owned) or 0) == size
    assert len(deployed.folder.names()) == BODY["n"] * len(FILE_NAMES)
    [name] = [name for name in deployed.folder.names() if "/1/" in name and "image" in name]
    assert deployed.folder.read(name) == (expected[1]["image.png"], "image/png")

    base = f"/jobs/{job_id}/images/1"
    for name in FILE_NAMES:
        assert deployed.http.get(f"{base}/{name}").content == expected[1][name]
    pair = deployed.http.get(base).raise_for_status().json()
    tokens = json.loads(expected[1]["tokens.json"])
    assert pair["structure_tokens"] == tokens["structure_tokens"]
    whole = deployed.http.get(f"{base}/image.png")
    tag = {"If-None-Match": whole.headers["etag"]}
    assert deployed.http.get(f"{base}/image.png", headers=tag).status_code == 304
    part = deployed.http.get(f"{base}/image.png", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    beyond = {"Range": f"bytes={len(whole.content)}-"}
    problem(deployed.http.get(f"{base}/image.png", headers=beyond), 416, "range-not-satisfiable")
    archive = deployed.http.get(f"/jobs/{job_id}/pairs.zip").raise_for_status().content
    with zipfile.ZipFile(io.BytesIO(archive)) as pairs:
        found = [
            {name: pairs.read(f"{index:04d}/{name}") for name in FILE_NAMES}
            for index in range(BODY["n"])
        ]
        manifest = json.loads(pairs.read("manifest.json"))
    assert found == expected
    told = manifest["images"][2]["sha256"]["0002/mask.png"]
    assert told == hashlib.sha256(expected[2]["mask.png"]).hexdigest()

    dropped = deployed.http.delete(f"/jobs/{job_id}?files=true")
    assert dropped.json()["status"] == "finished"
    problem(deployed.http.get(f"{base}/image.png"), 404, "not-found")
    problem(deployed.http.get(f"/jobs/{job_id}/pairs.zip"), 404, "not-found")
    ResultStore(deployed.client, deployed.folder.open()).tidy()  # as any worker does
    assert deployed.folder.names() == []


def test_a_data_set_is_pulled_as_it_is_drawn_without_a_service(
    deployed: Deployment,
    test_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployed.worker()
    recipe = Recipe.of({"blood": 5, "histology": 2}, {"seed": 3, "shard_size": 4})
    with Client(deployed.api.url) as client:
        for _ in client.pulling(recipe, tmp_path / "pulled"):
            pass
    for name, value in (("CHECKPOINT", str(test_checkpoint)), ("DEVICE", "cpu"), ("THREADS", "1")):
        monkeypatch.setenv(f"PATHAR_{name}", value)
    for _ in pull_here(recipe, tmp_path / "here"):
        pass
    assert contents(tmp_path / "pulled") == contents(tmp_path / "here")
    ResultStore(deployed.client, deployed.folder.open()).tidy()  # as any worker does
    assert deployed.folder.names() == []


def test_an_outage_loses_nothing_and_ends_no_image(
    deployed: Deployment, test_checkpoint: Path, outage: Outage
) -> None:
    worker = deployed.worker()
    deployed.put("before", {**BODY, "seed": 1})
    assert deployed.ended("before")["status"] == "finished"
    outage.begin()
    many = {**BODY, "n": 12, "seed": 2}
    deployed.put("during", many)
    wait_until(lambda: "trying again" in worker.log(), "the outage")
    wait_until(lambda: len(deployed.leases()) >= SLOTS, "parts that wait")

    # The API says so where a file is asked for, and goes on with all else.
    for path in ("images/0/image.png", "images/0", "pairs.zip"):
        told = problem(deployed.http.get(f"/jobs/before/{path}"), 503, "results-down")
        assert int(told.headers["retry-after"]) > 0
    assert deployed.http.get("/readyz").status_code == 200
    assert deployed.http.get("/jobs").status_code == 200

    # Leases are renewed, no more is taken than may wait, and nothing fails.
    before = deployed.leases()
    wait_until(
        lambda: all(deployed.leases()[part] > lease for part, lease in before.items()), "a beat"
    )
    states = deployed.states("during")
    assert set(states) == {"queued", "started"}
    assert SLOTS <= states.count("started") <= 2 * SLOTS
    assert worker.log().count("storage of results") == 1

    # A worker that is to stop hands back what it could not store, in time.
    worker.process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    assert worker.process.poll() is None, "it has some time left"
    asked = time.monotonic()
    assert worker.stop() == 0  # the second signal: at once
    assert time.monotonic() - asked < HURRY_S
    assert set(deployed.states("during")) == {"queued"}
    assert "Traceback" not in worker.log()

    outage.end()
    deployed.worker()
    job = deployed.ended("during")
    assert job["status"] == "finished"
    expected = drawn(test_checkpoint, many, job)
    assert (
        deployed.http.get("/jobs/during/images/11/image.png").content == expected[11]["image.png"]
    )
    assert deployed.http.get("/jobs/before/images/0/image.png").status_code == 200
    assert deployed.api.log().count("storage of results") == 2, "away, and back"


def test_a_killed_workers_uploads_are_taken_over_and_what_expired_is_deleted(
    deployed: Deployment, test_checkpoint: Path, s3_server: S3Server
) -> None:
    victim = deployed.worker()
    deployed.put("canceled", {**BODY, "n": 200, "seed": 1})
    wait_until(lambda: "finished" in deployed.states("canceled"), "an image")
    assert deployed.http.delete("/jobs/canceled").json()["status"] == "canceled"
    wait_until(lambda: deployed.http.get("/jobs/canceled").status_code == 410, "its expiry")
    canceled, taken = (keys.owned_id(ANYBODY.id, job_id) for job_id in ("canceled", "taken"))
    assert canceled in deployed.jobs_with_objects(), "nobody has tidied yet"
    s3_server.freeze()
    try:
        deployed.put("taken", {**BODY, "seed": 2})
        wait_until(lambda: deployed.client.zscore(keys.OBJECTS, taken), "an upload")
        victim.kill()
    finally:
        s3_server.thaw()
    assert set(deployed.states("taken")) <= {"queued", "started"}
    deployed.lapse()
    wait_until(lambda: deployed.client.zscore(keys.OBJECTS, canceled) <= time.time(), "its turn")
    deployed.worker()
    wait_until(lambda: canceled not in deployed.jobs_with_objects(), "tidiness")
    job = deployed.ended("taken")
    assert job["status"] == "finished"
    for index, files in enumerate(drawn(test_checkpoint, BODY, job)):
        base = f"/jobs/taken/images/{index}"
        assert {name: deployed.http.get(f"{base}/{name}").content for name in FILE_NAMES} == files


def test_who_waits_for_pairs_that_cannot_be_read_is_sent_to_their_job(
    deployed: Deployment, outage: Outage
) -> None:
    api = deployed.api
    api.publish()
    queue = keys.queue_name(MODEL.version, MODEL.numerics)
    parts = PartStore(deployed.client, queue, "test-worker", result_ttl=600)
    results = ResultStore(deployed.client, deployed.folder.open())
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            api.http.post, "/generate?wait=60", json={**BODY, "model": "stub", "n": 1}
        )
        claims: list[Claim] = []
        wait_until(lambda: claims.extend(parts.claim(1)) or claims, "a part")
        held = parts.start(claims[0], read_part(claims[0]))
        assert held is not None
        stored = results.put(held.job, held.index, held.execution, FILES)
        outage.begin()
        assert parts.finish(held, stored, 1.0) is not None
        answer = asked.result()
    assert answer.status_code == 202, "503 would make a client ask, and so draw, again"
    assert answer.json()["status"] == "finished"
    where = answer.headers["location"]
    problem(api.http.get(f"{where}/images/0"), 503, "results-down")
    outage.end()
    assert api.http.get(f"{where}/images/0/mask.png").content == FILES["mask.png"]
