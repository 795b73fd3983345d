"""Data sets that the service draws: real workers, real HTTP, and a server that speaks S3 or a
shared folder. Whatever is killed, the bytes are those of `pathar pull` on one machine.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pathar import Client
from pathar.manifest import check
from pathar.pull import pull_here
from pathar.recipe import Recipe
from store import keys
from store.results import ResultStore
from tests.conftest import RedisServer
from tests.pathar.test_pull_killed import contents
from tests.running import Up, environment, wait_until
from tests.s3 import Folder, S3Server
from tests.service.conftest import LoneService
from tests.worker.conftest import WorkerProcess

pytestmark = pytest.mark.processes

RECIPE: dict[str, Any] = {
    "labels": {"histology": 130, "blood": 40},
    "seed": 9,
    "settings": {"cfg_scale": [1.0, 2.0], "top_k": 16},
    "shard_size": 60,
}
PAIRS, SHARDS = 170, 3


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

    def worker(self) -> WorkerProcess:
        log = self._folder / f"worker-{len(self.workers)}.log"
        self.workers.append(WorkerProcess(self._worker, log))
        return self.workers[-1].ready()

    def state(self, dataset_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/datasets/{dataset_id}").raise_for_status().json()
        return found

    def finished(self, dataset_id: str) -> dict[str, Any]:
        wait_until(lambda: self.state(dataset_id)["status"] != "started", "the end of the data set")
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


def test_in_s3_whatever_is_killed_no_shard_looks_whole_that_is_not_and_the_bytes_are_the_same(
    s3_server: S3Server, s3_folder: Folder, test_checkpoint: Path, expected: dict[str, bytes]
) -> None:
    def shards() -> set[str]:
        return {name.rpartition("/")[2] for name in s3_folder.names() if name.endswith(".tar")}

    with deployed(s3_folder.url, test_checkpoint) as service:
        first = service.worker()
        made = service.http.post("/datasets", json=RECIPE)
        assert made.status_code == 201, made.text
        name = made.json()["dataset_id"]
        wait_until(lambda: service.state(name)["shards"], "a shard")

        # A worker dies, and the API, while some of the second shard has been uploaded.
        wait_until(lambda: service.state(name)["pairs_drawn"] >= 110, "the second shard")
        s3_server.freeze()
        try:
            first.kill()
            service.api.process.kill()
        finally:
            s3_server.thaw()
        service.api.close()
        service.start_api()
        state = service.state(name)
        ready = {f"pairs-{shard['number']:05d}.tar" for shard in state["shards"]}
        assert ready <= shards() <= set(expected)
        for tar in shards():
            [key] = [each for each in s3_folder.names() if each.endswith(tar)]
            assert s3_folder.read(key)[0] == expected[tar], "whole, or not there"
        assert not [key for key in s3_folder.names() if key.endswith("manifest.json")]

        # Redis dies too. Another worker goes on once the leases have run out.
        service.server.kill()
        service.server.start()
        service.lapse()
        service.worker()
        state = service.finished(name)
        assert (state["pairs_drawn"], state["pairs_stored"], state["seconds_left"]) == (
            *(PAIRS, PAIRS, 0),
        )
        assert [shard["number"] for shard in state["shards"]] == list(range(SHARDS))
        told = {f["path"]: f for s in json.loads(expected["manifest.json"])["shards"] for f in s["files"]}
        for shard in state["shards"]:
            [file] = service.http.get(shard["link"]).json()["files"]
            facts = told[f"pairs-{shard['number']:05d}.tar"]
            assert {**file, "link": ""} == {**facts, "link": ""}
            assert (shard["sha256"], shard["bytes"]) == (facts["sha256"], facts["bytes"])
        assert service.downloaded(state) == expected

        # Its jobs are dropped, and nothing large was ever in Redis.
        assert {job["status"] for job in service.http.get("/jobs").json()["jobs"]} == {"finished"}
        ResultStore(service.client, s3_folder.open()).tidy()
        assert not [key for key in s3_folder.names() if key.startswith("jobs/")]
        sizes = [service.client.memory_usage(key) or 0 for key in service.client.keys("*")]
        assert max(sizes) < 100_000
        assert service.http.delete(f"/datasets/{name}?files=true").status_code == 200
        wait_until(lambda: s3_folder.names() == [], "the end of its files")
        assert service.client.keys(f"{keys.DATASET}*") == []
