"""Schemathesis against the OpenAPI document of a running service.

No answer may be a 5xx, break the document or let anybody in without a key; requests are also made
in sequences, since the operations hang together. The document leaves open what depends on the
models that are served; here that is filled in, as GET /labels tells it, or few requests would get
further than the check of their label. PATHAR_TEST_EXAMPLES sets how many examples each operation
gets; `make fuzz` gives 1,000. HEAD becomes GET before any route sees it, so it is asked for only
where that number is set; `tests/service/test_front.py` has HEAD.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pathar.contract import STREAMS
from pathar.recipe import MOST_PAIRS
from tests.conftest import RedisServer
from tests.pathar.test_cli import called
from tests.running import environment, painted, png_text
from tests.service.conftest import LoneService
from tests.worker.conftest import WorkerProcess

EXAMPLES = os.environ.get("PATHAR_TEST_EXAMPLES", "5")
WITH_HEAD = "PATHAR_TEST_EXAMPLES" in os.environ
MAX_N, CODEBOOK, SIDE, GRID = 2, 64, 64, 8
PATCH = np.repeat(painted(SIDE)[..., None], 3, 2)
REGION = np.where(np.arange(SIDE) < SIDE // 2, np.uint8(255), np.uint8(0))[None].repeat(SIDE, 0)
GENEROUS = ("--rate", "1000000000", "--waiting", "1000000000", "--stored", "1000000000000")
CONFIG = """
request-timeout = 100.0

[warnings]
fail-on = ["missing_test_data", "missing_auth", "unused_openapi_auth", "method_not_allowed"]

# A cursor is a text whose meaning is the service's own; one that was made up is refused with 422.
[[operations]]
include-name = ["GET /jobs", "HEAD /jobs"]
checks.positive_data_acceptance.expected-statuses = [200, 422]

# The next, for HEAD: by chance, it may find no file that is there. GET, which is the same, does.
[[operations]]
include-tag = "files"
include-method = "HEAD"
warnings = false
checks.positive_data_acceptance.expected-statuses = [200, 204, 206, 304, 401, 404, 409, 416]

# A text that asks for bytes beyond a file's end, or names what the client has, is one as well.
[[operations]]
include-tag = "files"
checks.positive_data_acceptance.expected-statuses = [200, 206, 304, 401, 404, 409, 416]

# A range whose ends are in the wrong order is refused, and so is a shard that is too small.
[[operations]]
include-tag = "data sets"
warnings = false  # shards and files of data sets that were made up are not there
checks.positive_data_acceptance.expected-statuses = [200, 201, 206, 304, 404, 409, 416, 422, 429]
"""


@pytest.fixture
def lone(redis_server: RedisServer, test_checkpoint: Path, tmp_path: Path) -> Iterator[LoneService]:
    """The API and a worker, which has no storage for data sets: they are not drawn, as they may
    have a million pairs."""
    share = tmp_path / "share"
    share.mkdir()
    settings = {"PATHAR_MAX_N": str(MAX_N), "PATHAR_RESULTS_URL": f"file://{share}"}
    service = LoneService(redis_server, tmp_path / "service.log", **settings)
    told = environment(test_checkpoint, PATHAR_REDIS_URL=redis_server.url)
    worker = WorkerProcess(told, tmp_path / "worker.log")
    try:
        worker.ready()
        yield service
    finally:
        worker.kill()
        service.close()


def of_value(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field's value where that is neither null nor an object."""
    kinds = field.get("anyOf") or field.get("oneOf")
    if kinds is None:
        return field
    [found] = [each for each in kinds if each.get("type") != "null" and "$ref" not in each]
    return of_value(found)


