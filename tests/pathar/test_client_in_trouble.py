"""The Python client when streams break, the service is away or hangs, or another one answers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import threading
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from pathar import AsyncClient, Client, Event, ServiceError
from pathar.errors import (
    BodyTooLarge,
    ConnectionLost,
    InternalError,
    JobCanceled,
    NotFinished,
    TooManyRequests,
    Unavailable,
)
from tests.pathar.cutting import cutting
from tests.running import Up
from tests.service.conftest import LoneService

LEEWAY_S = 6.0
"""One request more than patience has is given 5 s."""


def ids_of(events: list[Event]) -> list[str]:
    """Of all that are kept: of an image's progress the latest alone is, until it has ended."""
    return [event.id for event in events if event.kind != "progress"]


async def followed(url: str, job_id: str, act: Callable[[], object]) -> list[Event]:
    found: list[Event] = []
    async with AsyncClient(url) as client:
        async for event in client.events(job_id):
            if not found:
                act()
            found.append(event)
    return found


@pytest.mark.parametrize("name", ["service", "redis"])
@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_events_go_on_when_a_part_of_the_service_was_away(up: Up, kind: str, name: str) -> None:
    worker, url = up.pid("worker"), up.run()["url"]
    os.kill(worker, signal.SIGSTOP)

    def harm() -> None:
        os.kill(up.pid(name), signal.SIGKILL)
        threading.Timer(1.0, os.kill, (worker, signal.SIGCONT)).start()

    with Client(url) as client:
        job = client.submit("blood", n=3, seed=1)
        if kind == "Client":
            found: list[Event] = []
            for event in client.events(job.id):
                if not found:
                    harm()
                found.append(event)
        else:
            found = asyncio.run(followed(url, job.id, harm))
        assert ids_of(found) == ids_of(list(client.events(job.id))), "each event once"
        assert [event.kind for event in found].count("image") == 3
        assert found[-1].kind == "finished"


def test_events_and_pairs_of_a_service_that_is_gone_end_with_an_error(lone: LoneService) -> None:
    lone.publish()
    with Client(lone.url, patience=1.0) as client:
        job = client.submit("blood", n=2)
        events, pairs = client.events(job.id), client.pairs(job.id)
        assert next(events).kind == "queued"
        for end in (lone.process.kill, lone.redis_server.kill):
            threading.Timer(0.5, end).start()
        with pytest.raises(ConnectionLost):
            list(pairs)
        with pytest.raises(ConnectionLost):
            list(events)


def test_a_stream_that_breaks_within_an_event_loses_and_repeats_none(client: Client) -> None:
    job = client.submit("blood", n=4, seed=1)
    expected = ids_of(list(client.events(job.id)))
    with (
        cutting(client.url, "/events", 300, 450, 350) as url,
        Client(url) as far,
    ):
        assert ids_of(list(far.events(job.id))) == expected


def test_drawing_goes_on_where_streams_break(client: Client, stack: Up) -> None:
    worker = stack.pid("worker")
    os.kill(worker, signal.SIGSTOP)  # or all could be drawn before the third stream
    threading.Timer(3.0, os.kill, (worker, signal.SIGCONT)).start()
    with cutting(client.url, "/events", 0, 100, 400) as url, Client(url) as far:
        pairs = far.generate("blood", n=40, seed=1)
    assert [pair.image_png for pair in pairs] == [
        pair.image_png for pair in client.generate("blood", n=40, seed=1)
    ]


def test_nothing_comes_after_the_last_event(client: Client) -> None:
    job = client.submit("blood", seed=1)
    last = list(client.events(job.id))[-1]
    with Client(client.url, patience=0.0) as hasty:
        assert list(hasty.events(job.id, after=last.id)) == []


