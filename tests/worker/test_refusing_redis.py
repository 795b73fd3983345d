"""A real Redis that answers and refuses, a real API and real workers: what is drawn is delivered,
what is asked is answered, and all goes on once Redis takes writes again."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import redis

from pathar.cli import main
from pathar.contract import FILE_NAMES
from store import keys
from store.access import KeyStore, Limits
from tests.conftest import RedisServer
from tests.running import wait_until
from tests.service.conftest import LoneService
from tests.worker.conftest import WorkerProcess

Start = Callable[..., WorkerProcess]
SLOTS = 4
LIMITS = Limits(requests_per_minute=10_000, waiting_images=100_000)
ROOM = 8 << 20
"""Bytes that there are for jobs and results."""


class Deployment:
    """The API with a key, and its Redis."""

    def __init__(self, lone: LoneService, client: redis.Redis) -> None:
        self.lone, self.redis = lone, client
        token, self.owner = KeyStore(client).make("ann", 1.0, LIMITS)
        self.http = lone.http
        self.http.headers["Authorization"] = f"Bearer {token}"

    def put(self, name: str, n: int) -> httpx.Response:
        return self.http.put(f"/jobs/{name}", json={"label": "histology", "n": n, "seed": 7})

    def states(self, name: str) -> list[str]:
        images = self.http.get(f"/jobs/{name}").raise_for_status().json()["images"]
        return [each["status"] for each in images]

    def says(self, reason: str) -> bool:
        """Whether the metrics say that Redis is there and refuses writes, for this reason alone."""
        lines = self.http.get("/metrics").raise_for_status().text.splitlines()
        told = dict(line.rsplit(" ", 1) for line in lines if line.startswith("pathar_redis"))
        refuses = {name for name, value in told.items() if "refuses" in name and float(value)}
        wanted = {f'pathar_redis_refuses{{reason="{reason}"}}'} if reason else set()
        return float(told["pathar_redis_up"]) == 1 and refuses == wanted

    def under_way(self, name: str) -> bool:
        """Whether some images are in slots and others wait."""
        states = self.states(name)
        assert "queued" in states, "the job went on too far before it could be disturbed"
        return states.count("started") == SLOTS

    def losses(self, name: str) -> list[bytes]:
        record = self.redis.hkeys(keys.RECORD + keys.owned_id(self.owner.id, name))
        return [field for field in record if field.startswith(b"losses:")]


@pytest.fixture
def deployed(redis_server: RedisServer, tmp_path: Path) -> Iterator[Deployment]:
    lone = LoneService(redis_server, tmp_path / "service.log", PATHAR_MAX_WAITING="100000")
    try:
        with redis_server.client() as client:
            yield Deployment(lone, client)
    finally:
        lone.close()


def problem(answer: httpx.Response, status: int = 503) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    kind: str = answer.json()["type"]
    return kind.removeprefix("urn:pathar:")


def stop_while_it_draws(deployed: Deployment, worker: WorkerProcess, name: str) -> list[int]:
    """Stop the process with images in its slots; which images these are."""
    held: list[int] = []

    def stopped() -> bool:
        worker.process.send_signal(signal.SIGSTOP)
        held[:] = (at for at, state in enumerate(deployed.states(name)) if state == "started")
        if not held:  # stopped between two batches
            worker.process.send_signal(signal.SIGCONT)
        return bool(held)

    wait_until(stopped, "images in slots")
    return held


def fill(deployed: Deployment) -> list[str]:
    """Ask for images that wait until there is no room for more; the jobs that were accepted."""
    most = deployed.redis.info("memory")["used_memory"] + ROOM
    deployed.redis.config_set("maxmemory", most)
    names: list[str] = []
    while (answer := deployed.put(f"ballast-{len(names)}", 1000)).status_code == 201:
        names.append(f"ballast-{len(names)}")
    assert problem(answer) == "store-full"
    assert len(names) > 2
    return names


def read_everything(deployed: Deployment, finished: str, waiting: str, redis_url: str) -> None:
    """Every route that reads, and every command that does."""
    http = deployed.http
    job, pair = f"/jobs/{finished}", f"/jobs/{finished}/images/0"
    for path in (
        *("/labels", "/jobs", "/jobs?status=queued&label=histology&limit=1", "/webhook-secret"),
        *(f"/jobs/{waiting}", job, f"{job}/pairs.zip", pair),
        *(f"{pair}/{name}" for name in FILE_NAMES),
        *("/readyz", "/healthz", "/metrics", "/openapi.json"),
    ):
        assert http.get(path).status_code == 200, path
        assert http.head(path).status_code == 200, path
    assert "event: finished" in http.get(f"{job}/events").text
    with http.stream("GET", f"/jobs/{waiting}/events") as events:
        assert next(events.iter_lines()) == "event: queued"
    ticket = http.post(f"{job}/tickets").raise_for_status().json()["ticket"]
    free = {"Authorization": ""}
    with httpx.Client(base_url=deployed.lone.url) as anybody:
        assert anybody.get(f"{pair}/mask.png", params={"ticket": ticket}).status_code == 200
        assert anybody.get("/labels", headers=free).status_code == 401
    assert deployed.put(waiting, 1000).status_code == 200, "it is found again"
    assert problem(http.get("/jobs/nobodys"), 404) == "not-found"
    assert main(["keys", "list"]) == 0


def test_a_redis_that_was_filled_delivers_what_is_drawn_answers_and_is_emptied_by_delete(
    deployed: Deployment,
    start_worker: Start,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATHAR_REDIS_URL", redis_server.url)
    worker = start_worker(slots=SLOTS).ready()
    assert deployed.put("done", 2).status_code == 201
    wait_until(lambda: set(deployed.states("done")) == {"finished"})
    # What is in a slot when Redis becomes full is delivered, and nothing else is begun.
    assert deployed.put("drawn", 1000).status_code == 201
    held = stop_while_it_draws(deployed, worker, "drawn")
    names = ["drawn", *fill(deployed)]
    worker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: "started" not in deployed.states("drawn"), "the end of what was held")
    after = deployed.states("drawn")
    assert {after[at] for at in held} == {"finished"}
    index = held[0]
    assert deployed.http.get(f"/jobs/drawn/images/{index}/image.png").status_code == 200
    assert deployed.says("full")
    read_everything(deployed, "done", names[-1], redis_server.url)
    # Workers come and go meanwhile.
    assert worker.stop() == 0
    start_worker(slots=SLOTS).ready()
    assert deployed.http.get("/readyz").status_code == 200
    assert deployed.states("drawn") == after
    assert problem(deployed.put("new", 2)) == "store-full"
    assert problem(deployed.http.post("/generate", json={"label": "blood"})) == "store-full"
    used = deployed.redis.info("memory")["used_memory"]
    for name in names:
        answer = deployed.http.delete(f"/jobs/{name}", params={"files": "true"})
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    wait_until(lambda: deployed.redis.info("memory")["used_memory"] < used - ROOM / 2, "room")
    assert deployed.says("")
    assert deployed.put("new", 2).status_code == 201
    wait_until(lambda: set(deployed.states("new")) == {"finished"})


def refuse_for_memory(client: redis.Redis, folder: Path) -> Callable[[], None]:
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    return lambda: client.config_set("maxmemory", 0) and None


def become_a_replica(client: redis.Redis, folder: Path) -> Callable[[], None]:
    client.replicaof("127.0.0.1", "1")
    return lambda: client.replicaof("NO", "ONE") and None


def lose_the_disk(client: redis.Redis, folder: Path) -> Callable[[], None]:
    """A folder stands where the file of the snapshot is to be."""

    def saved(status: str) -> None:
        client.bgsave()
        wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == status, status)

    def repair() -> None:
        (folder / "dump.rdb").rmdir()
        saved("ok")

    (folder / "dump.rdb").mkdir()
    client.config_set("save", "3600 100000")
    saved("err")
    return repair


@pytest.mark.parametrize(
    ("refuse", "reason", "told"),
    [
        (refuse_for_memory, "full", "store-full"),
        (become_a_replica, "read_only", "store-read-only"),
        (lose_the_disk, "disk", "store-disk"),
    ],
)
def test_a_redis_that_refuses_for_a_while_costs_no_image(
    refuse: Callable[[redis.Redis, Path], Callable[[], None]],
    reason: str,
    told: str,
    deployed: Deployment,
    start_worker: Start,
    redis_server: RedisServer,
) -> None:
    worker = start_worker(slots=SLOTS).ready()
    assert deployed.put("job", 20).status_code == 201
    wait_until(lambda: deployed.under_way("job"))
    repair = refuse(deployed.redis, redis_server.folder)
    assert problem(deployed.put("new", 1)) == told
    assert deployed.says(reason)
    wait_until(lambda: "trying again" in worker.log(), "a refusal")
    assert len(deployed.states("job")) == 20
    repair()
    wait_until(lambda: set(deployed.states("job")) == {"finished"})
    assert deployed.losses("job") == []
    assert worker.stop() == 0


def test_a_worker_leaves_a_full_redis_with_nothing_lost(
    deployed: Deployment, start_worker: Start, redis_server: RedisServer
) -> None:
    worker = start_worker(slots=SLOTS).ready()
    assert deployed.put("job", 20).status_code == 201
    wait_until(lambda: deployed.under_way("job"))
    repair = refuse_for_memory(deployed.redis, redis_server.folder)
    assert worker.stop() == 0
    assert set(deployed.states("job")) <= {"queued", "finished"}
    assert deployed.losses("job") == []
    repair()
    start_worker(slots=SLOTS)
    wait_until(lambda: set(deployed.states("job")) == {"finished"})
