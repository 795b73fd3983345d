"""One id is one job: however many ask for it at once, and whatever is restarted in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import DEADLINE_S
from tests.running import Up

BODY = {"label": "histology", "n": 2, "seed": 5}
AT_ONCE = 100


@pytest.fixture(scope="module")
def up(test_checkpoint: Path) -> Iterator[Up]:
    running = Up(test_checkpoint)
    try:
        yield running.ready()
    finally:
        running.close()


async def _together(url: str, count: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_S, limits=limits) as http:
        return await asyncio.gather(
            *(http.put("/jobs/mine", json=BODY, headers={"Connection": "close"})
              for _ in range(count))
        )  # fmt: skip


def test_a_hundred_that_ask_at_once_make_one_job_and_find_it_after_restarts(up: Up) -> None:
    url = up.run()["url"]
    answers = asyncio.run(_together(url, AT_ONCE))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 200: AT_ONCE - 1}
    assert {answer.json()["job_id"] for answer in answers} == {"mine"}
    created = up.ended("mine")["created_at"]
    pair = up.files("mine", 1)

    for name in ("service", "worker"):
        up.kill_child(name)
    answers = asyncio.run(_together(url, AT_ONCE))
    assert Counter(answer.status_code for answer in answers) == {200: AT_ONCE}
    assert {answer.json()["created_at"] for answer in answers} == {created}
    assert up.files("mine", 1) == pair
    assert len(up.http.get("/jobs").json()["jobs"]) == 1
    other = up.http.put("/jobs/mine", json={**BODY, "n": 3})
    assert other.status_code == 409
    assert other.json()["type"] == "urn:pathar:other-job"


def test_an_order_is_remembered_though_everything_but_redis_is_killed_before_it_is_drawn(
    up: Up,
) -> None:
    assert up.http.put("/jobs/big", json={**BODY, "n": 40}).status_code == 201
    for name in ("worker", "service"):
        up.kill_child(name)
    assert up.http.put("/jobs/big", json={**BODY, "n": 40}).status_code == 200
    assert up.ended("big")["status"] == "finished"
