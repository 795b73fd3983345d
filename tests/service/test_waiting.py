"""Waiting for results: many at once without threads, and never for nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from store.access import ANYBODY, KeyStore, Limits
from tests.conftest import DEADLINE_S, RedisServer
from tests.running import PROBLEM, wait_until
from tests.service.conftest import LoneService

BODY = {"label": "blood", "seed": 1}
CLIENTS = 200


def threads_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("Threads:")[2].split()[0])


def ask(lone: LoneService) -> Callable[[], httpx.Response]:
    """Post a request that waits in a thread; the result gives the answer."""
    lone.publish()
    pool = ThreadPoolExecutor(1)
    future = pool.submit(httpx.post, f"{lone.url}/generate?wait=300", json=BODY, timeout=DEADLINE_S)
    pool.shutdown(wait=False)
    return future.result


def accepted(redis_server: RedisServer) -> list[str]:
    """The ids of the jobs that have been accepted."""
    with redis_server.client() as client:
        return [key.decode().rpartition(":")[2][9:] for key in client.keys("pathar:job:*")]


def finish_all(lone: LoneService, count: int) -> None:
    done = 0

    def more() -> bool:
        nonlocal done
        done += lone.work()
        return done == count

    wait_until(more)


def test_two_hundred_clients_wait_without_threads_and_all_are_answered(
    lone: LoneService, redis_server: RedisServer
) -> None:
    lone.publish()

    async def run() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=lone.url, timeout=DEADLINE_S, limits=limits) as http:
            waiting = [
                asyncio.create_task(http.post("/generate?wait=300", json=BODY))
                for _ in range(CLIENTS)
            ]
            await asyncio.to_thread(
                wait_until, lambda: len(accepted(redis_server)) == CLIENTS, "acceptance"
            )
            health = await asyncio.to_thread(httpx.get, f"{lone.url}/healthz", timeout=DEADLINE_S)
            assert health.status_code == 200
            assert threads_of(lone.process.pid) < CLIENTS / 2
            await asyncio.to_thread(finish_all, lone, CLIENTS)
            return await asyncio.gather(*waiting)

    answers = asyncio.run(run())
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["job_id"] for answer in answers}) == CLIENTS


def test_a_failed_job_is_answered_with_its_reason(
    lone: LoneService, redis_server: RedisServer
) -> None:
    answer = ask(lone)
    wait_until(lambda: lone.work(failure="the weights are on fire"))
    response = answer()
    assert response.status_code == 500
    assert response.headers["content-type"] == PROBLEM
    assert response.json()["type"] == "urn:pathar:job-failed"
    assert "the weights are on fire" in response.json()["detail"]


def test_a_canceled_job_is_answered_as_such(lone: LoneService, redis_server: RedisServer) -> None:
    answer = ask(lone)
    wait_until(lambda: accepted(redis_server))
    [job_id] = accepted(redis_server)
    assert lone.jobs.cancel(job_id, owner=ANYBODY)
    assert answer().status_code == 409


def test_a_job_that_is_not_ready_in_time_is_answered_as_accepted(lone: LoneService) -> None:
    lone.publish()
    response = lone.http.post("/generate?wait=0.2", json=BODY)
    assert response.status_code == 202
    assert lone.http.get(response.headers["location"]).json()["status"] == "queued"
    assert lone.http.get(f"{response.headers['location']}/images/0/mask.png").status_code == 404


def begin(url: str, head: str, body: bytes = b"") -> socket.socket:
    """A connection on which a request was sent, or its beginning."""
    parts = urlsplit(url)
    opened = socket.create_connection((parts.hostname, parts.port))
    opened.sendall(f"{head}\r\nHost: {parts.netloc}\r\n".encode() + b"\r\n" + body)
    return opened


def answered(lone: LoneService, route: str, status: int) -> bool:
    return f'route="{route}",status="{status}"' in lone.http.get("/metrics").text


@pytest.mark.parametrize("accept", ["application/json", "application/zip"])
def test_a_job_is_canceled_when_its_only_client_leaves(
    accept: str, lone: LoneService, redis_server: RedisServer
) -> None:
    lone.publish()
    body = json.dumps({**BODY, "n": 8}).encode()
    head = "POST /generate?wait=300 HTTP/1.1\r\nContent-Type: application/json\r\n"
    head += f"Accept: {accept}\r\nContent-Length: {len(body)}"
    client = begin(lone.url, head, body)
    wait_until(lambda: accepted(redis_server))
    [job_id] = accepted(redis_server)
    client.close()
    wait_until(lambda: lone.http.get(f"/jobs/{job_id}").json()["status"] == "canceled")
    assert lone.work() == 0
    wait_until(lambda: answered(lone, "/generate", 499))
    assert "Traceback" not in lone.log()


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_who_hangs_up_while_sending_is_no_error_of_ours(framing: str, shared: LoneService) -> None:
    head = f"PUT /jobs/half HTTP/1.1\r\nContent-Type: application/json\r\n{framing}"
    begin(shared.url, head, b'{"label"' if "L" in framing else b"8\r\n{").close()
    wait_until(lambda: answered(shared, "/jobs/{job_id}", 499))
    assert not answered(shared, "/jobs/{job_id}", 500)
    assert "Traceback" not in shared.log()


def test_who_waits_is_answered_at_once_when_its_key_is_revoked(
    lone: LoneService, redis_server: RedisServer
) -> None:
    keys = KeyStore(redis_server.client())
    token, owner = keys.make("ann", 1.0, Limits())
    lone.http.headers["Authorization"] = f"Bearer {token}"
    lone.publish()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lone.http.post, "/generate?wait=30", json=BODY)
        wait_until(lambda: accepted(redis_server))
        keys.revoke("ann")
        assert answer.result().status_code == 401
    [job_id] = accepted(redis_server)
    job = lone.jobs.get(job_id, owner=owner)
    assert job is not None
    assert job.status == "queued", "revoking cancels nothing"


def test_stopping_the_service_answers_who_waits(
    lone: LoneService, redis_server: RedisServer
) -> None:
    answer = ask(lone)
    wait_until(lambda: accepted(redis_server))
    lone.process.send_signal(signal.SIGTERM)
    assert answer().status_code == 202
    assert lone.process.wait(DEADLINE_S) == 0


def test_redis_coming_back_ends_the_wait(lone: LoneService, redis_server: RedisServer) -> None:
    answer = ask(lone)
    wait_until(lambda: '"message": "accepted"' in lone.log())
    redis_server.kill()
    redis_server.start()
    finish_all(lone, 1)
    assert answer().status_code == 200


@pytest.mark.parametrize("wait", [0, 300])
def test_settled_settings_are_the_models_defaults_where_none_are_given(
    wait: int, lone: LoneService
) -> None:
    lone.publish()
    worker = threading.Thread(target=finish_all, args=(lone, 1))
    worker.start()
    settings = lone.http.post(f"/generate?wait={wait}", json={**BODY, "top_k": 3}).json()[
        "settings"
    ]
    worker.join()
    assert settings == {
        "n": 1,
        "seed": 1,
        "best_of": 1,
        "labels": {"blood": {"cfg_scale": 2.0, "temperature": 0.9, "top_k": 3, "top_p": 0.95}},
    }
