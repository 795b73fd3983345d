"""Jobs through HTTP: made once, followed, listed, canceled, fetched; the test plays the worker."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import RedisServer
from tests.running import PROBLEM, wait_until
from tests.service.conftest import FILES, LoneService

BODY = {"label": "blood", "n": 2}


def state(answer: httpx.Response, status: int = 200) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    found: dict[str, object] = answer.json()
    return found


def problem(answer: httpx.Response, status: int, slug: str) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    found: dict[str, object] = answer.json()
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
    lone: LoneService,
) -> None:
    lone.publish()
    state(lone.http.put("/jobs/a", json=BODY), 201)
    state(lone.http.put("/jobs/a", json={**BODY, "seed": None, "model": None}), 200)
    problem(lone.http.put("/jobs/a", json={**BODY, "n": 3}), 409, "other-job")
    problem(lone.http.put("/jobs/a.b", json=BODY), 422, "invalid-request")
    problem(lone.http.put(f"/jobs/{'a' * 65}", json=BODY), 422, "invalid-request")


def test_a_canceled_job_is_canceled_however_often_and_a_finished_one_stays(
    lone: LoneService,
) -> None:
    lone.publish()
    state(lone.http.put("/jobs/a", json=BODY), 201)
    for _ in range(3):
        assert state(lone.http.delete("/jobs/a"))["status"] == "canceled"
    assert lone.work() == 0
    state(lone.http.put("/jobs/b", json=BODY), 201)
    lone.work()
    assert state(lone.http.delete("/jobs/b"))["status"] == "finished"
    problem(lone.http.delete("/jobs/c"), 404, "not-found")


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


def test_jobs_are_listed_in_pages_by_status_and_label(lone: LoneService) -> None:
    lone.publish()
    for number in range(5):
        label = "blood" if number % 2 else "histology"
        state(lone.http.put(f"/jobs/job-{number}", json={"label": label}), 201)
    lone.http.delete("/jobs/job-3")
    found, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = lone.http.get("/jobs", params=params).json()
        found += [job["job_id"] for job in page["jobs"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert found == [f"job-{number}" for number in range(4, -1, -1)]
    canceled = lone.http.get("/jobs", params={"status": "canceled", "label": "blood"}).json()
    assert [job["job_id"] for job in canceled["jobs"]] == ["job-3"]
    for params, field in (
        ({"cursor": "nonsense"}, "cursor"),
        ({"status": "lost"}, "status"),
        ({"limit": "0"}, "limit"),
        ({"stauts": "queued"}, "stauts"),
    ):
        found_problem = problem(lone.http.get("/jobs", params=params), 422, "invalid-request")
        errors = found_problem["errors"]
        assert isinstance(errors, list)
        assert [error["field"] for error in errors] == [field]


def events(lone: LoneService, job_id: str, after: str | None = None) -> Iterator[tuple[str, str]]:
    headers = {"Last-Event-ID": after} if after else {}
    with lone.http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            fields[name] = value
            if not line and "event" in fields:
                yield fields["event"], fields["id"]
                fields = {}


def test_events_tell_a_jobs_life_end_with_it_and_are_replayed_after_an_id(
    lone: LoneService,
) -> None:
    lone.publish()
    state(lone.http.put("/jobs/a", json=BODY), 201)
    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(lambda: list(events(lone, "a")))
        wait_until(lambda: lone.work() > 0)
        told = follower.result(timeout=60)
    kinds = ["queued", "started", "image", "started", "image", "finished"]
    assert [kind for kind, _ in told] == kinds
    assert list(events(lone, "a", told[2][1])) == told[3:]
    assert list(events(lone, "a", told[-1][1])) == []
    answer = lone.http.get("/jobs/a/events", headers={"Last-Event-ID": "yesterday"})
    problem(answer, 422, "invalid-request")


def test_an_archive_has_every_pair_and_a_manifest_that_matches(lone: LoneService) -> None:
    lone.publish()
    state(lone.http.put("/jobs/a", json=BODY), 201)
    problem(lone.http.get("/jobs/a/pairs.zip"), 409, "not-finished")
    lone.work()
    answer = lone.http.get("/jobs/a/pairs.zip")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.content == lone.http.get("/jobs/a/pairs.zip").content
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("manifest.json"))
        listed = {n: d for image in manifest["images"] for n, d in image["sha256"].items()}
        assert set(archive.namelist()) == {*listed, "manifest.json"}
        for name, digest in listed.items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == digest
            assert archive.read(name) == FILES[name.partition("/")[2]]
    assert manifest["label"] == "blood"
    assert len(listed) == 6


def test_a_request_can_be_answered_with_the_archive_itself(lone: LoneService) -> None:
    lone.publish()
    headers = {"Accept": "application/zip"}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lone.http.post, "/generate", json=BODY, headers=headers)
        wait_until(lambda: lone.work() > 0)
        answer = asked.result(timeout=60)
    assert answer.status_code == 200
    assert zipfile.ZipFile(io.BytesIO(answer.content)).testzip() is None


def test_more_pairs_than_an_answer_holds_are_not_waited_for(lone: LoneService) -> None:
    lone.publish()
    accepted = lone.http.post("/generate", json={"label": "blood", "n": 65})
    assert accepted.status_code == 202
    assert accepted.headers["location"] == f"/jobs/{accepted.json()['job_id']}"


def test_a_file_has_a_tag_and_can_be_had_in_parts(lone: LoneService) -> None:
    lone.publish()
    state(lone.http.put("/jobs/a", json=BODY), 201)
    problem(lone.http.get("/jobs/a/images/0/image.png"), 404, "not-found")
    lone.work()
    path, whole = "/jobs/a/images/1/image.png", FILES["image.png"]
    first = lone.http.get(path)
    tag = first.headers["etag"]
    assert (first.status_code, first.content) == (200, whole)
    known = lone.http.get(path, headers={"If-None-Match": f'"x", W/{tag}'})
    assert (known.status_code, known.content) == (304, b"")
    for asked, status, content in (
        ("bytes=0-1", 206, whole[:2]),
        ("bytes=2-", 206, whole[2:]),
        ("bytes=-2", 206, whole[-2:]),
        ("bytes=1-999", 206, whole[1:]),
        ("bytes=999-", 416, b""),
        ("bytes=-0", 416, b""),
        ("bytes=3-1", 200, whole),
        ("bytes=0-0,2-2", 200, whole),
        ("pages=1-2", 200, whole),
    ):
        answer = lone.http.get(path, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (status, content), asked
        if status == 206:
            size = f"/{len(whole)}"
            assert answer.headers["content-range"].endswith(size)
    stale = lone.http.get(path, headers={"Range": "bytes=0-1", "If-Range": '"old"'})
    assert (stale.status_code, stale.content) == (200, whole)


def test_one_pair_comes_as_json(lone: LoneService) -> None:
    lone.publish()
    state(lone.http.put("/jobs/a", json={**BODY, "seed": 5}), 201)
    lone.work()
    pair = lone.http.get("/jobs/a/images/0").json()
    assert (pair["index"], pair["seed"]) == (0, 5)
    assert pair["structure_tokens"] == [[5, 6], [7, 8]]
    problem(lone.http.get("/jobs/a/images/2"), 404, "not-found")


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


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_without_keys_only_programs_of_this_machine_are_answered(
    headers: dict[str, str], lone: LoneService
) -> None:
    lone.publish()
    problem(lone.http.post("/generate?wait=0", json=BODY, headers=headers), 403, "forbidden")
    problem(lone.http.get("/jobs", headers=headers), 403, "forbidden")
    assert lone.http.get("/healthz", headers=headers).status_code == 200
    own = {"Origin": lone.url}
    assert lone.http.post("/generate?wait=0", json=BODY, headers=own).status_code == 202
