"""An API process that is told to stop: first it only says so, then it ends; no request is lost."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import re
import signal
import socket
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from runtime.settings import SettingsError
from service.settings import read_settings
from tests.conftest import DEADLINE_S, RedisServer
from tests.running import PROBLEM, wait_until
from tests.service import conftest
from tests.service.conftest import LoneService
from tests.service.test_event_routes import LIFE, events

BODY = {"label": "blood", "n": 2}
LONG, SHORT = "300", "2"
"""Seconds of drain: one that a test cuts short, one that it waits for."""

Start = Callable[..., LoneService]


@pytest.fixture
def start(redis_server: RedisServer, tmp_path: Path) -> Iterator[Start]:
    """Starts a service with a model and so many seconds of drain."""
    started: list[LoneService] = []

    def starting(seconds: str, **settings: str) -> LoneService:
        log = tmp_path / f"service-{len(started)}.log"
        started.append(LoneService(redis_server, log, PATHAR_DRAIN_SECONDS=seconds, **settings))
        started[-1].publish()
        return started[-1]

    yield starting
    for service in started:
        service.close()


def told_to_stop(lone: LoneService, number: int = signal.SIGTERM) -> None:
    """Tell it, and wait until it says that it leaves."""
    lone.process.send_signal(number)
    wait_until(lambda: httpx.get(f"{lone.url}/readyz").status_code == 503, "its word")


def test_it_says_so_and_answers_all_else_until_the_drain_is_over(start: Start) -> None:
    lone = start(LONG)
    assert lone.http.put("/jobs/a", json=BODY).status_code == 201
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(lone.http.post, "/generate?wait=300", json=BODY)
        follower = pool.submit(lambda: [kind for kind, _ in events(lone, "a")])
        told_to_stop(lone)
        refusal = lone.http.get("/readyz")
        assert refusal.headers["content-type"] == PROBLEM
        assert refusal.json()["type"] == "urn:pathar:draining"
        assert refusal.headers["connection"] == "close", "who comes again shall come elsewhere"
        answers = [httpx.get(f"{lone.url}/healthz"), lone.http.get("/jobs/a")]
        answers += [httpx.put(f"{lone.url}/jobs/b", json=BODY)]
        assert [answer.status_code for answer in answers] == [200, 200, 201]
        assert {answer.headers["connection"] for answer in answers} == {"close"}
        assert not waiting.done()
        wait_until(lambda: lone.work() > 0)
        assert waiting.result(DEADLINE_S).status_code == 200, "it was drawn in time"
        assert follower.result(timeout=DEADLINE_S) == LIFE
    lone.process.terminate()  # told twice, it drains no longer
    assert lone.process.wait(DEADLINE_S) == 0
    assert "Traceback" not in lone.log()


def test_who_follows_or_waits_at_its_end_goes_on_at_another(start: Start) -> None:
    leaving, staying = start(SHORT), start("0")
    assert leaving.http.put("/jobs/a", json=BODY).status_code == 201
    with (
        ThreadPoolExecutor(1) as pool,
        closing(http.client.HTTPConnection(urlsplit(leaving.url).netloc)) as kept,
    ):
        waiting = pool.submit(leaving.http.post, "/generate?wait=300", json=BODY)
        wait_until(lambda: len(leaving.http.get("/jobs").json()["jobs"]) == 2)
        kept.request("GET", "/jobs/a/events")
        stream = kept.getresponse()
        told_to_stop(leaving)
        told = stream.read().decode()
        kept.request("GET", "/jobs/a")  # it had not been told that its connection is closed
        again = kept.getresponse()
        assert (again.status, again.getheader("connection")) == (200, "close")
        answer = waiting.result(DEADLINE_S)
    assert leaving.process.wait(DEADLINE_S) == 0
    assert re.findall("event: (.*)", told) == LIFE[:1]
    assert answer.status_code == 202
    staying.publish()
    wait_until(lambda: staying.work() > 0)
    [last] = re.findall("id: (.*)", told)
    assert [kind for kind, _ in events(staying, "a", last)] == LIFE[1:]
    where = answer.headers["location"]
    assert staying.http.get(where).json()["status"] == "finished"


def test_a_download_that_takes_its_time_is_whole(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {**conftest.FILES, "image.png": conftest.FILES["image.png"] + bytes(1_000_000)}
    monkeypatch.setattr(conftest, "FILES", large)
    lone = start("0")
    assert lone.http.put("/jobs/a", json={"label": "blood", "n": 12}).status_code == 201
    wait_until(lambda: lone.work() > 0)
    address = urlsplit(lone.url)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((address.hostname, address.port))
        slow.sendall(f"GET /jobs/a/pairs.zip HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        assert slow.recv(1, socket.MSG_PEEK)
        lone.process.terminate()
        wait_until(lambda: refuses(lone), "the end of its port")
        assert lone.process.poll() is None, "it waits for who reads"
        answer = http.client.HTTPResponse(slow)
        answer.begin()
        archive = zipfile.ZipFile(io.BytesIO(answer.read()))
    assert lone.process.wait(DEADLINE_S) == 0
    listed = json.loads(archive.read("manifest.json"))["images"]
    assert len(listed) == 12
    for image in listed:
        for name, digest in image["sha256"].items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == digest


def refuses(lone: LoneService) -> bool:
    address = urlsplit(lone.url)
    try:
        socket.create_connection((address.hostname or "", address.port or 0)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_ctrl_c_waits_for_no_drain(start: Start) -> None:
    lone = start(LONG)
    lone.process.send_signal(signal.SIGINT)
    assert lone.process.wait(DEADLINE_S) == 130


@pytest.mark.parametrize("seconds", ["-1", "301", "soon"])
def test_a_drain_that_is_none_is_refused(seconds: str) -> None:
    with pytest.raises(SettingsError, match=f"PATHAR_DRAIN_SECONDS='{seconds}': expected "):
        read_settings({"PATHAR_DRAIN_SECONDS": seconds})
