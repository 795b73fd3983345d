"""Metrics of the API: true, and no more series whatever clients send."""

from __future__ import annotations

import random
import string
from concurrent.futures import ThreadPoolExecutor

import httpx
from prometheus_client.parser import text_string_to_metric_families

from store.access import KeyStore, Limits
from tests.conftest import RedisServer
from tests.running import wait_until
from tests.service.conftest import LoneService

HOSTILE = 2_000
THREADS = 4


def series(lone: LoneService) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = lone.http.get("/metrics").raise_for_status().text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(lone: LoneService, name: str, **labels: str) -> float:
    return sum(
        found
        for (sample, given), found in series(lone).items()
        if sample == name and set(labels.items()) <= given
    )


def test_queues_and_ends_are_told(lone: LoneService) -> None:
    lone.publish()
    body = {"label": "blood", "n": 3}
    for priority, count in (("interactive", 2), ("bulk", 1)):
        for _ in range(count):
            answer = lone.http.post("/generate?wait=0", json={**body, "priority": priority})
            assert answer.status_code == 202
    assert value(lone, "pathar_queue_images", priority="interactive", model="stub") == 6
    assert value(lone, "pathar_queue_images", priority="bulk") == 3
    assert value(lone, "pathar_queue_oldest_seconds", priority="bulk") > 0
    assert value(lone, "pathar_ready_slots", model="stub") == 4
    assert lone.work() == 9
    assert value(lone, "pathar_queue_images") == 0
    assert value(lone, "pathar_jobs_total", status="finished", label="blood") == 3
    assert value(lone, "pathar_jobs_total", priority="bulk") == 1


def test_refusals_are_counted_by_their_type(lone: LoneService) -> None:
    lone.publish()
    lone.http.post("/generate", json={"label": "granite"})
    lone.http.get("/jobs/nobody")
    lone.http.post("/generate", content=b"{", headers={"Content-Type": "application/json"})
    for slug in ("invalid-request", "not-found", "bad-body"):
        assert value(lone, "pathar_http_problems_total", type=slug) == 1
    assert value(lone, "pathar_http_requests_total", route="/generate", status="422") == 1


def test_what_each_key_takes_is_told_by_its_name(
    lone: LoneService, redis_server: RedisServer
) -> None:
    lone.publish()
    token, _ = KeyStore(redis_server.client()).make("ann", 1.0, Limits())
    key = {"Authorization": f"Bearer {token}"}
    for _ in range(2):  # the second finds the job of the first again
        body = {"label": "blood", "n": 3}
        assert lone.http.put("/jobs/mine", json=body, headers=key).is_success
    assert value(lone, "pathar_key_images_total", key="ann") == 3
    assert value(lone, "pathar_key_queue_images", key="ann", priority="interactive") == 3
    before = value(lone, "pathar_key_stored_bytes", key="ann")
    assert lone.work() == 3
    assert value(lone, "pathar_key_queue_images") == 0
    assert value(lone, "pathar_key_stored_bytes", key="ann") != before > 0


def test_without_redis_the_metrics_say_so_and_still_answer(
    lone: LoneService, redis_server: RedisServer
) -> None:
    lone.publish()
    assert value(lone, "pathar_redis_up") == 1
    redis_server.kill()
    wait_until(lambda: value(lone, "pathar_redis_up") == 0, "the news that Redis is away")
    assert value(lone, "pathar_http_requests_total", route="/metrics") > 0
    redis_server.start()
    wait_until(lambda: value(lone, "pathar_redis_up") == 1, "Redis")


def test_thousands_of_hostile_requests_add_no_series(
    lone: LoneService, redis_server: RedisServer
) -> None:
    lone.publish()
    token, _ = KeyStore(redis_server.client()).make("ann", 1.0, Limits(requests_per_minute=HOSTILE))
    _hostile(lone.url, token, 80, seed=0)  # each kind of answer that the hostile ones will get
    series(lone)
    before = set(series(lone))
    with ThreadPoolExecutor(THREADS) as pool:
        seeds = range(1, THREADS + 1)
        list(pool.map(lambda seed: _hostile(lone.url, token, HOSTILE // THREADS, seed), seeds))
    assert set(series(lone)) == before
    assert value(lone, "pathar_http_requests_total") > HOSTILE
    assert value(lone, "pathar_http_requests_total", status="401") > HOSTILE / 4
    assert value(lone, "pathar_http_requests_total", status="422") > HOSTILE / 8


def _hostile(url: str, token: str, count: int, seed: int) -> None:
    """Requests with made-up labels, models, keys, paths, methods and ids, every second round with a
    key that counts; none is accepted."""
    made = random.Random(seed)
    with httpx.Client(base_url=url) as http:
        for number in range(count):
            text = "".join(made.choices(string.ascii_letters + string.digits, k=12))
            secret = token if number // 4 % 2 else f"pathar_{text}"
            key = {"Authorization": f"Bearer {secret}"}
            match number % 4:
                case 0:
                    http.post("/generate", json={"label": text, "model": text}, headers=key)
                case 1:
                    http.get(f"/jobs/{text}", headers=key)
                case 2:
                    http.request(text.upper(), f"/{text}/{text}", headers=key)
                case _:
                    http.get("/jobs", params={"label": text, text: text}, headers=key)
