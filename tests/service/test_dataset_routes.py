"""The routes of data sets, without a worker: what they take, show and refuse, to whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from pathar.contract import VERSION
from pathar.recipe import ModelRef, Plan, Recipe
from store import keys
from store.access import KeyStore, Limits
from store.datasets import MOST_DATASETS
from tests.running import PROBLEM
from tests.service.conftest import MODEL, LoneService, lone_service

RECIPE: dict[str, Any] = {
    "labels": {"histology": 250, "blood": 30},
    "seed": 7,
    "shard_size": 120,
    "format": "webdataset",
    "settings": {"temperature": 1, "cfg_scale": [1.0, 2.0], "top_k": None},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoneService]:
    place = tmp_path_factory.mktemp("datasets")
    (place / "share").mkdir()
    with lone_service(place, PATHAR_RESULTS_URL=f"file://{place / 'share'}") as service:
        yield service


@pytest.fixture
def http(served: LoneService) -> httpx.Client:
    """To a service that has forgotten all but its model."""
    with served.redis_server.client() as client:
        client.flushall()
        KeyStore(client).open()
    served.publish()
    return served.http


def problem(answer: httpx.Response, status: int, slug: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["type"] == f"urn:pathar:{slug}"
    detail: str = answer.json()["detail"]
    return detail


@pytest.mark.processes
def test_a_recipe_is_one_data_set_however_often_it_is_sent(http: httpx.Client) -> None:
    made = http.post("/datasets", json=RECIPE)
    assert made.status_code == 201, made.text
    state = made.json()
    ref = ModelRef(MODEL.name, MODEL.version, MODEL.numerics)
    recipe = Recipe.from_dict(RECIPE)
    assert state["dataset_id"] == Plan(recipe, {"histology": ref, "blood": ref}).dataset_id
    assert made.headers["location"] == f"datasets/{state['dataset_id']}"
    assert {name: state[name] for name in ("status", "pairs", "pairs_kept", "shards_total")} == {
        **{"status": "queued", "pairs": 280, "pairs_kept": 0, "shards_total": 3}
    }
    assert (state["shards"], state["rate"], state["seconds_left"]) == ([], None, None)
    assert state["models"]["blood"] == {
        **{"name": "stub", "version": MODEL.version, "numerics": MODEL.numerics, "mpp": None},
        "learned": state["models"]["histology"]["learned"],
    }
    assert f"/share/datasets/00000000-{state['dataset_id']}-" in state["location"]
    assert Recipe.from_dict(state["recipe"]) == recipe

    same = {"cfg_scale": [1, 2], "temperature": 1.0}
    again = http.post("/datasets", json={**RECIPE, "settings": same})
    assert (again.status_code, again.json()) == (200, state)
    other = http.post("/datasets", json={**RECIPE, "seed": 8}).json()["dataset_id"]
    assert [each["dataset_id"] for each in http.get("/datasets").json()["datasets"]] == [
        *(other, state["dataset_id"])
    ]
    assert http.get(f"/datasets/{other}").json()["recipe"]["seed"] == 8

    mine = http.put("/datasets/mine", json=RECIPE)
    assert (mine.status_code, mine.json()["dataset_id"]) == (201, "mine")
    assert http.put("/datasets/mine", json=RECIPE).status_code == 200
    taken = http.put("/datasets/mine", json={**RECIPE, "seed": 8})
    assert "made of another recipe" in problem(taken, 409, "other-job")


@pytest.mark.processes
def test_it_is_paused_resumed_canceled_and_forgotten(
    http: httpx.Client, served: LoneService
) -> None:
    at = f"/datasets/{http.post('/datasets', json=RECIPE).json()['dataset_id']}"
    statuses = []
    for path in ("/pause", "/pause", "/resume", "/resume"):
        statuses.append(http.post(at + path).json()["status"])
    assert statuses == ["paused", "paused", "queued", "queued"]
    http.post(f"{at}/pause")
    canceled = http.delete(at).json()
    assert (canceled["status"], canceled["seconds_left"]) == ("canceled", 0)
    assert canceled["ended_at"] >= canceled["created_at"]
    assert http.post(f"{at}/resume").json()["status"] == "canceled"
    assert http.delete(at).json() == canceled

    fresh = http.post("/datasets", json=RECIPE)  # a canceled one stays as it is
    assert (fresh.status_code, fresh.json()["status"]) == (201, "queued")
    assert fresh.json()["dataset_id"] == f"{canceled['dataset_id']}-1"

    assert http.delete(at, params={"files": "true"}).status_code == 200
    for answer in (http.get(at), http.delete(at), http.post(f"{at}/pause")):
        assert "there is no data set" in problem(answer, 404, "not-found")
    assert http.post("/datasets", json=RECIPE).status_code == 201, "its id is free"
    with served.redis_server.client() as client:
        waiting = client.zcard(keys.DATASET_TURNS)
    assert waiting == 3, "a writer deletes the files of the one that was dropped"


@pytest.mark.processes
def test_files_are_there_once_a_writer_has_stored_them_and_hidden_ones_never(
    http: httpx.Client,
) -> None:
    state = http.post("/datasets", json=RECIPE).json()
    folder = Path(state["location"].removeprefix("file://"))
    (folder / ".pathar").mkdir(parents=True)
    content = bytes(range(256)) * 9000
    (folder / "pairs-00000.tar").write_bytes(content)
    (folder / ".pathar" / "00000.json").write_text("{}")
    at = state["links"]["files"]
    whole = http.get(f"{at}/pairs-00000.tar")
    assert (whole.content, whole.headers["content-type"]) == (content, "application/x-tar")
    tag = {"If-None-Match": whole.headers["etag"]}
    assert http.get(f"{at}/pairs-00000.tar", headers=tag).status_code == 304
    part = http.get(f"{at}/pairs-00000.tar", headers={"Range": "bytes=1048570-1048580"})
    assert (part.status_code, part.content) == (206, content[1048570:1048581])
    assert http.head(f"{at}/pairs-00000.tar").headers["content-length"] == str(len(content))
    beyond = http.get(f"{at}/pairs-00000.tar", headers={"Range": f"bytes={len(content)}-"})
    problem(beyond, 416, "range-not-satisfiable")
    hidden = (".pathar/00000.json", "%2E%2E/%2E%2E/x", "..%2Fx", "a//b", "a%00b", "a" * 300, ".")
    for path in ("manifest.json", "a/b/c.png", "pairs-00000.tar/x", *hidden):
        problem(http.get(f"{at}/{path}"), 404, "not-found")
    missing = http.get(f"/datasets/{state['dataset_id']}/shards/0")
    assert "0 of 3 shards are stored" in problem(missing, 404, "not-found")


@pytest.mark.processes
def test_nobody_sees_what_belongs_to_another_key_and_a_key_has_its_limits(
    http: httpx.Client, served: LoneService
) -> None:
    with served.redis_server.client() as client:
        store = KeyStore(client)
        small = Limits(stored_bytes=1 << 20)
        made_keys = (("ann", Limits()), ("bob", small))
        tokens = [store.make(name, 1.0, limits)[0] for name, limits in made_keys]
    ann, bob = ({"Authorization": f"Bearer {token}"} for token in tokens)
    made = http.put("/datasets/hers", json=RECIPE, headers=ann)
    assert made.status_code == 201, made.text
    problem(http.get("/datasets/hers"), 401, "unauthorized")
    for ask in (
        lambda: http.get("/datasets/hers", headers=bob),
        lambda: http.delete("/datasets/hers?files=true", headers=bob),
        lambda: http.post("/datasets/hers/pause", headers=bob),
        lambda: http.get("/datasets/hers/shards/0", headers=bob),
        lambda: http.get("/datasets/hers/files/manifest.json", headers=bob),
    ):
        problem(ask(), 404, "not-found")
    assert http.get("/datasets", headers=bob).json() == {"datasets": []}
    assert http.get("/datasets/hers", headers=ann).json()["status"] == "queued"
    refused = http.put("/datasets/his", json=RECIPE, headers=bob)
    assert "shard_size" in problem(refused, 422, "invalid-request")
    assert "bytes that this key may store" in refused.text
    for number in range(1, MOST_DATASETS):
        http.put(f"/datasets/n{number}", json=RECIPE, headers=ann).raise_for_status()
    full = http.put("/datasets/more", json=RECIPE, headers=ann)
    assert "100 data sets" in problem(full, 429, "too-much-stored")
    assert int(full.headers["retry-after"]) > 0
    assert http.put("/datasets/n5", json=RECIPE, headers=ann).status_code == 200


@pytest.mark.processes
@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"labels": {}}, "labels", "labels with counts"),
        ({"labels": {"blood": 0}}, "labels.blood", "an integer from 1 to 1000000"),
        ({"labels": {"granite": 3}}, "labels", "one of histology, blood"),
        ({"labels": {"blood": 600_000, "histology": 600_000}}, "labels", "up to 1000000 pairs"),
        ({"shard_size": 1, "labels": {"blood": 1001}}, "shard_size", "at least 2"),
        ({"seed": -1}, "seed", "an integer from 0"),
        ({"format": "zip"}, "format", "one of webdataset"),
        ({"model": "other"}, "model", "one of stub"),
        ({"settings": {"cfg_scale": [2, 1]}}, "settings.cfg_scale", "or [low, high]"),
        ({"settings": {"top_k": 65}}, "settings.top_k", "an integer from 0 to 64"),
        ({"settings": 3}, "settings", "any of cfg_scale"),
        (
            {"settings": {"top_k": {"structure": 0, "appearance": 65}}},
            "settings.top_k.appearance",
            "an integer from 0 to 64",
        ),
        ({"min_agreement": 1.5}, "min_agreement", "a number from 0 to 1"),
        ({"best_of": 0}, "best_of", "an integer from 1 to 100"),
        ({"n": 3}, "n", "one of the fields labels"),
        ({"width": 2049}, "width", "to 2048"),
        ({"width": 2048, "height": 2048}, "width", "a smaller image, as 4 of this size"),
    ],
)
def test_a_recipe_that_cannot_be_names_its_field(
    change: dict[str, Any], field: str, expected: str, http: httpx.Client
) -> None:
    answer = http.post("/datasets", json={**RECIPE, **change})
    problem(answer, 422, "invalid-request")
    [error] = answer.json()["errors"]
    assert error["field"] == field
    assert expected in error["expected"]


@pytest.mark.processes
def test_filters_need_a_model_that_tells_agreement_and_a_key_that_may_store_a_job(
    http: httpx.Client, served: LoneService
) -> None:
    recipe = {**RECIPE, "min_agreement": 0.5, "best_of": 2}
    served.registry.publish(replace(MODEL, segments=False), "test-worker", 4)
    for name, value in (("min_agreement", 0.5), ("best_of", 2)):
        refused = http.post("/datasets", json={**RECIPE, name: value})
        problem(refused, 422, "invalid-request")
        [error] = refused.json()["errors"]
        assert error["field"] == name
        assert "the model 'stub' tells no agreement" in error["expected"]
    served.publish()
    made = http.post("/datasets", json=recipe)
    assert made.status_code == 201, made.text
    told = {name: made.json()["recipe"][name] for name in ("min_agreement", "best_of")}
    assert told == {"min_agreement": 0.5, "best_of": 2}
    with served.redis_server.client() as client:
        token, _ = KeyStore(client).make("bob", 1.0, Limits(stored_bytes=1 << 20))
    bob = {"Authorization": f"Bearer {token}"}
    refused = http.post("/datasets", json={**recipe, "shard_size": 1000}, headers=bob)
    assert "min_agreement" in problem(refused, 422, "invalid-request")
    assert "a job of 100 images must fit into the 1048576 bytes" in refused.text


@pytest.mark.processes
def test_a_body_that_is_no_recipe_is_refused(http: httpx.Client) -> None:
    text = http.post("/datasets", content=b"{}", headers={"content-type": "text/plain"})
    problem(text, 415, "unsupported-media-type")
    assert "a JSON object" in problem(http.post("/datasets", json=[3]), 422, "invalid-request")


def test_without_a_storage_the_answer_names_the_setting(shared: LoneService) -> None:
    shared.publish()
    for answer in (
        shared.http.post("/datasets", json=RECIPE),
        shared.http.put("/datasets/x", json={}),
        shared.http.get("/datasets"),
        shared.http.get("/datasets/x/files/manifest.json"),
    ):
        assert problem(answer, 501, "not-offered").startswith("PATHAR_RESULTS_URL is not set")


@pytest.mark.processes
def test_data_sets_survive_a_restart_of_redis(http: httpx.Client, served: LoneService) -> None:
    state = http.post("/datasets", json=RECIPE).json()
    paused = http.post(f"/datasets/{state['dataset_id']}/pause").json()
    served.redis_server.kill()
    served.redis_server.start()
    assert http.get(f"/datasets/{state['dataset_id']}").json() == paused
    assert json.loads(http.get("/openapi.json").content)["info"]["version"] == VERSION
