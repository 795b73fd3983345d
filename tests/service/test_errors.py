"""What bad input gets from a running service: a useful problem, and the service goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from service.app import create_app
from tests.conftest import RedisServer
from tests.running import JSON, PROBLEM, Up
from tests.service.conftest import LoneService

MEBIBYTE = 1024 * 1024
MOST_BYTES, MOST_ERRORS = 1024 * 1024, 20
MAX_SEED = 2**53 - 1
HANGING, HUNG_S = 60, 10
"""So many requests at once wait no longer, for all of them, for a Redis that does not answer."""


def endless(megabytes: int) -> Iterator[bytes]:
    for _ in range(megabytes):
        yield b" " * MEBIBYTE


BAD_FIELDS: list[tuple[str, object, str]] = [
    ("label", 3, "GET /labels"),
    ("label", None, "GET /labels"),
    ("label", [["histology"]], "GET /labels"),
    ("label", "granite", "cytology, fluorescence, histology, blood, cervix"),
    ("label", "\ud800", "cytology"),
    ("label", "h" * 10_000, "cytology"),
    ("n", "3", "1 to 1000"),
    ("n", True, "1 to 1000"),
    ("n", 1.5, "1 to 1000"),
    ("n", 1e300, "1 to 1000"),
    ("n", 0, "1 to 1000"),
    ("n", 1001, "1 to 1000"),
    ("n", 10**30, "1 to 1000"),
    ("seed", -1, f"0 to {MAX_SEED}"),
    ("seed", MAX_SEED + 1, f"0 to {MAX_SEED}"),
    ("cfg_scale", "2", "1 to 10"),
    ("cfg_scale", 0.99, "1 to 10"),
    ("temperature", 2.01, "0 to 2"),
    ("temperature", "hot", "0 to 2, or {"),
    ("top_k", 65, "0 to 64"),
    ("top_p", 0, "above 0 and up to 1"),
    ("steps", 4, "one of the fields model, priority, notify, labels, label, scale, n"),
]


@pytest.mark.parametrize(("field", "value", "expected"), BAD_FIELDS)
def test_a_bad_field_is_named_with_its_value_and_what_is_expected(
    field: str, value: object, expected: str, stack: Up
) -> None:
    body = json.dumps({"label": "histology", field: value})
    problem = _problem(stack.http.post("/generate", content=body, headers=JSON), 422)
    [error] = problem["errors"]
    assert error["field"] == field
    assert expected in error["expected"]
    assert error["value"] == value or str(error["value"])[:10] == str(value)[:10]
    assert len(json.dumps(error["value"])) < 200


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("top_k", {"structure": 3}, "top_k.appearance", "an integer from 0 to the model's"),
        ("top_k", {"structure": 3, "appearance": 65}, "top_k.appearance", "0 to 64"),
        ("top_p", {"structure": 1, "appearance": 1, "a": 1}, "top_p.a", "structure, appearance"),
        ("cfg_scale", {"structure": 0, "appearance": 1}, "cfg_scale.structure", "1 to 10"),
    ],
)
def test_a_bad_setting_of_one_stream_is_named(
    name: str, value: dict[str, float], field: str, expected: str, stack: Up
) -> None:
    answer = stack.http.post("/generate", json={"label": "histology", name: value})
    [error] = _problem(answer, 422)["errors"]
    assert error["field"] == field
    assert expected in error["expected"]


def test_every_bad_field_of_a_body_is_reported(stack: Up) -> None:
    body = {"n": 0, "seed": "x", "extra": 1}
    problem = _problem(stack.http.post("/generate", json=body), 422)
    assert {error["field"] for error in problem["errors"]} == {"label", "n", "seed", "extra"}


def test_of_very_many_bad_fields_some_are_reported_and_the_rest_counted(stack: Up) -> None:
    fields = 96_000
    body = json.dumps({f"{at:x}": 1 for at in range(fields)}, separators=(",", ":")).encode()
    assert MOST_BYTES * 3 / 4 < len(body) <= MOST_BYTES
    answer = stack.http.post("/generate", content=body, headers=JSON)
    problem = _problem(answer, 422)
    assert len(problem["errors"]) == MOST_ERRORS
    assert f"and {fields + 1 - MOST_ERRORS} more" in problem["detail"]
    assert len(answer.content) < MOST_BYTES
    query = "&".join(f"{at:x}=1" for at in range(2000))
    assert len(_problem(stack.http.get(f"/jobs?{query}"), 422)["errors"]) == MOST_ERRORS


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"label": "histology", "cfg_scale": NaN}', 400),
        (b'{"label": "histology", "cfg_scale": -Infinity}', 400),
        (b'{"label": "histology", "cfg_scale": 1e999}', 422),
        (b'{"label": "histology", "seed": ' + b"9" * 5000 + b"}", 400),
        (b"\xff\xfe\x00", 400),
        (b"[" * MOST_BYTES, 400),
        (b'{"label":' + b"[" * 900 + b"]" * 900 + b"}", 422),
        (b"[]", 422),
        (b'"histology"', 422),
        (b"null", 422),
        (b" " * (MOST_BYTES + 1), 400),
        (b'{"label": "blood"}' + b" " * MOST_BYTES, 413),
        (b" " * (4 * MOST_BYTES + 1), 413),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, status: int, stack: Up) -> None:
    _problem(stack.http.post("/generate", content=body, headers=JSON), status)


def test_a_body_without_end_is_refused_at_the_limit(stack: Up) -> None:
    _problem(stack.http.post("/generate", content=endless(30), headers=JSON), 413)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_body_of_another_type_is_refused(media_type: str | None, stack: Up) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    answer = stack.http.post("/generate", content=b'{"label": "histology"}', headers=headers)
    _problem(answer, 415)


@pytest.mark.parametrize("query", ["wait=x", "wait=-1", "wait=301", "wait=nan", "wiat=3"])
def test_a_bad_query_is_refused(query: str, stack: Up) -> None:
    problem = _problem(stack.http.post(f"/generate?{query}", json={"label": "blood"}), 422)
    assert problem["errors"][0]["field"] == query.partition("=")[0]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/generate", 405),
        ("DELETE", "/labels", 405),
        ("BREW", "/healthz", 405),
        ("GET", "/", 404),
        ("GET", "/nothing", 404),
        ("POST", "/generate/", 404),
        ("GET", "/jobs/unknown", 404),
        ("GET", "/jobs/" + "x" * 65, 422),
        ("GET", "/jobs/a%20b", 422),
        ("GET", "/jobs/..%2f..%2fetc", 404),
        ("GET", "/jobs/unknown/images/0/image.png", 404),
        ("GET", "/jobs/unknown/images/one/image.png", 422),
        ("GET", "/jobs/unknown/images/-1/mask.png", 422),
        ("GET", "/jobs/unknown/images/0/other.png", 404),
    ],
)
def test_a_request_that_leads_nowhere_is_a_problem(
    method: str, path: str, status: int, stack: Up
) -> None:
    answer = stack.http.request(method, path)
    _problem(answer, status)
    assert (status == 405) == ("allow" in answer.headers)


def test_the_service_still_draws_after_all_of_it(stack: Up) -> None:
    assert stack.http.post("/generate", json={"label": "blood"}).status_code == 200


def test_without_any_model_a_request_is_told_to_come_again(lone: LoneService) -> None:
    for answer in (lone.http.post("/generate", json={"label": "blood"}), lone.http.get("/labels")):
        assert _problem(answer, 503)["type"] == "urn:pathar:no-model"
        assert int(answer.headers["retry-after"]) > 0


def test_ready_is_said_only_with_redis_and_a_living_worker(
    lone: LoneService, redis_server: Any
) -> None:
    assert _problem(lone.http.get("/readyz"), 503)["type"] == "urn:pathar:no-worker"
    lone.publish()
    assert lone.http.get("/readyz").json() == {"status": "ok"}
    redis_server.kill()
    assert _problem(lone.http.get("/readyz"), 503)["type"] == "urn:pathar:store-down"
    assert _problem(lone.http.get("/jobs/x"), 503)["type"] == "urn:pathar:store-down"
    assert lone.http.get("/healthz").status_code == 200


def test_a_redis_that_hangs_blocks_nothing_else(lone: LoneService, redis_server: Any) -> None:
    lone.publish()
    with redis_server.client() as client:
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(HANGING) as pool:
            began = time.monotonic()
            asked = [pool.submit(lone.http.get, "/labels") for _ in range(HANGING)]
            time.sleep(0.2)
            for path in ("/healthz", "/docs", "/openapi.json"):
                assert lone.http.get(path).status_code == 200
            assert not all(each.done() for each in asked), "nothing else waited for them"
            assert _problem(lone.http.get("/readyz"), 503)["type"] == "urn:pathar:store-down"
            for each in asked:
                assert _problem(each.result(), 503)["type"] == "urn:pathar:store-down"
            assert time.monotonic() - began < HUNG_S
    finally:
        os.kill(pid, signal.SIGCONT)
    assert lone.http.get("/labels").status_code == 200


def test_a_defect_of_the_service_is_a_problem_too(redis_server: RedisServer) -> None:
    """The app in this process, with a route that has one."""
    app = create_app({"PATHAR_REDIS_URL": redis_server.url})

    def defect() -> None:
        raise RuntimeError("not what the service expects")

    app.add_api_route("/defect", defect)

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/defect")

    problem = _problem(asyncio.run(asked()), 500)
    assert problem["type"] == "urn:pathar:internal-error"
    assert "expects" not in problem["detail"]


def _problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:pathar:")
    assert problem["title"]
    assert problem["detail"]
    return problem
