"""The routes of a running service, through HTTP, with a real worker behind it."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from pathar.contract import MAX_SEED, image_seed, record_of
from tests.conftest import LEARNED
from tests.running import Up

LABELS = ["cytology", "fluorescence", "histology", "blood", "cervix"]


def drawn(stack: Up, **fields: Any) -> dict[str, Any]:
    answer = stack.http.post("/generate", json={"label": "histology", **fields})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def test_a_request_is_answered_with_pairs_and_all_that_it_was_drawn_with(stack: Up) -> None:
    answer = drawn(stack, n=2, seed=7, cfg_scale=3, top_k={"structure": 5, "appearance": 7})
    told = {"job_id", "status", "model", "labels", "settings", "structure", "appearance", "size"}
    assert answer.keys() == {*told, "images"}
    assert answer["structure"] is None
    assert (answer["status"], answer["labels"]) == ("finished", ["histology"])
    assert answer["model"].keys() == {"name", "version", "numerics"}
    assert re.fullmatch("[0-9a-f]{64}", answer["model"]["version"])
    settings = answer["settings"]
    assert settings.keys() == {"n", "seed", "best_of", "labels"}
    assert (settings["n"], settings["seed"]) == (2, 7)
    assert settings["labels"].keys() == {"histology"}
    of_label = settings["labels"]["histology"]
    assert of_label.keys() == {"cfg_scale", "temperature", "top_k", "top_p"}
    assert (of_label["cfg_scale"], of_label["top_k"]) == (3.0, {"structure": 5, "appearance": 7})
    assert [image["index"] for image in answer["images"]] == [0, 1]
    assert [image["seed"] for image in answer["images"]] == [7, image_seed(7, 1)]


def test_images_are_rgb_masks_black_and_white_and_instances_number_their_nuclei(stack: Up) -> None:
    [image] = drawn(stack, seed=1)["images"]
    with Image.open(io.BytesIO(base64.b64decode(image["image_png"]))) as picture:
        assert (picture.mode, picture.size) == ("RGB", (64, 64))
        assert "not for diagnosis" in str(picture.info["pathar"])
    with Image.open(io.BytesIO(base64.b64decode(image["mask_png"]))) as mask:
        assert (mask.mode, mask.size) == ("L", (64, 64))
        assert set(mask.tobytes()) <= {0, 255}
        nuclei = np.asarray(mask) > 0
    with Image.open(io.BytesIO(base64.b64decode(image["instances_png"]))) as picture:
        ids = np.asarray(picture)
    assert ids.dtype == np.uint16
    assert np.array_equal(ids > 0, nuclei)
    assert set(np.unique(ids)) - {0} == set(range(1, ids.max() + 1))


def test_an_answer_says_how_good_each_pair_is(stack: Up) -> None:
    [image] = drawn(stack, seed=1)["images"]
    record = record_of(base64.b64decode(image["image_png"]))
    for name in ("nuclei", "agreement", "log_likelihood"):
        assert image[name] == record[name]
    with Image.open(io.BytesIO(base64.b64decode(image["instances_png"]))) as ids:
        assert image["nuclei"] == np.asarray(ids).max()
    assert 0 < image["agreement"] < 1
    assert all(image["log_likelihood"][stream] < 0 for stream in ("structure", "appearance"))


def test_tokens_are_square_grids_of_ids_and_times_add_up(stack: Up) -> None:
    [image] = drawn(stack, seed=1)["images"]
    for stream in ("structure_tokens", "appearance_tokens"):
        assert [len(row) for row in image[stream]] == [8] * 8
        assert all(0 <= token < 64 for row in image[stream] for token in row)
    timing = image["timing"]
    assert 0 <= timing["queue_s"] <= timing["total_s"]
    assert 0 < timing["decode_s"] <= timing["total_s"]


def test_posting_an_images_own_seed_returns_that_image(stack: Up) -> None:
    third = drawn(stack, n=3, seed=11)["images"][2]
    [again] = drawn(stack, seed=third["seed"])["images"]
    for name in third.keys() - {"index", "timing"}:
        assert again[name] == third[name]


def test_a_seed_is_drawn_and_returned_when_none_is_given(stack: Up) -> None:
    seeds = {drawn(stack, seed=None)["settings"]["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


def test_a_client_that_will_not_wait_gets_the_job_and_finds_its_files(stack: Up) -> None:
    body = {"label": "blood", "n": 2, "seed": 3}
    for headers, query in (({"Prefer": "handling=strict, Respond-Async"}, ""), ({}, "?wait=0")):
        answer = stack.http.post(f"/generate{query}", json=body, headers=headers)
        assert answer.status_code == 202
        job = answer.json()
        assert answer.headers["location"] == f"jobs/{job['job_id']}"
        assert ("preference-applied" in answer.headers) == ("Prefer" in headers)
        assert job["status"] in ("queued", "started")
        assert stack.ended(job["job_id"])["status"] == "finished"
    sync = drawn(stack, **body)["images"][1]
    links = stack.http.get(f"/jobs/{job['job_id']}").json()["images"][1]["links"]
    for name in ("image", "mask", "instances"):
        picture = stack.http.get(links[name])
        assert picture.headers["content-type"] == "image/png"
        assert base64.b64decode(sync[f"{name}_png"]) == picture.content
    tokens = stack.http.get(links["tokens"])
    assert tokens.json() == {k: sync[k] for k in ("structure_tokens", "appearance_tokens")}


@pytest.mark.parametrize(
    ("prefer", "query", "status", "applied"),
    [
        ("wait=200", "", 200, "wait=200"),
        ('respond-async, wait="0"', "", 202, "respond-async, wait=0"),
        ("wait=9999", "", 200, "wait=300"),
        ("wait=0", "?wait=200", 200, None),
        ("wait=200", "?wait=0", 202, None),
        ("wait=soon", "", 200, None),
        ("wait=1_0", "", 200, None),
    ],
)
def test_a_preference_is_honoured_and_said(
    prefer: str, query: str, status: int, applied: str | None, stack: Up
) -> None:
    body = {"label": "blood"}
    answer = stack.http.post(f"/generate{query}", json=body, headers={"Prefer": prefer})
    assert answer.status_code == status
    assert answer.headers.get("preference-applied") == applied


def test_a_job_tells_its_state_from_submission_to_end(stack: Up) -> None:
    job = stack.ended(drawn(stack, n=2, seed=5)["job_id"])
    assert job["created_at"] <= job["started_at"] <= job["ended_at"]
    assert job["error"] is None
    assert [image["status"] for image in job["images"]] == ["finished", "finished"]
    missing = stack.http.get(f"/jobs/{job['job_id']}/images/2/image.png")
    assert missing.status_code == 404
    assert "0 to 1" in missing.json()["detail"]


def test_labels_are_listed_with_their_kind_and_model(stack: Up) -> None:
    labels = stack.http.get("/labels").json()["labels"]
    assert [label["name"] for label in labels] == LABELS
    assert [label["kind"] for label in labels] == ["modality"] * 3 + ["organ"] * 2
    assert len({label["model"] for label in labels}) == 1
    assert {label["name"]: label["mpp"] for label in labels if label["mpp"]} == {"histology": 0.25}
    learned = {label["name"]: label["learned"] for label in labels}
    assert learned.pop("histology") == {
        "nuclei": LEARNED["nuclei_a_patch"],
        "audit": LEARNED["audit"],
    }
    assert set(map(str, learned.values())) == {"{'nuclei': None, 'audit': None}"}


def test_metrics_count_requests_by_route_and_not_by_job(stack: Up) -> None:
    stack.http.get("/jobs/some-job")
    stack.http.get("/no/such/route")
    text = stack.http.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    labels = [sample.labels for sample in families["pathar_http_requests"].samples]
    routes = {found["route"] for found in labels if "route" in found}
    assert {"/jobs/{job_id}", "unmatched"} <= routes
    assert "some-job" not in text
    assert "pathar_http_request_seconds" in families


def test_the_docs_page_reaches_no_other_host(stack: Up) -> None:
    page = stack.http.get("/docs")
    assert page.status_code == 200
    assert not re.findall(r"(?:https?:)?//[a-z]", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "/openapi.json" in page.text


def test_openapi_describes_every_route_and_its_problems(stack: Up) -> None:
    document = stack.http.get("/openapi.json").json()
    assert {"/generate", "/jobs/{job_id}", "/labels", "/healthz", "/readyz"} <= set(
        document["paths"]
    )
    generate = document["paths"]["/generate"]["post"]
    body = generate["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/GenerateBody"}
    fields = document["components"]["schemas"]["GenerateBody"]["properties"]
    assert set(fields) == {
        "label",
        "labels",
        "scale",
        "best_of",
        "model",
        "n",
        "cfg_scale",
        "temperature",
        "top_k",
        "top_p",
        "seed",
        "structure",
        "appearance",
        "width",
        "height",
        "priority",
        "notify",
    }
    assert {"200", "202", "4XX", "5XX"} <= set(generate["responses"])
    assert list(generate["responses"]["4XX"]["content"]) == ["application/problem+json"]
