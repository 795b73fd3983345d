"""`pathar up`: one command that starts everything, keeps it running and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from runtime.connection import connect
from store.access import ANYBODY
from store.keys import ENDED_CHANNEL, owned_id
from tests.pathar.test_cli import called
from tests.running import Up, alive, wait_until

pytestmark = pytest.mark.processes

CHILDREN = ("redis", "worker", "service")


def is_here(host: str) -> bool:
    """Whether this machine has an address."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


OTHER_HOST = "127.0.0.2" if is_here("127.0.0.2") else "127.0.0.1"


@pytest.fixture
def start_up(slow_checkpoint: Path) -> Iterator[Callable[..., Up]]:
    """Starts `pathar up`; call `.ready()` to wait for it."""
    started: list[Up] = []

    def start(**settings: str) -> Up:
        started.append(Up(slow_checkpoint, **settings))
        return started[-1]

    yield start
    for up in started:
        up.close()


def test_run_json_says_where_everything_is(stack: Up) -> None:
    run = stack.run()
    assert run.keys() == {"url", "redis_url", "metrics", "pid", "pids"}
    assert run["pid"] == stack.process.pid
    assert run["pids"].keys() == set(CHILDREN)
    assert all(alive(pid) for pid in run["pids"].values())
    assert run["url"] in stack.log()
    with connect(run["redis_url"]) as client:
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_on_any_address_all_is_where_run_json_says_and_a_signal_leaves_no_process(
    start_up: Callable[..., Up],
) -> None:
    """SIGTERM; SIGINT is what stops the first service in test_pull.py."""
    host = "::1" if is_here("::1") else "127.0.0.1"
    up = start_up(PATHAR_HOST=host).ready()
    all_is_where_run_json_says(up, host)
    pids = [up.pid(name) for name in CHILDREN]
    up.http.post("/generate?wait=0", json={"label": "blood", "n": 64})
    assert up.stop(signal.SIGTERM) == 0
    assert not any(alive(pid) for pid in pids)
    assert not (up.home / "run.json").exists()


def all_is_where_run_json_says(up: Up, host: str) -> None:
    run, shown = up.run(), f"[{host}]" if ":" in host else host
    [metrics] = run["metrics"]
    assert [httpx.URL(url).host for url in (run["url"], metrics)] == [host, host]
    assert "pathar_slots" in httpx.get(metrics).text
    top = called("top", "--once", PATHAR_HOME=str(up.home), COLUMNS="120")
    assert top.returncode == 0, top.stderr
    assert "no answer" not in top.stdout
    assert f"http://{shown}:" in top.stdout


def test_a_signal_stops_it_before_it_is_ready(start_up: Callable[..., Up]) -> None:
    up = start_up()
    wait_until(lambda: (up.home / "run.json").exists() and len(up.run()["pids"]) == 3)
    pids = up.run()["pids"].values()
    assert up.stop() == 130
    assert not any(alive(pid) for pid in pids)


@pytest.fixture(scope="module")
def up(slow_checkpoint: Path) -> Iterator[Up]:
    """One on another address, whose children are killed, for the tests that follow; the last one
    kills itself."""
    running = Up(slow_checkpoint, PATHAR_SLOTS="2", PATHAR_HOST=OTHER_HOST)
    try:
        yield running.ready()
    finally:
        running.close()


def test_on_another_address_all_is_where_run_json_says(up: Up) -> None:
    all_is_where_run_json_says(up, OTHER_HOST)


def test_dead_children_are_started_again_and_the_jobs_are_still_there(up: Up) -> None:
    job = up.http.post("/generate", json={"label": "blood", "seed": 1}).json()["job_id"]
    files = up.files(job, 0)
    for name in CHILDREN:
        up.kill_child(name)
    assert up.files(job, 0) == files
    answer = up.http.post("/generate", json={"label": "blood", "seed": 1})
    assert answer.status_code == 200
    assert up.files(answer.json()["job_id"], 0) == files


