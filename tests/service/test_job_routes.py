"""Jobs through HTTP: made once, listed, canceled, fetched; the test plays the worker."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from base64 import urlsafe_b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from store import keys
from store.access import KeyStore, Limits
from store.jobs import most_images
from store.results import room
from store.scripts import PART_BYTES, RECORD_BYTES
from tests.conftest import RedisServer
from tests.running import PROBLEM, wait_until
from tests.service.conftest import FILES, MODEL, LoneService

BODY = {"label": "blood", "n": 2}


def state(answer: httpx.Response, status: int = 200) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    found: dict[str, object] = answer.json()
    return found


def problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    found: dict[str, Any] = answer.json()
    assert found["type"] == f"urn:pathar:{slug}"
    return found


def test_a_hundred_puts_at_once_make_one_job_and_so_after_a_restart(
    lone: LoneService, redis_server: RedisServer, tmp_path: Path
) -> None:
    lone.publish()
    with ThreadPoolExecutor(25) as pool:
        answers = list(pool.map(lambda _: lone.http.put("/jobs/mine", json=BODY), range(100)))
    assert sorted(answer.status_code for answer in answers) == [200] * 99 + [201]
    assert len({json.dumps(answer.json()["settings"]) for answer in answers}) == 1
    assert lone.work() == 2
    again = LoneService(redis_server, tmp_path / "again.log")
    try:
        again.publish()
        assert state(again.http.put("/jobs/mine", json=BODY))["status"] == "finished"
        assert again.work() == 0
    finally:
        again.close()


def test_an_id_is_refused_for_another_body_and_null_is_as_good_as_nothing(
    emptied: LoneService,
) -> None:
    emptied.publish()
    state(emptied.http.put("/jobs/a", json=BODY), 201)
    state(emptied.http.put("/jobs/a", json={**BODY, "seed": None, "model": None}), 200)
    problem(emptied.http.put("/jobs/a", json={**BODY, "n": 3}), 409, "other-job")
    plain = {"label": "blood"}
    state(emptied.http.put("/jobs/b", json={**plain, "n": 1}), 201)
    state(emptied.http.put("/jobs/b", json={**plain, "priority": "interactive"}), 200)
    state(emptied.http.put("/jobs/b", json=plain), 200)
    problem(emptied.http.put("/jobs/b", json={**plain, "priority": "bulk"}), 409, "other-job")
    problem(emptied.http.put("/jobs/a.b", json=BODY), 422, "invalid-request")
    problem(emptied.http.put(f"/jobs/{'a' * 65}", json=BODY), 422, "invalid-request")


def test_a_known_id_finds_its_job_whatever_has_become_of_its_model(
    lone: LoneService, redis_server: RedisServer, tmp_path: Path
) -> None:
    lone.publish()
    state(lone.http.put("/jobs/a", json=BODY), 201)
    lone.registry.publish(replace(MODEL, name="other", version="cd" * 32), "other-worker", 4)
    problem(lone.http.put("/jobs/b", json=BODY), 422, "invalid-request")
    state(lone.http.put("/jobs/a", json=BODY), 200)
    narrow = LoneService(redis_server, tmp_path / "narrow.log", PATHAR_MAX_N="1")
    try:
        state(narrow.http.put("/jobs/a", json=BODY), 200)
    finally:
        narrow.close()
    with redis_server.client() as client:
        client.delete(keys.MODELS, keys.WORKERS)
    problem(lone.http.put("/jobs/b", json=BODY), 503, "no-model")
    state(lone.http.put("/jobs/a", json=BODY), 200)
    problem(lone.http.put("/jobs/a", json={**BODY, "n": 3}), 409, "other-job")


def test_the_files_of_a_job_that_has_ended_can_be_dropped(
    lone: LoneService, redis_server: RedisServer
) -> None:
    lone.publish()
    state(lone.http.put("/jobs/a", json=BODY), 201)
    lone.work()
    assert lone.http.get("/jobs/a/pairs.zip").status_code == 200
    state(lone.http.delete("/jobs/a?files=false"))
    assert lone.http.get("/jobs/a/images/1/image.png").status_code == 200
    for _ in range(2):
        assert state(lone.http.delete("/jobs/a?files=true"))["status"] == "finished"
    for path in ("pairs.zip", "images/1", "images/1/image.png", "images/0/tokens.json"):
        problem(lone.http.get(f"/jobs/a/{path}"), 404, "not-found")
    assert [job["job_id"] for job in lone.http.get("/jobs").json()["jobs"]] == ["a"]
    state(lone.http.put("/jobs/a", json=BODY), 200)
    with redis_server.client() as client:
        assert not list(client.scan_iter(f"{keys.RESULT}*"))
    state(lone.http.put("/jobs/b", json=BODY), 201)
    assert state(lone.http.delete("/jobs/b?files=true"))["status"] == "canceled"
    for field, value in (
        ("files", "perhaps"),
        ("files", "1"),
        ("files", "True"),
        ("flies", "true"),
    ):
        told = problem(lone.http.delete(f"/jobs/a?{field}={value}"), 422, "invalid-request")
        assert [(each["field"], each["value"]) for each in told["errors"]] == [(field, value)]


def test_a_canceled_job_is_canceled_however_often_and_a_finished_one_stays(
    emptied: LoneService,
) -> None:
    emptied.publish()
    state(emptied.http.put("/jobs/a", json=BODY), 201)
    for _ in range(3):
        assert state(emptied.http.delete("/jobs/a"))["status"] == "canceled"
    assert emptied.work() == 0
    state(emptied.http.put("/jobs/b", json=BODY), 201)
    emptied.work()
    assert state(emptied.http.delete("/jobs/b"))["status"] == "finished"
    problem(emptied.http.delete("/jobs/c"), 404, "not-found")


def test_an_expired_job_is_gone_and_not_unknown(redis_server: RedisServer, tmp_path: Path) -> None:
    lone = LoneService(redis_server, tmp_path / "log", PATHAR_RESULT_TTL="1")
    try:
        lone.publish()
        state(lone.http.put("/jobs/a", json=BODY), 201)
        lone.http.delete("/jobs/a")
        wait_until(lambda: lone.http.get("/jobs/a").status_code == 410)
        for path in ("/jobs/a", "/jobs/a/events", "/jobs/a/pairs.zip", "/jobs/a/images/0/mask.png"):
            problem(lone.http.get(path), 410, "gone")
        problem(lone.http.put("/jobs/a", json=BODY), 410, "gone")
        problem(lone.http.get("/jobs/b"), 404, "not-found")
    finally:
        lone.close()


def test_jobs_are_listed_in_pages_by_status_and_label(emptied: LoneService) -> None:
    emptied.publish()
    for number in range(5):
        label = "blood" if number % 2 else "histology"
        state(emptied.http.put(f"/jobs/job-{number}", json={"label": label}), 201)
    emptied.http.delete("/jobs/job-3")
    found, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = emptied.http.get("/jobs", params=params).json()
        found += [job["job_id"] for job in page["jobs"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert found == [f"job-{number}" for number in range(4, -1, -1)]
    canceled = emptied.http.get("/jobs", params={"status": "canceled", "label": "blood"}).json()
    assert [job["job_id"] for job in canceled["jobs"]] == ["job-3"]
    for params, field in (
        ({"cursor": "nonsense"}, "cursor"),
        ({"cursor": urlsafe_b64encode(b"nan x").decode()}, "cursor"),
        ({"status": "lost"}, "status"),
        ({"limit": "0"}, "limit"),
        ({"stauts": "queued"}, "stauts"),
    ):
        found_problem = problem(emptied.http.get("/jobs", params=params), 422, "invalid-request")
        errors = found_problem["errors"]
        assert isinstance(errors, list)
        assert [error["field"] for error in errors] == [field]


def test_an_archive_has_every_pair_and_a_manifest_that_matches(emptied: LoneService) -> None:
    emptied.publish()
    state(emptied.http.put("/jobs/a", json=BODY), 201)
    problem(emptied.http.get("/jobs/a/pairs.zip"), 409, "not-finished")
    emptied.work()
    answer = emptied.http.get("/jobs/a/pairs.zip")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.content == emptied.http.get("/jobs/a/pairs.zip").content
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("manifest.json"))
        listed = {n: d for image in manifest["images"] for n, d in image["sha256"].items()}
        assert set(archive.namelist()) == {*listed, "manifest.json"}
        for name, digest in listed.items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == digest
            assert archive.read(name) == FILES[name.partition("/")[2]]
    assert manifest["labels"] == ["blood"]
    assert len(listed) == 2 * len(FILES)


def test_a_request_can_be_answered_with_the_archive_itself(emptied: LoneService) -> None:
    emptied.publish()
    headers = {"Accept": "application/zip"}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(emptied.http.post, "/generate", json=BODY, headers=headers)
        wait_until(lambda: emptied.work() > 0)
        answer = asked.result(timeout=60)
    assert answer.status_code == 200
    assert zipfile.ZipFile(io.BytesIO(answer.content)).testzip() is None


def test_more_pairs_than_an_answer_holds_are_not_waited_for(emptied: LoneService) -> None:
    emptied.publish()
    accepted = emptied.http.post("/generate", json={"label": "blood", "n": 65})
    assert accepted.status_code == 202
    assert accepted.headers["location"] == f"jobs/{accepted.json()['job_id']}"


def test_a_file_has_a_tag_and_can_be_had_in_parts(emptied: LoneService) -> None:
    emptied.publish()
    state(emptied.http.put("/jobs/a", json=BODY), 201)
    problem(emptied.http.get("/jobs/a/images/0/image.png"), 404, "not-found")
    emptied.work()
    path, whole = "/jobs/a/images/1/image.png", FILES["image.png"]
    first = emptied.http.get(path)
    tag = first.headers["etag"]
    assert (first.status_code, first.content) == (200, whole)
    known = emptied.http.get(path, headers={"If-None-Match": f'"x", W/{tag}'})
    assert (known.status_code, known.content) == (304, b"")
    for asked, status, content in (
        ("bytes=0-1", 206, whole[:2]),
        ("bytes=2-", 206, whole[2:]),
        ("bytes=-2", 206, whole[-2:]),
        ("bytes=1-999", 206, whole[1:]),
        ("bytes=3-1", 200, whole),
        ("bytes=0-0,2-2", 200, whole),
        ("pages=1-2", 200, whole),
    ):
        answer = emptied.http.get(path, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (status, content), asked
        assert answer.headers["vary"] == "Authorization"
        if status == 206:
            size = f"/{len(whole)}"
            assert answer.headers["content-range"].endswith(size)
    stale = emptied.http.get(path, headers={"Range": "bytes=0-1", "If-Range": '"old"'})
    assert (stale.status_code, stale.content) == (200, whole)
    for asked in ("bytes=999-", "bytes=-0"):
        beyond = emptied.http.get(path, headers={"Range": asked})
        assert asked in str(problem(beyond, 416, "range-not-satisfiable")["detail"])
        assert beyond.headers["content-range"] == f"bytes */{len(whole)}"


def test_one_pair_comes_as_json(emptied: LoneService) -> None:
    emptied.publish()
    state(emptied.http.put("/jobs/a", json={**BODY, "seed": 5}), 201)
    emptied.work()
    pair = emptied.http.get("/jobs/a/images/0").json()
    assert (pair["index"], pair["seed"]) == (0, 5)
    assert pair["structure_tokens"] == [[5, 6], [7, 8]]
    problem(emptied.http.get("/jobs/a/images/2"), 404, "not-found")
    state(emptied.http.put("/jobs/b", json=BODY), 201)
    waiting = problem(emptied.http.get("/jobs/b/images/1"), 404, "not-found")
    assert "image 1 of job b is queued" in str(waiting["detail"])


def test_a_full_queue_answers_429_with_a_time_to_come_back(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    lone = LoneService(redis_server, tmp_path / "log", PATHAR_MAX_WAITING="2")
    try:
        lone.publish()
        state(lone.http.put("/jobs/a", json=BODY), 201)
        refused = lone.http.put("/jobs/b", json=BODY)
        problem(refused, 429, "too-many-requests")
        assert int(refused.headers["retry-after"]) >= 1
        state(lone.http.put("/jobs/a", json=BODY), 200)
        lone.work()
        state(lone.http.put("/jobs/b", json=BODY), 201)
    finally:
        lone.close()


def test_a_key_that_stores_too_much_is_told_so_and_has_room_when_it_drops_something(
    lone: LoneService, redis_server: RedisServer
) -> None:
    lone.publish()
    one = RECORD_BYTES + PART_BYTES + room(MODEL)
    limits = Limits(stored_bytes=3 * one + RECORD_BYTES)
    token, owner = KeyStore(redis_server.client()).make("ann", 1.0, limits)
    lone.http.headers["Authorization"] = f"Bearer {token}"
    most = most_images(owner, MODEL)
    assert most is not None
    large = lone.http.put("/jobs/large", json={**BODY, "n": most + 1})
    [error] = problem(large, 422, "invalid-request")["errors"]
    assert (error["field"], error["value"]) == ("n", most + 1)
    assert f"at most {most}" in error["expected"]
    body = {**BODY, "n": 1}
    for name in ("a", "b", "c"):
        state(lone.http.put(f"/jobs/{name}", json=body), 201)
    for refused in (lone.http.put("/jobs/d", json=body), lone.http.post("/generate", json=body)):
        problem(refused, 429, "too-much-stored")
        assert 1 <= int(refused.headers["retry-after"]) <= 60, "soon, as all of it still waits"
    assert lone.http.delete("/jobs/c").status_code == 200
    assert lone.work() == 2
    for name in ("a", "b"):
        assert lone.http.delete(f"/jobs/{name}", params={"files": "true"}).status_code == 200
        [image] = lone.http.get(f"/jobs/{name}").json()["images"]
        assert image["status"] == "finished"
    state(lone.http.put("/jobs/d", json=body), 201)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "["},
        {"Host": "[::1"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://["},
    ],
)
def test_without_keys_only_programs_of_this_machine_are_answered(
    headers: dict[str, str], emptied: LoneService
) -> None:
    emptied.publish()
    problem(emptied.http.post("/generate?wait=0", json=BODY, headers=headers), 403, "forbidden")
    problem(emptied.http.get("/jobs", headers=headers), 403, "forbidden")
    problem(emptied.http.get("/nothing", headers=headers), 404, "not-found")
    problem(emptied.http.delete("/jobs", headers=headers), 405, "method-not-allowed")
    assert emptied.http.get("/healthz", headers=headers).status_code == 200
    own = {"Origin": emptied.url}
    assert emptied.http.post("/generate?wait=0", json=BODY, headers=own).status_code == 202
