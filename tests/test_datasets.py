"""Data sets that the service draws: real workers, real HTTP, and a server that speaks S3 or a
shared folder. Whatever is killed, the bytes are those of `pathar pull` on one machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pathar import Client
from pathar.errors import JobFailed
from pathar.manifest import check
from pathar.pull import pull_here
from pathar.recipe import Recipe
from store import keys
from store.results import ResultStore
from tests.conftest import DEADLINE_S, RedisServer
from tests.pathar.test_pull_killed import contents
from tests.running import environment, wait_until
from tests.s3 import CutOff, Folder, S3Server
from tests.service.conftest import LoneService
from tests.worker.conftest import WorkerProcess

pytestmark = pytest.mark.processes

RECIPE: dict[str, Any] = {
    "labels": {"histology": 70, "blood": 6},
    "seed": 9,
    "settings": {"cfg_scale": {"structure": 1.0, "appearance": [1.0, 2.0]}, "top_k": 16},
    "shard_size": 30,
}
PAIRS, SHARD, SHARDS = 76, 30, 3
FILTERED = {**RECIPE, "labels": {"histology": 40}, "min_agreement": 0.467, "best_of": 2}
"""About a half of the images of the test's checkpoint agree so well."""


def undisturbed(recipe: dict[str, Any], checkpoint: Path, out: Path) -> dict[str, bytes]:
    """The files of a recipe as they are drawn without a service."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(checkpoint).items():
            patch.setenv(name, value)
        for _ in pull_here(Recipe.from_dict(recipe), out):
            pass
    return contents(out)


@pytest.fixture(scope="module")
def expected(test_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return undisturbed(RECIPE, test_checkpoint, tmp_path_factory.mktemp("alone") / "out")


@pytest.fixture(scope="module")
def filtered(test_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return undisturbed(FILTERED, test_checkpoint, tmp_path_factory.mktemp("filtered") / "out")


class Deployment:
    """Redis and the API, with results at `url`; workers as a test starts and stops them."""

    def __init__(self, server: RedisServer, url: str, checkpoint: Path) -> None:
        self.server, self._folder = server, server.folder
        self.client = server.client()
        self._results = {"PATHAR_RESULTS_URL": url}
        self._worker = {
            **self._results,
            **{"PATHAR_REDIS_URL": server.url, "PATHAR_CHECKPOINT": str(checkpoint)},
            **{"PATHAR_DEVICE": "cpu", "PATHAR_SLOTS": "4", "PATHAR_THREADS": "1"},
        }
        self.workers: list[WorkerProcess] = []
        self.start_api()

    def start_api(self) -> None:
        self.api = LoneService(self.server, self._folder / "api.log", **self._results)

    @property
    def http(self) -> httpx.Client:
        return self.api.http

    def worker(self, **settings: str) -> WorkerProcess:
        log = self._folder / f"worker-{len(self.workers)}.log"
        self.workers.append(WorkerProcess({**self._worker, **settings}, log))
        return self.workers[-1].ready()

    def state(self, dataset_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/datasets/{dataset_id}").raise_for_status().json()
        return found

    def finished(self, dataset_id: str) -> dict[str, Any]:
        going = ("queued", "started")
        wait_until(lambda: self.state(dataset_id)["status"] not in going, "the end of a data set")
        state = self.state(dataset_id)
        assert state["status"] == "finished", (state, self.workers[-1].log())
        return state

    def downloaded(self, state: dict[str, Any]) -> dict[str, bytes]:
        """All files that the manifest names, and itself, over HTTP."""
        manifest = self.http.get(state["links"]["manifest"]).raise_for_status().content
        told = json.loads(manifest)
        listed = [*(f for shard in told["shards"] for f in shard["files"]), *told["files"]]
        base = state["links"]["files"]
        files = {
            f["path"]: self.http.get(f"{base}/{f['path']}").raise_for_status().content
            for f in listed
        }
        return {**files, "manifest.json": manifest}

    def lapse(self) -> None:
        """Let all leases run out now."""
        for queue in self.client.hkeys(keys.MODELS):
            name = keys.LEASES + queue.decode()
            for member in self.client.zrange(name, 0, -1):
                self.client.zadd(name, {member: 1.0})
        for uid in self.client.zrange(keys.DATASET_TURNS, 0, -1):
            self.client.zadd(keys.DATASET_TURNS, {uid: 1.0})

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.api.close()
        self.client.close()


@contextmanager
def deployed(url: str, checkpoint: Path) -> Iterator[Deployment]:
    server = RedisServer(Path(tempfile.mkdtemp(prefix="pathar-")))
    try:
        server.start()
        deployment = Deployment(server, url, checkpoint)
        try:
            yield deployment
        finally:
            deployment.close()
    finally:
        server.kill()
        shutil.rmtree(server.folder)


def test_in_s3_an_upload_that_breaks_off_is_no_shard_and_whatever_is_killed_the_bytes_are_the_same(
    s3_server: S3Server,
    s3_folder: Folder,
    test_checkpoint: Path,
    expected: dict[str, bytes],
    filtered: dict[str, bytes],
) -> None:
    def folder(state: dict[str, Any]) -> str:
        return f"datasets/{state['location'].rpartition('/')[2]}"

    def stored(state: dict[str, Any]) -> set[str]:
        names = {name.removeprefix(f"{folder(state)}/") for name in s3_folder.names()}
        return {name for name in names if name in expected}

    way = CutOff(s3_server)
    with deployed(s3_folder.url, test_checkpoint) as service:
        first = service.worker(AWS_ENDPOINT_URL=way.endpoint)
        best = service.http.put("/datasets/best", json=FILTERED)
        assert best.status_code == 201, best.text
        way.cut = f"{folder(best.json())}/pairs-00001.tar"
        made = service.http.post("/datasets", json=RECIPE)
        assert made.status_code == 201, made.text
        name = made.json()["dataset_id"]

        # The worker dies in the middle of an upload, and so do the API and Redis.
        assert way.broken.wait(DEADLINE_S)
        first.kill()
        service.api.process.kill()
        service.server.kill()
        assert stored(best.json()) == {"pairs-00000.tar"}
        service.api.close()
        service.server.start()
        service.start_api()
        state = service.state("best")
        assert (state["status"], state["pairs_stored"]) == ("started", SHARD)
        assert service.http.get(f"{state['links']['files']}/pairs-00001.tar").status_code == 404
        assert service.http.get(state["links"]["manifest"]).status_code == 404

        # Another worker goes on once the leases have run out.
        service.lapse()
        service.worker()
        drawn = json.loads(filtered["manifest.json"])["quality"]["histology"]["drawn"]
        assert drawn > 80
        for key, files, progress in (
            ("best", filtered, (40, drawn, 40)),
            (name, expected, (PAIRS, PAIRS, PAIRS)),
        ):
            state = service.finished(key)
            told = (state[f"pairs_{how}"] for how in ("kept", "drawn", "stored"))
            assert (*told, state["seconds_left"]) == (*progress, 0)
            assert service.downloaded(state) == files
            assert stored(state) == set(files)
        manifest = json.loads(expected["manifest.json"])
        facts = [file for shard in manifest["shards"] for file in shard["files"]]
        assert [shard["number"] for shard in state["shards"]] == list(range(SHARDS))
        for shard, file in zip(state["shards"], facts, strict=True):
            assert (shard["sha256"], shard["bytes"]) == (file["sha256"], file["bytes"])
            [listed] = service.http.get(shard["link"]).json()["files"]
            assert listed == {**file, "link": f"{state['links']['files']}/{file['path']}"}

        # No pair was drawn twice, their jobs have been dropped, nothing large was ever in Redis.
        jobs = service.http.get("/jobs").json()["jobs"]
        assert {job["status"] for job in jobs} == {"finished"}
        states = [service.http.get(f"/jobs/{job['job_id']}").json() for job in jobs]
        assert sum(len(job["images"]) for job in states) == PAIRS + drawn
        ResultStore(service.client, s3_folder.open()).tidy()
        # The worker may be in the middle of it.
        wait_until(
            lambda: not [key for key in s3_folder.names() if key.startswith("jobs/")],
            "the end of the objects of jobs",
        )
        sizes = [service.client.memory_usage(key) or 0 for key in service.client.keys("*")]
        assert max(sizes) < 100_000
        for each in (name, "best"):
            assert service.http.delete(f"/datasets/{each}?files=true").status_code == 200
        wait_until(lambda: s3_folder.names() == [], "the end of its files")
        wait_until(lambda: not service.client.keys(f"{keys.DATASET}*"), "the end of its record")
    way.close()


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("share")


@pytest.fixture(scope="module")
def shared_folder(share: Path, test_checkpoint: Path) -> Iterator[Deployment]:
    """A service with one worker that writes to a folder."""
    with deployed(f"file://{share}", test_checkpoint) as service:
        service.worker()
        yield service


@pytest.mark.parametrize("form", ["parquet", "nnunet", "folder"])
def test_in_a_shared_folder_every_format_lies_as_a_pull_would_write_it(
    form: str, shared_folder: Deployment, share: Path, test_checkpoint: Path, tmp_path: Path
) -> None:
    recipe = {"labels": {"histology": 9, "blood": 3}, "shard_size": 5, "format": form}
    if form == "nnunet":
        recipe |= {"width": 96, "height": 64}
    alone = undisturbed(recipe, test_checkpoint, tmp_path / "alone")
    state = shared_folder.http.put(f"/datasets/{form}", json=recipe).json()
    state = shared_folder.finished(state["dataset_id"])
    folder = Path(state["location"].removeprefix("file://"))
    assert {n: c for n, c in contents(folder).items() if not n.startswith(".")} == alone
    assert check(folder) == (12, [])
    assert shared_folder.downloaded(state) == alone
    for shard in state["shards"]:
        listed = shared_folder.http.get(shard["link"]).json()["files"]
        whole = b"".join(alone[file["path"]] for file in listed)
        assert hashlib.sha256(whole).hexdigest() == shard["sha256"]


def test_a_pull_follows_the_data_set_goes_on_where_it_stopped_and_leaves_nothing(
    shared_folder: Deployment,
    share: Path,
    expected: dict[str, bytes],
    filtered: dict[str, bytes],
    tmp_path: Path,
) -> None:
    recipe = Recipe.from_dict(RECIPE)
    shared_folder.http.post("/datasets", json={**RECIPE, "seed": 1}).raise_for_status()
    with Client(shared_folder.api.url) as client:
        steps = client.pulling(recipe, tmp_path / "out")
        told = next(step for step in steps if step.safe)
        steps.close()  # as Ctrl-C does
        assert (told.safe, told.dataset[:4]) == (SHARD, "set-")
        before = (tmp_path / "out" / "pairs-00000.tar").stat().st_mtime_ns
        [*_, last] = client.pulling(recipe, tmp_path / "out")
        assert (last.safe, last.drawn, last.dataset) == (PAIRS, 0, told.dataset)
        assert contents(tmp_path / "out") == expected
        assert (tmp_path / "out" / "pairs-00000.tar").stat().st_mtime_ns == before
        listed = shared_folder.http.get("/datasets").json()["datasets"]
        assert told.dataset not in {each["dataset_id"] for each in listed}
        wait_until(lambda: not list(share.glob(f"datasets/*{told.dataset}*")), "the end of it")

        # One with filters is followed in the same way, and fails in the words of a pull.
        [*_, last] = client.pulling(Recipe.from_dict(FILTERED), tmp_path / "filtered")
        assert (last.safe, last.dataset[:4]) == (40, "set-")
        assert contents(tmp_path / "filtered") == filtered
        with pytest.raises(JobFailed, match="the image reached it only 0 times of 100"):
            client.pull({"blood": 2}, tmp_path / "few", min_agreement=0.9)

        # One that is there already is downloaded, and stays.
        [other] = [each for each in listed if each["recipe"]["seed"] == 1]
        shared_folder.finished(other["dataset_id"])
        out = client.pull(RECIPE["labels"], tmp_path / "other", seed=1, shard_size=SHARD,
                          cfg_scale=(1.0, 2.0), top_k=16)  # fmt: skip
        assert check(out) == (PAIRS, [])
        assert shared_folder.state(other["dataset_id"])["status"] == "finished"
        assert shared_folder.http.delete(f"/datasets/{other['dataset_id']}").json()["shards"]


def test_a_data_set_is_paused_resumed_and_canceled_while_others_are_drawn(
    shared_folder: Deployment, share: Path, organ_checkpoint: Path
) -> None:
    """The worker of one of its labels is stopped, so it cannot end too early."""
    http, at = shared_folder.http, "/datasets/long"
    other = shared_folder.worker(PATHAR_CHECKPOINT=str(organ_checkpoint)).process
    other.send_signal(signal.SIGSTOP)
    recipe: dict[str, Any] = {"labels": {"blood": 20, "kidney": 10}, "shard_size": 10}
    uid = http.put(at, json=recipe).raise_for_status().json()["location"].split("-")[-1]

    def jobs() -> list[str]:
        listed = http.get("/jobs?limit=50").json()["jobs"]
        return [job["status"] for job in listed if job["job_id"].startswith(f"set-{uid}-")]

    wait_until(lambda: shared_folder.state("long")["pairs_stored"] == 20, "two shards")
    state = shared_folder.state("long")
    assert state["rate"] > 0
    assert state["seconds_left"] > 0
    http.put("/datasets/short", json={"labels": {"cervix": 2}}).raise_for_status()
    shared_folder.finished("short")
    assert shared_folder.state("long")["status"] == "started"

    assert http.post(f"{at}/pause").json()["status"] == "paused"
    other.send_signal(signal.SIGCONT)
    wait_until(lambda: set(jobs()) == {"finished"}, "the end of what was being drawn")
    paused = shared_folder.state("long")
    assert (paused["status"], paused["rate"], paused["seconds_left"]) == ("paused", None, None)
    assert paused["pairs_stored"] == 20
    http.post(f"{at}/resume").raise_for_status()
    done = shared_folder.finished("long")
    assert done["shards"][:2] == paused["shards"]
    assert len(jobs()) == 2, "none was drawn twice"

    at = "/datasets/unwanted"
    recipe = {"labels": dict.fromkeys(recipe["labels"], 5000)}  # more than is drawn meanwhile
    http.put(at, json=recipe).raise_for_status()
    uid = shared_folder.state("unwanted")["location"].split("-")[-1]
    wait_until(lambda: {"started", "finished"} & set(jobs()), "an image in a slot")
    canceled = http.delete(at).json()
    assert canceled["status"] == "canceled"
    wait_until(lambda: set(jobs()) <= {"canceled", "finished"}, "the end of its jobs")
    for name, state in (("long", done), ("unwanted", canceled)):
        folder = Path(state["location"].removeprefix("file://"))
        http.delete(f"/datasets/{name}?files=true").raise_for_status()
        wait_until(lambda folder=folder: not folder.exists(), "the end of its files")
    assert list((share / ".writing").iterdir()) == []