def test_kill_9_of_the_worker_in_mid_batch_loses_and_doubles_nothing(up: Up) -> None:
    with connect(up.run()["redis_url"]) as client, client.pubsub() as channel:
        channel.subscribe(ENDED_CHANNEL)
        accepted = [
            up.http.post("/generate?wait=0", json={"label": label, "n": n}).json()["job_id"]
            for label, n in [("blood", 8), ("cervix", 1), ("histology", 2)]
        ]
        first = f"/jobs/{accepted[0]}"
        wait_until(lambda: _statuses(up, first) >= {"finished", "started"}, "the middle of a batch")
        os.kill(up.pid("worker"), signal.SIGKILL)
        jobs = [up.ended(job_id) for job_id in accepted]
        told = []
        while message := channel.get_message(timeout=1.0):
            if message["type"] == "message":
                told.append(message["data"].decode())
    assert [job["status"] for job in jobs] == ["finished"] * 3
    assert sorted(told) == sorted(owned_id(ANYBODY.id, job_id) for job_id in accepted)
    for job in jobs:
        assert len(job["images"]) == job["settings"]["n"]
        settings = dict(job["settings"])
        [(label, of_label)] = settings.pop("labels").items()
        body = {"label": label, **settings, **of_label}
        again = up.http.post("/generate?wait=300", json=body).json()["job_id"]
        for index in range(job["settings"]["n"]):
            assert up.files(again, index) == up.files(job["job_id"], index)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port cannot be kept for a child")
def test_no_other_process_gets_a_childs_port_while_the_child_is_dead(up: Up) -> None:
    [metrics] = up.run()["metrics"]
    port = httpx.URL(metrics).port
    up.process.send_signal(signal.SIGSTOP)  # so that it does not start the worker again yet
    worker = up.pid("worker")
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not listens(port), "the end of the worker")
    try:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((OTHER_HOST, port))
    finally:
        up.process.send_signal(signal.SIGCONT)
    wait_until(lambda: up.pid("worker") != worker, "a new worker")
    wait_until(lambda: listens(port), "its metrics")
    assert "pathar_slots" in httpx.get(metrics).text


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_kill_9_of_the_parent_leaves_no_process(up: Up) -> None:
    """The last that needs it."""
    pids = [up.pid(name) for name in CHILDREN]
    up.stop(signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in pids))


def listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex((OTHER_HOST, port)) == 0


def test_a_second_one_in_the_same_home_refuses(stack: Up, start_up: Callable[..., Up]) -> None:
    second = start_up(PATHAR_HOME=str(stack.home))
    assert second.process.wait() == 1
    assert f"already running at {stack.run()['url']}" in second.log()
    assert stack.serves()


def test_a_port_in_use_is_refused_with_a_way_out(start_up: Callable[..., Up]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = start_up(PATHAR_PORT=str(port))
        assert up.process.wait() == 1
    assert f"127.0.0.1:{port}" in up.log()
    assert "PATHAR_PORT" in up.log()


@pytest.mark.parametrize(
    ("key", "value"), [("PATHAR_PORT", "http"), ("PATHAR_CHECKPOINT", "/nowhere")]
)
def test_a_bad_setting_ends_it_with_code_2(
    key: str, value: str, start_up: Callable[..., Up]
) -> None:
    up = start_up(**{key: value})
    assert up.process.wait() == 2
    assert key in up.log()
    assert value in up.log()
    assert "Traceback" not in up.log()


def _statuses(up: Up, path: str) -> set[str]:
    return {image["status"] for image in up.http.get(path).json()["images"]}


def test_modules_of_the_folder_that_it_was_started_in_are_not_run(stack: Up) -> None:
    for name in ("service", "worker"):
        folder = Path(f"/proc/{stack.pid(name)}/cwd").resolve()
        assert (folder / "service.py").read_text() == "raise SystemExit('not ours')\n"
    assert stack.serves()


def test_results_and_logs_are_for_its_owner_alone_in_a_home_that_all_can_read(stack: Up) -> None:
    assert stack.home.stat().st_mode & 0o777 == 0o755
    for name in ("redis", "logs"):
        assert (stack.home / name).stat().st_mode & 0o777 == 0o700, name
