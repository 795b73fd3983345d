"""More connections than there are descriptors: slow ones, silent ones, and honest listeners."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from service.connections import BODY_SECONDS, HEAD_SECONDS, SPARE
from tests.conftest import DEADLINE_S, RedisServer
from tests.running import PROBLEM
from tests.service.conftest import LoneService

FEW = 320
"""Descriptors."""
SLOW = 500
"""Slow connections, beyond both."""
HEAD = b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\n"
BODY = HEAD + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"


@contextmanager
def connected(lone: LoneService, said: bytes) -> Iterator[socket.socket]:
    parts = urlsplit(lone.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=DEADLINE_S) as opened:
        opened.sendall(said)
        yield opened


def with_descriptors(soft: int, hard: int) -> tuple[str, ...]:
    return ("sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$0" "$@"')


def test_slow_connections_do_not_keep_others_away(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    lone = LoneService(redis_server, tmp_path / "log", *with_descriptors(FEW, FEW))
    try:
        with ExitStack() as slow:
            for at in range(SLOW):
                slow.enter_context(connected(lone, (HEAD, BODY, b"")[at % 3]))
            for _ in range(5):
                with httpx.Client(base_url=lone.url, timeout=20) as http:
                    assert http.get("/healthz").status_code == 200
                    lone.publish()
                    assert http.get("/labels").status_code == 200
        assert len(lone.log()) < 20_000
        assert "pathar_connections_refused_total" in lone.http.get("/metrics").text
    finally:
        lone.close()


@pytest.mark.parametrize("said", [HEAD, BODY])
def test_half_a_request_is_answered_when_its_time_is_over(said: bytes, shared: LoneService) -> None:
    assert HEAD_SECONDS == BODY_SECONDS == 10
    with connected(shared, said) as slow, connected(shared, b"") as silent:
        slow.settimeout(HEAD_SECONDS / 2)
        with pytest.raises(TimeoutError):
            slow.recv(1)
        slow.sendall(b"x")  # which wins no time
        slow.settimeout(HEAD_SECONDS)
        answer = b"".join(iter(lambda: slow.recv(65536), b"")).decode()
        assert answer.startswith("HTTP/1.1 408 ")
        assert PROBLEM in answer
        assert "urn:pathar:request-timeout" in answer
        silent.settimeout(HEAD_SECONDS)
        assert silent.recv(1) == b""
    assert "Traceback" not in shared.log()


def test_listeners_beyond_the_limit_are_told_so_and_probes_are_answered(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    most = 100
    lone = LoneService(redis_server, tmp_path / "log", PATHAR_MAX_CONNECTIONS=str(most))
    room = most - SPARE

    async def run() -> None:
        limits = httpx.Limits(max_connections=2 * most)
        async with (
            httpx.AsyncClient(base_url=lone.url, timeout=20, limits=limits) as http,
            asyncio.timeout(DEADLINE_S),
        ):
            found: list[int] = []
            stay = asyncio.Event()

            async def listen() -> None:
                async with http.stream("GET", "/jobs/a/events") as answer:
                    found.append(answer.status_code)
                    if answer.status_code == 200:
                        await stay.wait()
                    else:
                        assert (await answer.aread()).startswith(b'{"type": "urn:pathar:busy"')
                        assert answer.headers["retry-after"]

            listeners = [asyncio.create_task(listen()) for _ in range(room + 20)]
            while len(found) < room + 20:
                await asyncio.sleep(0.05)
            assert (found.count(200), found.count(503)) == (room, 20)
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/readyz")).status_code in (200, 503)
            assert (await http.get("/labels")).status_code == 503
            stay.set()
            await asyncio.gather(*listeners)
            while (await http.get("/jobs/a")).status_code != 200:
                await asyncio.sleep(0.05)

    try:
        lone.publish()
        assert lone.http.put("/jobs/a", json={"label": "blood"}).status_code == 201
        lone.http.close()
        asyncio.run(run())
    finally:
        lone.close()


def test_the_soft_limit_of_descriptors_is_raised(redis_server: RedisServer, tmp_path: Path) -> None:
    hard = min(4000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    lone = LoneService(redis_server, tmp_path / "log", *with_descriptors(256, hard))
    try:
        assert resource.prlimit(lone.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
        assert f"room for {hard - 128} connections" in lone.log()
    finally:
        lone.close()
