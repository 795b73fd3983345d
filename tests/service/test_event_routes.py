"""Following a job by server-sent events: its whole life, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.event_routes import MOST_STREAMS
from service.waiting import LOOK_S
from store.access import KeyStore, Limits
from tests.conftest import DEADLINE_S, RedisServer
from tests.running import PROBLEM, wait_until
from tests.service.conftest import LoneService

BODY = {"label": "blood", "n": 2}
LIFE = ["queued", "started", "image", "started", "image", "finished"]


@pytest.fixture
def made(lone: LoneService) -> LoneService:
    """A service with a job `a` that waits."""
    lone.publish()
    assert lone.http.put("/jobs/a", json=BODY).status_code == 201
    return lone


def events(
    lone: LoneService, job_id: str, after: str | None = None, **headers: str
) -> Iterator[tuple[str, str]]:
    sent = headers | ({"Last-Event-ID": after} if after else {})
    with lone.http.stream("GET", f"/jobs/{job_id}/events", headers=sent) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            fields[name] = value
            if not line and "event" in fields:
                yield fields["event"], fields["id"]
                fields = {}


def kinds(lone: LoneService) -> list[str]:
    return [kind for kind, _ in events(lone, "a")]


def test_events_tell_a_jobs_life_end_with_it_and_are_replayed_after_an_id(
    made: LoneService,
) -> None:
    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(lambda: list(events(made, "a")))
        wait_until(lambda: made.work() > 0)
        told = follower.result(timeout=60)
    assert [kind for kind, _ in told] == LIFE
    assert list(events(made, "a", told[2][1])) == told[3:]
    path = "/jobs/a/events"
    answer = made.http.get(path, headers={"Last-Event-ID": told[-1][1]})
    assert (answer.status_code, answer.content) == (204, b""), "or an EventSource comes for ever"
    answer = made.http.get(path, headers={"Last-Event-ID": "yesterday"})
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)


def test_who_asks_for_events_after_the_end_is_sent_away_at_the_end(made: LoneService) -> None:
    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(lambda: list(events(made, "a", "9" * 19)))
        time.sleep(0.5)
        assert made.work() == 2
        assert follower.result(timeout=60) == []


def test_a_stream_goes_on_when_redis_was_away(made: LoneService, redis_server: RedisServer) -> None:
    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(kinds, made)
        time.sleep(0.5)
        redis_server.kill()
        time.sleep(LOOK_S + 2)
        assert not follower.done()
        redis_server.start()
        wait_until(lambda: made.work() > 0)
        assert follower.result(timeout=60) == LIFE


def test_streams_of_a_key_are_limited_and_end_when_it_is_revoked(
    lone: LoneService, redis_server: RedisServer
) -> None:
    lone.publish()
    keys = KeyStore(redis_server.client())
    mine, _ = keys.make("ann", 1.0, Limits())
    headers = {"Authorization": f"Bearer {mine}"}
    assert lone.http.put("/jobs/a", json=BODY, headers=headers).status_code == 201

    opened: list[str] = []

    async def read(http: httpx.AsyncClient, job_id: str) -> list[str]:
        async with http.stream("GET", f"/jobs/{job_id}/events") as answer:
            if answer.status_code == 429:
                return [answer.headers["retry-after"]]
            opened.append(job_id)
            return [line async for line in answer.aiter_lines() if line.startswith("event: ")]

    async def run() -> list[list[str]]:
        limits = httpx.Limits(max_connections=2 * MOST_STREAMS)
        async with httpx.AsyncClient(
            base_url=lone.url, headers=headers, timeout=DEADLINE_S, limits=limits
        ) as http:
            streams = [asyncio.create_task(read(http, "a")) for _ in range(MOST_STREAMS)]
            async with asyncio.timeout(DEADLINE_S):
                while len(opened) < MOST_STREAMS:
                    await asyncio.sleep(0.01)
            assert await read(http, "a") == ["5"]
            assert (await http.get("/labels")).status_code == 200
            keys.revoke("ann")
            return await asyncio.gather(*streams)

    assert asyncio.run(run()) == [["event: queued"]] * MOST_STREAMS
    document = (Path(__file__).parents[2] / "docs/api.md").read_text()
    assert f"up to {MOST_STREAMS} streams" in document


def test_many_readers_of_a_job_ask_redis_as_one_does(
    made: LoneService, redis_server: RedisServer
) -> None:
    def ranges() -> int:
        with redis_server.client() as client:
            return int(client.info("commandstats").get("cmdstat_xrange", {"calls": 0})["calls"])

    with ThreadPoolExecutor(40) as pool:
        before = ranges()
        readers = [pool.submit(kinds, made) for _ in range(40)]
        time.sleep(1)
        wait_until(lambda: made.work() > 0)
        assert [reader.result(timeout=60) for reader in readers] == [LIFE] * 40
        assert ranges() - before < 40