def test_drawing_looks_at_the_whole_job_a_few_times_only(client: Client, stack: Up) -> None:
    def looks() -> float:
        lines = stack.http.get("/metrics").text.splitlines()
        wanted = ("pathar_http_requests_total", 'method="GET"', 'route="/jobs/{job_id}"')
        return sum(float(x.split()[-1]) for x in lines if all(word in x for word in wanted))

    before = looks()
    assert len(client.generate("blood", n=30, seed=1)) == 30
    assert 1 <= looks() - before <= 3


def test_more_jobs_than_streams_at_once(stack: Up) -> None:
    async def drawn() -> int:
        async with AsyncClient(stack.run()["url"]) as client:
            found = await asyncio.gather(*(client.generate("blood", seed=k) for k in range(80)))
            return sum(map(len, found))

    assert asyncio.run(drawn()) == 80


def test_an_archive_that_breaks_off_is_gone_on_with(
    client: Client, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = client.submit("blood", n=3, seed=1)
    pairs = list(client.pairs(job.id))
    path = tmp_path / "pairs.zip"
    with cutting(client.url, "/pairs.zip", 300, 3000, 3000) as url, Client(url) as far:
        before = parts_sent(client.url)
        far.archive(job.id, path, progress=True)
        assert parts_sent(client.url) > before, "it began anew"
    size = path.stat().st_size
    assert f"{size / 1000:.1f}k/{size / 1000:.1f}k" in capfd.readouterr().err
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for pair in pairs:
            assert archive.read(f"{pair.index:04d}/image.png") == pair.image_png
    assert [each.name for each in tmp_path.iterdir()] == ["pairs.zip"]


def parts_sent(url: str) -> float:
    """How many parts of archives the service has sent."""
    told = re.findall(r'pairs.zip",status="206"} ([0-9.]+)', httpx.get(f"{url}/metrics").text)
    return float(told[0]) if told else 0.0


def test_an_archive_is_whole_or_not_there(up: Up, tmp_path: Path) -> None:
    os.kill(up.pid("worker"), signal.SIGSTOP)
    path = tmp_path / "pairs.zip"
    path.write_text("what was there")
    with Client(up.run()["url"]) as client:
        job = client.submit("blood", n=2)
        with pytest.raises(NotFinished):
            client.archive(job.id, path)
        client.cancel(job.id)
        with pytest.raises(JobCanceled):
            list(client.pairs(job.id))
    os.kill(up.pid("worker"), signal.SIGCONT)
    assert path.read_text() == "what was there"
    assert [each.name for each in tmp_path.iterdir()] == ["pairs.zip"]


@contextmanager
def mute(backlog: int) -> Iterator[str]:
    """A service that hangs: it takes connections and says nothing; once full, it takes none."""
    with socket.socket() as server, socket.socket() as one, socket.socket() as two:
        server.bind(("127.0.0.1", 0))
        server.listen(backlog)
        if not backlog:
            for filler in (one, two):
                filler.setblocking(False)
                filler.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("backlog", [0, 50])
@pytest.mark.parametrize("patience", [0.0, 2.0])
def test_patience_counts_the_time_that_requests_take(backlog: int, patience: float) -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url, patience=patience) as client:
            await client.labels()

    with mute(backlog) as url, Client(url, patience=patience) as client:
        for call in (client.labels, lambda: asyncio.run(ask(url))):
            begin = time.monotonic()
            with pytest.raises(ConnectionLost):
                call()
            assert patience <= time.monotonic() - begin < patience + LEEWAY_S


@pytest.mark.slow
@pytest.mark.parametrize("backlog", [0, None], ids=["silent", "refused"])
def test_a_service_that_was_never_reached_is_not_waited_for(backlog: int | None) -> None:
    with (
        mute(0) if backlog == 0 else nullcontext("http://127.0.0.1:9") as url,
        Client(url) as client,
    ):
        begin = time.monotonic()
        with pytest.raises(ConnectionLost, match=url):
            client.labels()
        assert time.monotonic() - begin < 60, "it has a patience of 300 s"