def document(lone: LoneService, headers: dict[str, str]) -> dict[str, Any]:
    """The service's own, with what its models can draw."""
    told: dict[str, Any] = lone.http.get("/openapi.json").json()
    offered = lone.http.get("/labels", headers=headers).raise_for_status().json()["labels"]
    labels = sorted({each["name"] for each in offered})
    # What is given fits one size; test_large.py has others.
    sides = {name: {"minimum": SIDE, "maximum": SIDE} for name in ("width", "height")}
    narrowed: dict[str, dict[str, Any]] = {
        "label": {"enum": labels},
        "labels": {"items": {"enum": labels}, "uniqueItems": True, "maxItems": MAX_N},
        "model": {"enum": [None, *sorted({each["model"] for each in offered})]},
        "n": {"maximum": MAX_N},
        "best_of": {"maximum": 1},  # more needs a part that is kept; test_paint.py has it
        "top_k": {"maximum": CODEBOOK},
        "scale": {"minimum": 1, "maximum": 1},  # test_scale.py has others
        **sides,
    }
    schemas = told["components"]["schemas"]
    schemas["DatasetBody"]["properties"]["labels"] = {
        "type": "object",
        "properties": {
            name: {"type": "integer", "minimum": 1, "maximum": MOST_PAIRS}
            for name in narrowed["label"]["enum"]
        },
        "additionalProperties": False,
        "minProperties": 1,
    }
    for owner, name in (
        ("DatasetBody", "model"),
        ("DatasetBody", "width"),
        ("DatasetBody", "height"),
        ("DatasetSettings", "top_k"),
    ):
        field = schemas[owner]["properties"][name]
        of_value(field).update(narrowed[name])
        field.pop("examples", None)
    for stream in STREAMS:
        schemas["TopKs"]["properties"][stream].update(narrowed["top_k"])
    body = schemas["GenerateBody"]
    for name, limits in narrowed.items():
        field = body["properties"][name]
        of_value(field).update(limits)
        field.pop("examples", None)
    # One of the two, and in all no more than a request may have.
    body["oneOf"] = [
        {
            "required": ["label"],
            "properties": {"label": {"type": "string"}, "labels": {"type": "null"}},
        },
        {
            "required": ["labels"],
            "properties": {
                "label": {"type": "null"},
                "labels": {"type": "array"},
                "n": {"enum": [None, 1]},
            },
        },
    ]
    schemas = told["components"]["schemas"]
    schemas["GivenMask"]["properties"]["mask_png"] = {"enum": [png_text(painted(SIDE))]}
    rows = schemas["GivenTokens"]["properties"]["tokens"]
    rows |= {"minItems": GRID, "maxItems": GRID}
    rows["items"] |= {"minItems": GRID, "maxItems": GRID}
    # A region keeps some location, and encode is given something to encode.
    masks, images = {"enum": [png_text(painted(SIDE))]}, {"enum": [png_text(PATCH)]}
    schemas["GivenImage"]["properties"]["image_png"] = images
    for kept in ("GivenMask", "GivenImage"):
        schemas[kept]["properties"]["keep_png"] = {"enum": [None, png_text(REGION)]}
    pictures = {"image_png": images, "mask_png": masks}
    for name, picture in pictures.items():
        schemas["EncodeBody"]["properties"][name] = {"enum": [None, *picture["enum"]]}
    schemas["EncodeBody"]["anyOf"] = [
        {"required": [name], "properties": {name: picture}} for name, picture in pictures.items()
    ]
    grid, token = copy.deepcopy(rows), {"type": "integer", "minimum": 0, "maximum": CODEBOOK - 1}
    rows["items"]["items"] = {"anyOf": [token, {"type": "null"}]}
    grid["items"]["items"] = token
    for stream in ("structure_tokens", "appearance_tokens"):
        schemas["DecodeBody"]["properties"][stream] = grid
    for drawn in ("EncodeBody", "DecodeBody"):
        schemas[drawn]["properties"]["label"] = narrowed["label"]
        for name in ("model", *sides):
            schemas[drawn]["properties"][name] = body["properties"][name]
    # An earlier pair is one that there is, and what is segmented has its image beside it: what is
    # made up is refused with 422.
    for field, unknown in (("structure", ("EarlierPair", "Segmented")),
                           ("appearance", ("EarlierPair",))):  # fmt: skip
        [forms] = [x for x in body["properties"][field]["anyOf"] if "oneOf" in x]
        for name in unknown:
            forms["oneOf"].remove({"$ref": f"#/components/schemas/{name}"})
    for path in told["paths"].values():  # tests/service/test_given.py has forms
        for operation in path.values():
            operation.get("requestBody", {}).get("content", {}).pop("multipart/form-data", None)
    if not WITH_HEAD:
        return told
    for path in told["paths"].values():  # RFC 9110 has HEAD wherever there is GET
        if "get" in path:
            head = copy.deepcopy(path["get"])
            head["operationId"] += "_head"
            for answer in head["responses"].values():
                answer.pop("content", None)
                answer.pop("links", None)
            path["head"] = head
    return told


def test_the_service_does_what_its_openapi_document_says(lone: LoneService, tmp_path: Path) -> None:
    made = called("keys", "make", "fuzz", *GENEROUS, PATHAR_REDIS_URL=lone.redis_server.url)
    assert made.returncode == 0, made.stderr
    key = f"Bearer {made.stdout.strip()}"
    (tmp_path / "openapi.json").write_text(json.dumps(document(lone, {"Authorization": key})))
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    words = [
        *(sys.executable, "-m", "schemathesis.cli", "run", "openapi.json"),
        *("--url", lone.url, "--header", f"Authorization: {key}"),
        *("--max-examples", EXAMPLES, "--seed", "1", "--no-color"),
        # DELETE cancels: the job itself stays until it expires.
        *("--checks", "all", "--exclude-checks", "use_after_free"),
        *("--generation-database", "none", "--max-response-time", "90"),
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert "API Links:" in done.stdout, done.stdout[-5_000:]
    assert lone.http.get("/readyz").status_code == 200
