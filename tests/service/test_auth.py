"""API keys: who is let in, and that nobody sees what is another's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from store.access import KeyStore, Limits
from tests.conftest import RedisServer
from tests.proxies import haproxy, nginx
from tests.service.conftest import LoneService

OPEN = {"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"}
BODY = {"label": "blood"}


@pytest.fixture
def keys(redis_server: RedisServer) -> KeyStore:
    return KeyStore(redis_server.client())


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def operations(lone: LoneService) -> list[tuple[str, str]]:
    paths = lone.http.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def test_every_route_but_the_open_ones_needs_a_key_as_soon_as_there_is_one(
    lone: LoneService, keys: KeyStore
) -> None:
    lone.publish()
    assert lone.http.get("/labels").status_code == 200
    token, _ = keys.make("ann", 1.0, Limits())
    for method, path in operations(lone):
        place = path.format(job_id="a", k=0, dataset_id="a", path="a", shard=0)
        for headers in ({}, bearer("pathar_00000000_" + "x" * 32), {"Authorization": "Basic YTpi"}):
            answer = lone.http.request(method, place, json=BODY, headers=headers)
            if path in OPEN:
                assert answer.status_code == 200, path
            else:
                assert answer.status_code == 401, (method, path, answer.text)
                assert answer.headers["www-authenticate"] == "Bearer"
    assert lone.http.get("/labels", headers=bearer(token)).status_code == 200
    assert keys.revoke("ann")
    assert lone.http.get("/labels").status_code == 401, "nor does the last one open it to anybody"
    keys.make("bob", 1.0, Limits())
    assert lone.http.get("/labels", headers=bearer(token)).status_code == 401
    keys.revoke("bob")
    keys.open()
    assert lone.http.get("/labels").status_code == 200


def test_no_route_shows_another_keys_job(lone: LoneService, keys: KeyStore) -> None:
    lone.publish()
    ann, bob = (bearer(keys.make(name, 1.0, Limits())[0]) for name in ("ann", "bob"))
    assert lone.http.put("/jobs/mine", json=BODY, headers=ann).status_code == 201
    lone.work()
    walked = 0
    for method, path in operations(lone):
        if "{job_id}" not in path or method == "PUT":
            continue
        place = path.format(job_id="mine", k=0)
        assert lone.http.request(method, place, headers=bob).status_code == 404, (method, path)
        assert lone.http.request(method, place, headers=ann).status_code == 200, (method, path)
        walked += 1
    assert walked >= 8
    assert lone.http.get("/jobs", headers=bob).json()["jobs"] == []
    assert lone.http.put("/jobs/mine", json={**BODY, "n": 2}, headers=bob).status_code == 201
    assert len(lone.http.get("/jobs", headers=ann).json()["jobs"]) == 1


def test_a_service_that_is_open_to_others_asks_for_keys_before_there_are_any(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    lone = LoneService(redis_server, tmp_path / "log", PATHAR_HOST="0.0.0.0")
    try:
        answer = lone.http.get("/labels")
        assert answer.status_code == 401
        assert "no API keys yet" in answer.json()["detail"]
    finally:
        lone.close()


@pytest.mark.system
def test_behind_a_proxy_a_redis_that_loses_its_data_lets_nobody_in(
    lone: LoneService, keys: KeyStore, redis_server: RedisServer, tmp_path: Path
) -> None:
    token, _ = keys.make("ann", 1.0, Limits())
    lone.publish()
    with nginx(tmp_path, f"location / {{ proxy_pass {lone.url}; }}") as url:
        assert httpx.get(f"{url}/labels", headers=bearer(token)).status_code == 200
        with redis_server.client() as client:
            client.flushall()
        lone.publish()
        refused = httpx.get(f"{url}/labels")
        assert refused.status_code == 401
        assert "pathar keys open" in refused.json()["detail"]
        keys.open()
        assert httpx.get(f"{url}/labels").status_code == 200


@pytest.mark.system
@pytest.mark.parametrize(
    "lines",
    [
        "proxy_set_header X-Forwarded-For $remote_addr;",
        "proxy_set_header X-Real-IP $remote_addr;",
        "proxy_set_header Forwarded for=$remote_addr;",
    ],
)
def test_without_keys_what_a_proxy_passes_on_is_refused(
    lines: str, shared: LoneService, tmp_path: Path
) -> None:
    shared.publish()
    assert shared.http.get("/labels").status_code == 200
    with nginx(tmp_path, f"location / {{ proxy_pass {shared.url}; {lines} }}") as url:
        answer = httpx.get(f"{url}/labels")
    assert answer.status_code == 403
    assert "came through a proxy" in answer.json()["detail"]


@pytest.mark.system
def test_without_keys_what_haproxy_passes_on_is_refused(
    shared: LoneService, tmp_path: Path
) -> None:
    server = shared.url.removeprefix("http://")
    with haproxy(tmp_path, f"option forwardfor\n  server one {server}") as url:
        assert httpx.get(f"{url}/labels").status_code == 403


def test_a_key_that_asks_for_much_keeps_nobody_waiting_but_itself(
    lone: LoneService, keys: KeyStore
) -> None:
    ann, bob = (bearer(keys.make(name, 1.0, Limits())[0]) for name in ("ann", "bob"))
    lone.publish()
    assert lone.http.put("/jobs/big", json={**BODY, "n": 1000}, headers=ann).status_code == 201
    assert lone.http.put("/jobs/small", json=BODY, headers=bob).status_code == 201
    much = 100

    async def run() -> int:
        answered = 0

        async def ask(http: httpx.AsyncClient) -> None:
            nonlocal answered
            # 503: on a machine that is busy, Redis may not answer so many at once in time.
            assert (await http.get("/jobs/big", headers=ann)).status_code in (200, 503)
            answered += 1

        limits = httpx.Limits(max_connections=2 * much)
        async with httpx.AsyncClient(base_url=lone.url, timeout=300, limits=limits) as http:
            asking = [asyncio.create_task(ask(http)) for _ in range(much)]
            while not answered:
                await asyncio.sleep(0.01)
            for _ in range(3):
                assert (await http.get("/jobs/small", headers=bob)).status_code == 200
            before_bob = answered
            await asyncio.gather(*asking)
        return before_bob

    assert asyncio.run(run()) < much / 2
