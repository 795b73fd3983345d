"""A Redis that answers and refuses: what the API says then, and what still works."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis

from pathar.embedded_redis import find_redis_server
from tests.conftest import DEADLINE_S, RedisServer
from tests.running import wait_until
from tests.service.conftest import LoneService

JOB = {"label": "histology", "n": 2, "seed": 7}


def metrics(lone: LoneService) -> dict[str, float]:
    """What the API says of Redis."""
    lines = lone.http.get("/metrics").raise_for_status().text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("pathar_redis"))
    return {name: float(value) for name, value in pairs}


def says(lone: LoneService, reason: str) -> bool:
    """Whether Redis is there, and refuses writes for this reason alone."""
    told = metrics(lone)
    refuses = {name for name, value in told.items() if "refuses" in name and value}
    return told["pathar_redis_up"] == 1 and refuses == {
        f'pathar_redis_refuses{{reason="{reason}"}}'
    }


def problem(answer: httpx.Response) -> str:
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) > 0
    kind: str = answer.json()["type"]
    return kind.removeprefix("urn:pathar:")


def reads(lone: LoneService, finished: str, waiting: str) -> None:
    """Everything that only reads works."""
    assert lone.http.get("/labels").status_code == 200
    assert [job["job_id"] for job in lone.http.get("/jobs").json()["jobs"]] == [waiting, finished]
    assert lone.http.get(f"/jobs/{waiting}").json()["status"] == "queued"
    assert lone.http.get(f"/jobs/{finished}").json()["status"] == "finished"
    assert lone.http.get(f"/jobs/{finished}/images/0/image.png").status_code == 200
    assert lone.http.get(f"/jobs/{finished}/pairs.zip").status_code == 200
    assert "finished" in lone.http.get(f"/jobs/{finished}/events").text
    assert lone.http.put(f"/jobs/{waiting}", json=JOB).status_code == 200
    assert lone.http.get("/jobs/nobody").status_code == 404
    assert lone.http.get("/webhook-secret").status_code == 200


@pytest.fixture
def used(lone: LoneService) -> LoneService:
    """A service with a finished and a waiting job."""
    lone.publish()
    assert lone.http.put("/jobs/finished", json=JOB).status_code == 201
    lone.work()
    assert lone.http.get("/webhook-secret").status_code == 200
    assert lone.http.put("/jobs/waiting", json=JOB).status_code == 201
    return lone


def test_a_full_redis_is_said_to_be_full_and_gives_memory_back(
    used: LoneService, redis_server: RedisServer
) -> None:
    client = redis_server.client()
    client.config_set("maxmemory", 1)
    used.publish()  # a worker can still say that it is alive
    assert used.http.get("/readyz").status_code == 200
    reads(used, "finished", "waiting")
    assert problem(used.http.put("/jobs/new", json=JOB)) == "store-full"
    assert problem(used.http.post("/generate", json=JOB)) == "store-full"
    assert says(used, "full")
    canceled = used.http.delete("/jobs/waiting")
    assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
    assert used.http.delete("/jobs/finished", params={"files": "true"}).status_code == 200
    assert used.http.get("/jobs/finished/images/0/image.png").status_code == 404
    client.config_set("maxmemory", 0)
    assert used.http.put("/jobs/new", json=JOB).status_code == 201
    assert used.work() == 2
    assert used.http.get("/jobs/new").json()["status"] == "finished"


def test_a_read_only_replica_is_said_to_be_one(
    used: LoneService, redis_server: RedisServer, tmp_path: Path
) -> None:
    client = redis_server.client()
    client.replicaof("127.0.0.1", "1")
    client.config_set("replica-serve-stale-data", "yes")
    reads(used, "finished", "waiting")
    assert problem(used.http.put("/jobs/new", json=JOB)) == "store-read-only"
    assert problem(used.http.delete("/jobs/waiting")) == "store-read-only"
    assert says(used, "read_only")
    client.config_set("replica-serve-stale-data", "no")  # reads are refused as well
    assert problem(used.http.get("/jobs")) == "store-read-only"
    assert problem(used.http.get("/labels")) == "store-read-only"
    told = metrics(used)
    assert told['pathar_redis_refuses{reason="read_only"}'] == 1
    client.replicaof("NO", "ONE")
    assert used.http.delete("/jobs/waiting").json()["status"] == "canceled"


def test_a_disk_that_cannot_be_written_is_said(
    used: LoneService, redis_server: RedisServer
) -> None:
    """The snapshot fails truly: a folder stands where its file is to be."""
    client = redis_server.client()
    (redis_server.folder / "dump.rdb").mkdir()
    client.config_set("save", "3600 100000")
    client.bgsave()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "a failure")
    reads(used, "finished", "waiting")
    assert problem(used.http.put("/jobs/new", json=JOB)) == "store-disk"
    assert problem(used.http.delete("/jobs/waiting")) == "store-disk"
    assert says(used, "disk")
    (redis_server.folder / "dump.rdb").rmdir()
    client.bgsave()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "ok", "a snapshot")
    assert used.http.put("/jobs/new", json=JOB).status_code == 201


@pytest.fixture
def loading(used: LoneService, redis_server: RedisServer) -> Iterator[Callable[[], redis.Redis]]:
    """Kills the service's Redis and starts it again so that it loads its file for long."""
    client = redis_server.client()
    client.config_set("save", "")
    for number in range(2000):
        client.set(f"ballast:{number}", b"x" * 100)
    client.save()
    client.close()
    started: list[subprocess.Popen[bytes]] = []

    def start() -> redis.Redis:
        redis_server.kill()
        command = [find_redis_server(), "--port", "0", "--dir", str(redis_server.folder)]
        command += ["--unixsocket", str(redis_server.folder / "redis.sock")]
        command += ["--appendonly", "no", "--save", "", "--enable-debug-command", "local"]
        # Microseconds for each key, and answers in between.
        command += ["--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024"]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        return redis_server.client()

    yield start
    for each in started:
        each.kill()
        each.wait(DEADLINE_S)


def test_a_redis_that_loads_is_said_to_load(
    used: LoneService, loading: Callable[[], redis.Redis]
) -> None:
    client = loading()

    def answers() -> bool:
        try:
            return bool(client.info("persistence")["loading"])
        except redis.RedisError:
            return False

    wait_until(answers, "loading")
    assert problem(used.http.get("/jobs/finished")) == "store-loading"
    assert problem(used.http.put("/jobs/new", json=JOB)) == "store-loading"
    told = metrics(used)
    assert told["pathar_redis_up"] == 0
    assert told['pathar_redis_refuses{reason="loading"}'] == 1