async def waited(url: str, log: pytest.LogCaptureFixture) -> list[str]:
    """What five questions at once log, which wait for their answer."""
    async with AsyncClient(url) as client:
        waiting = [asyncio.create_task(client.labels()) for _ in range(5)]
        while not log.records:
            await asyncio.sleep(0.05)
        done, _ = await asyncio.wait(waiting, timeout=1.0)
        assert not done
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return [record.getMessage() for record in log.records if record.name == "pathar"]


@pytest.mark.slow
def test_a_service_that_answers_nothing_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with mute(50) as url:
        [said] = asyncio.run(waited(url, caplog))
    assert re.fullmatch(f"{url} does not answer: timed out; trying again for 29\\d s", said)


@pytest.mark.slow
def test_a_service_that_has_no_room_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with somebody_else(b"later", 503) as url:
        [said] = asyncio.run(waited(url, caplog))
    assert re.fullmatch(r"answered 503 .*; trying again for 29\d s", said)


def test_errors_show_no_plumbing() -> None:
    """Each ends in two lines of ours, without what it was caused by."""

    async def ask(url: str) -> None:
        async with AsyncClient(url, patience=0.0) as client:
            await client.generate("blood")

    with Client("http://127.0.0.1:9", patience=0.0) as client:
        calls: list[Callable[[], object]] = [
            client.labels,
            lambda: client.generate("blood"),
            lambda: list(client.events("a")),
            lambda: asyncio.run(ask(client.url)),
        ]
        for call in calls:
            with pytest.raises(ConnectionLost) as caught:
                call()
            shown = traceback.format_exception(caught.value)
            ours = [part for part in shown if "/pathar/" in part and "/tests/" not in part]
            assert 1 <= len(ours) <= 2
            assert not any("direct cause" in part or "During" in part for part in shown)


def test_a_service_that_hangs_in_the_middle_ends_patience(up: Up) -> None:
    os.kill(up.pid("worker"), signal.SIGSTOP)
    with Client(up.run()["url"], patience=1.0) as client:
        job = client.submit("blood")
        events = client.events(job.id)
        assert next(events).kind == "queued"
        os.kill(up.pid("service"), signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(ConnectionLost):
            list(events)
        assert time.monotonic() - begin < 1.0 + 2 * LEEWAY_S
        os.kill(up.pid("service"), signal.SIGCONT)
    os.kill(up.pid("worker"), signal.SIGCONT)


@contextmanager
def somebody_else(content: bytes, status: int = 200) -> Iterator[str]:
    """What answers 200 to everything, as a login page does."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_PUT = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("content", [b"<h1>Log in</h1>", b"{}", b"[]", b"7", b"", b"data: x\n\n"])
def test_an_answer_that_is_not_the_services_is_an_error_of_ours(content: bytes) -> None:
    with somebody_else(content) as url, Client(url, patience=1.0) as client:
        for call in (
            client.labels,
            lambda: client.job("a"),
            lambda: client.submit("blood"),
            lambda: client.cancel("a"),
            lambda: list(client.jobs()),
            lambda: list(client.events("a")),
            lambda: list(client.pairs("a")),
            lambda: client.generate("blood"),
        ):
            with pytest.raises(InternalError) as caught:
                call()
            assert isinstance(caught.value, ServiceError)


PAGE = b"<!DOCTYPE html>\n<html><head><title>\n 504 Gateway</title></head><body>" + b"x" * 900


@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, InternalError), (413, BodyTooLarge), (504, Unavailable), (429, TooManyRequests)],
)
def test_a_page_of_a_proxy_is_named_and_not_printed(status: int, kind: type[ServiceError]) -> None:
    with somebody_else(PAGE, status) as url, Client(url, patience=0.0) as client:
        with pytest.raises(kind) as caught:
            client.labels()
        said = str(caught.value)
        assert f"answered {status} with a page of HTML ('504 Gateway')" in said
        assert "<" not in said
        assert len(said) < 200
