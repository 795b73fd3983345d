"""What is given through HTTP: what is taken and what is refused; the test plays the worker."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from model.given import Given, Stream, keep_bits, of_tokens, reference
from store import keys
from store.access import KeyStore, Limits
from tests.running import JSON, PROBLEM, png_text
from tests.service.conftest import FILES, MODEL, LoneService

SIDE, GRID, CODEBOOK = MODEL.image_size, MODEL.grid_size, MODEL.codebook_size
MASK = np.zeros((SIDE, SIDE), np.uint8)
MASK[2:5, 1:6] = 255
TOKENS = [[1, 2], [3, 4]]
BODY = {"label": "blood", "n": 2}


GIVEN: list[dict[str, Any]] = [{"mask_png": png_text(MASK)}, {"tokens": TOKENS}]
IMAGE = np.arange(3 * SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE, 3)
IMAGE_PNG = {"image_png": png_text(IMAGE)}
REGION = np.full((SIDE, SIDE), 255, np.uint8)
REGION[3, 3] = 0
"""One pixel of the first of four locations is drawn anew, so all of it is."""
KEEP, KEEP_PNG = keep_bits([False, True, True, True]), {"keep_png": png_text(REGION)}
RGB, BITS = Stream("image", IMAGE.tobytes()), Stream("mask", np.packbits(MASK).tobytes())


@pytest.fixture
def service(emptied: LoneService) -> LoneService:
    emptied.publish()
    return emptied


def put(service: LoneService, job_id: str, structure: object, status: int = 201) -> dict[str, Any]:
    answer = service.http.put(f"/jobs/{job_id}", json={**BODY, "structure": structure})
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: next(iter(given)))
def test_a_job_says_which_structure_it_was_given_everywhere(
    given: dict[str, Any], service: LoneService
) -> None:
    wanted = as_told(Given(BITS if "mask_png" in given else of_tokens([1, 2, 3, 4])))["structure"]
    assert put(service, "a", given)["structure"] == wanted
    assert put(service, "free", None)["structure"] is None
    service.work()
    assert service.http.get("/jobs/a").json()["structure"] == wanted
    listed = service.http.get("/jobs").json()["jobs"]
    assert [job["structure"] for job in listed] == [None, wanted]


def test_all_labels_of_one_layout_are_one_job_of_which_each_image_says_its_own(
    service: LoneService,
) -> None:
    body = {"labels": ["blood", "histology"], "n": 2, "seed": 5, "structure": GIVEN[0]}
    job = service.http.put("/jobs/both", json=body).json()
    assert (job["labels"], job["settings"]["n"]) == (body["labels"], 2)
    told = [(image["label"], image["seed"]) for image in job["images"]]
    assert [label for label, _ in told] == ["blood"] * 2 + ["histology"] * 2
    assert [seed for _, seed in told[:2]] == [seed for _, seed in told[2:]]
    assert service.work() == 4
    drawn = [service.http.get(f"/jobs/both/images/{k}").json() for k in range(4)]
    assert [(each["label"], each["seed"]) for each in drawn] == told
    one = {**body, "labels": ["blood"]}
    service.http.put("/jobs/one", json=one)
    same = {**one, "labels": None, "label": "blood"}
    assert service.http.put("/jobs/one", json=same).status_code == 200
    for wrong, field in (({"label": "blood"}, "labels"), ({"labels": None}, "label"),
                         ({"labels": ["blood", "x"]}, "labels"), ({"n": 501}, "n")):  # fmt: skip
        answer = service.http.put("/jobs/wrong", json={**body, **wrong})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


def test_the_answer_says_how_much_of_a_mask_was_kept_and_null_without_one(
    service: LoneService,
) -> None:
    of_all = {"nuclei": 1, "log_likelihood": {"structure": -1.0, "appearance": -2.0}}
    for job_id, more in (("a", {}), ("b", {"mask_dice": 0.9731})):
        record = b"pathar\0\0\0\0\0" + json.dumps({**of_all, **more}).encode()
        image = b"\x89PNG\r\n\x1a\n" + len(record).to_bytes(4, "big") + b"iTXt" + record + bytes(4)
        put(service, job_id, GIVEN[0])
        service.work(files={**FILES, "image.png": image})
        answer = service.http.get(f"/jobs/{job_id}/images/0").json()
        assert answer["mask_dice"] == more.get("mask_dice")


def test_an_id_stands_for_one_structure(service: LoneService) -> None:
    put(service, "a", GIVEN[0])
    put(service, "a", GIVEN[0], status=200)
    for other in (GIVEN[1], {"mask_png": png_text(MASK[::-1])}, {"job_id": "a", "index": 0}, None):
        assert put(service, "a", other, status=409)["type"] == "urn:pathar:other-job"
    put(service, "c", GIVEN[1])
    service.work()
    put(service, "b", {"job_id": "c"})
    put(service, "b", {"job_id": "c", "index": 0}, status=200)
    put(service, "b", {"job_id": "c", "index": 1}, status=409)
    service.http.delete("/jobs/c?files=true")
    put(service, "b", {"job_id": "c", "index": 0}, status=200)


def test_an_earlier_pair_gives_its_tokens(service: LoneService) -> None:
    put(service, "first", None)
    service.work()
    for index in (0, 1):
        found = put(service, f"of-{index}", {"job_id": "first", "index": index})
        assert (
            found["structure"]
            == put(service, f"as-{index}", {"tokens": [[5, 6], [7, 8]]})["structure"]
        )


def as_told(given: Given) -> dict[str, Any]:
    return asdict(reference(given))


@pytest.mark.parametrize(
    ("structure", "appearance", "wanted"),
    [
        (None, IMAGE_PNG, Given(None, RGB)),
        (GIVEN[0], IMAGE_PNG, Given(BITS, RGB)),
        (GIVEN[0] | KEEP_PNG, None, Given(replace(BITS, keep=KEEP))),
        (GIVEN[0], IMAGE_PNG | KEEP_PNG, Given(BITS, replace(RGB, keep=KEEP))),
        ({"tokens": [[1, 2], [None, 4]]}, {"tokens": [[None] * 2] * 2},
         Given(of_tokens([1, 2, None, 4]))),
        (None, {"tokens": TOKENS}, Given(None, of_tokens([1, 2, 3, 4]))),
        ({"segmented": True}, IMAGE_PNG, Given(Stream("segmented"), RGB)),
        ({"job_id": "first"}, {"job_id": "first", "index": 1},
         Given(of_tokens([5, 6, 7, 8]), of_tokens([1, 2, 3, 4]))),
        ({"job_id": "first"} | KEEP_PNG, None, Given(of_tokens([None, 6, 7, 8]))),
        (None, IMAGE_PNG | {"keep_png": png_text(REGION | 255)}, Given(None, RGB)),
    ],
)  # fmt: skip
def test_either_stream_is_given_whole_or_in_part_and_the_job_says_so(
    structure: object, appearance: object, wanted: Given, service: LoneService
) -> None:
    put(service, "first", None)
    service.work()
    body = {**BODY, "structure": structure, "appearance": appearance}
    found = service.http.put("/jobs/a", json=body).json()
    assert {name: found[name] for name in ("structure", "appearance")} == as_told(wanted)


def test_encode_and_decode_are_requests_for_a_pair_that_is_given(service: LoneService) -> None:
    image, mask = IMAGE_PNG, GIVEN[0]
    ids = {"structure_tokens": TOKENS, "appearance_tokens": TOKENS}
    tokens = of_tokens([1, 2, 3, 4])
    for path, body, wanted in (
        ("encode", image | mask, Given(BITS, RGB)),
        ("encode", image, Given(Stream("segmented"), RGB)),
        ("encode", mask, Given(BITS)),
        ("decode", ids, Given(tokens, tokens)),
    ):
        answer = service.http.post(f"/{path}?wait=0", json={"label": "blood", **body})
        assert answer.status_code == 202, answer.text
        found = answer.json()
        assert {name: found[name] for name in ("structure", "appearance")} == as_told(wanted)
        assert (found["settings"]["n"], found["settings"]["seed"]) == (1, 0)


MASK_BYTES, IMAGE_BYTES, KEEP_BYTES = (
    base64.b64decode(text)
    for text in (GIVEN[0]["mask_png"], IMAGE_PNG["image_png"], KEEP_PNG["keep_png"])
)


def test_files_in_a_form_are_the_same_request_as_in_base64(service: LoneService) -> None:
    given = {"structure": GIVEN[0] | KEEP_PNG, "appearance": IMAGE_PNG | KEEP_PNG}
    assert service.http.put("/jobs/a", json=BODY | given).status_code == 201
    files = {
        "structure.mask_png": MASK_BYTES, "structure.keep_png": KEEP_BYTES,
        "appearance.image_png": IMAGE_BYTES, "appearance.keep_png": KEEP_BYTES,
    }  # fmt: skip
    form = {"request": (None, json.dumps(BODY), "application/json"), **files}
    answer = service.http.put("/jobs/a", files=form)
    assert (answer.status_code, answer.json()["job_id"]) == (200, "a")
    halves = {"request": json.dumps(BODY | {"structure": KEEP_PNG, "appearance": IMAGE_PNG}),
              "structure.mask_png": MASK_BYTES, "appearance.keep_png": KEEP_BYTES}  # fmt: skip
    assert service.http.put("/jobs/a", files=halves).status_code == 200
    one = {"request": json.dumps({"label": "blood"})}
    drawn = service.http.post("/generate?wait=0", files=one | {"structure.mask_png": MASK_BYTES})
    assert (drawn.status_code, drawn.json()["structure"]["kind"]) == (202, "mask")
    encoded = service.http.post(
        "/encode?wait=0", files=one | {"mask_png": MASK_BYTES, "image_png": IMAGE_BYTES}
    )
    assert encoded.status_code == 202
    assert {name: encoded.json()[name] for name in given} == as_told(Given(BITS, RGB))


FORM_TYPE = "multipart/form-data; boundary=X"
PART = b'--X\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
ASKED = PART % (b"request", json.dumps(BODY).encode())
MASKED = PART % (b"structure.mask_png", MASK_BYTES)
FORMS: list[tuple[str, bytes, str, int, str]] = [
    ("whole", ASKED + MASKED + b"--X--\r\n", FORM_TYPE, 201, ""),
    ("quoted boundary", ASKED + b"--X--", 'multipart/form-data; boundary="X"', 201, ""),
    ("no request", MASKED + b"--X--", FORM_TYPE, 422, "request"),
    ("request is no JSON", PART % (b"request", b"{") + b"--X--", FORM_TYPE, 400, "not JSON"),
    ("request is no object", PART % (b"request", b"[]") + MASKED + b"--X--", FORM_TYPE, 422, ""),
    ("another part", ASKED + PART % (b"mask", b"x") + b"--X--", FORM_TYPE, 422, "mask"),
    ("twice", ASKED + MASKED + MASKED + b"--X--", FORM_TYPE, 422, "structure.mask_png"),
    ("hundred thousand", ASKED + PART % (b"a", b"") * 12_000 + b"--X--", FORM_TYPE, 422, "files"),
    ("both ways", PART % (b"request", json.dumps(BODY | {"structure": GIVEN[0]}).encode())
     + MASKED + b"--X--", FORM_TYPE, 422, "structure.mask_png"),
    ("no PNG", ASKED + PART % (b"structure.mask_png", b"II*\0") + b"--X--", FORM_TYPE, 422, "TIFF"),
    ("empty", ASKED + PART % (b"structure.mask_png", b"") + b"--X--", FORM_TYPE, 422, "mask_png"),
    ("cut off", ASKED + MASKED[:-9], FORM_TYPE, 400, "boundary"),
    ("no end", ASKED + MASKED, FORM_TYPE, 400, "boundary"),
    ("nothing", b"", FORM_TYPE, 400, "boundary"),
    ("another boundary", ASKED + b"--X--", "multipart/form-data; boundary=Y", 400, "boundary"),
    ("no boundary", ASKED + b"--X--", "multipart/form-data", 400, "boundary"),
    ("long boundary", ASKED, "multipart/form-data; boundary=" + "X" * 71, 400, "boundary"),
    ("odd type", ASKED, 'multipart/form-data; boundary="' + ';"' * 15_000, 400, "boundary"),
    ("long headers", b"--X\r\n" + b"A: " + b"x" * 5000 + ASKED, FORM_TYPE, 400, "headers"),
    ("no headers", b"--X\r\nx\r\n--X--", FORM_TYPE, 400, "headers"),
    ("odd name", PART % (b"\xff\x00", b"") + ASKED + b"--X--", FORM_TYPE, 422, "files"),
    ("no name", b"--X\r\nA: b\r\n\r\nx\r\n--X--", FORM_TYPE, 400, "a name"),
    ("encoded", ASKED.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1)
     + b"--X--", FORM_TYPE, 400, "Transfer"),
    ("too large", ASKED + PART % (b"structure.mask_png", bytes(4 << 20)), FORM_TYPE, 413, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "media_type", "status", "told"),
    [pytest.param(*form, id=name) for name, *form in FORMS],
)
def test_a_form_is_read_or_refused_for_what_is_wrong_with_it(
    body: bytes, media_type: str, status: int, told: str, service: LoneService
) -> None:
    headers = {"Content-Type": media_type}
    answer = service.http.put("/jobs/form", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    if status > 400:
        assert told in answer.text
        assert len(answer.text) < 2000
    assert service.http.put("/jobs/form", json={**BODY}).status_code in (200, 201, 409)


@pytest.mark.parametrize(
    ("path", "body", "field", "expected"),
    [
        ("encode", {}, "image_png", "or mask_png"),
        ("encode", {"image_png": "AAAA"}, "image_png", "RGB with 8 bits"),
        ("encode", {"mask_png": "AAAA"}, "mask_png", "0 (ground)"),
        ("encode", {"n": 2, **IMAGE_PNG}, "n",
         "model, priority, notify, label, width, height, image_png"),
        ("decode", {"structure_tokens": TOKENS}, "appearance_tokens", "rows of ids"),
        ("decode", {"structure_tokens": TOKENS, "appearance_tokens": [[1, 2], [3, None]]},
         "appearance_tokens", "rows of ids"),
        ("decode", {"structure_tokens": [[1]], "appearance_tokens": TOKENS}, "structure_tokens",
         "2 rows of 2 ids"),
        ("decode", {"structure_tokens": TOKENS, "appearance_tokens": [[1, 2], [3, 64]]},
         "appearance_tokens", "4 ids from 0 to 63"),
    ],
)  # fmt: skip
def test_encode_and_decode_name_their_own_fields(
    path: str, body: dict[str, Any], field: str, expected: str, service: LoneService
) -> None:
    answer = service.http.post(f"/{path}", json={"label": "blood", **body})
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"].startswith(field)
    assert expected in error["expected"]


def test_segmenting_needs_an_image_and_a_segmenter(service: LoneService) -> None:
    for appearance in (None, {"tokens": TOKENS}):
        body = {**BODY, "structure": {"segmented": True}, "appearance": appearance}
        [error] = service.http.put("/jobs/a", json=body).json()["errors"]
        assert "appearance.image_png" in error["expected"]
    blind = replace(MODEL, segments=False, numerics="ba9876543210")
    service.registry.publish(blind, "another-worker", 4)
    answer = service.http.post("/encode", json={"label": "blood", **IMAGE_PNG})
    [error] = answer.json()["errors"]
    assert (error["field"], "no segmenter" in error["expected"]) == ("mask_png", True)


REFUSED_IMAGES: list[tuple[object, str, str]] = [
    ({"image_png": png_text(MASK)}, "appearance.image_png", "found a PNG in grey"),
    ({"image_png": png_text(np.tile(IMAGE, (2, 2, 1)))}, "appearance.image_png", "16 x 16"),
    ({"mask_png": png_text(MASK)}, "appearance", '{"image_png": base64}'),
    ({"segmented": True}, "appearance", '{"image_png": base64}'),
    (IMAGE_PNG | {"keep_png": png_text(MASK * 0)}, "appearance.keep_png", "a whole location"),
    (IMAGE_PNG | {"keep_png": png_text(MASK)}, "appearance.keep_png", "a whole location"),
    (IMAGE_PNG | {"keep_png": png_text(IMAGE)}, "appearance.keep_png", "found a PNG with RGB"),
    ({"tokens": TOKENS} | KEEP_PNG, "appearance.keep_png", "one of the fields tokens"),
]


@pytest.mark.parametrize(("given", "field", "expected"), REFUSED_IMAGES)
def test_what_is_no_appearance_is_refused(
    given: object, field: str, expected: str, service: LoneService
) -> None:
    answer = service.http.put("/jobs/a", json={**BODY, "appearance": given})
    assert answer.status_code == 422, answer.text
    [error] = answer.json()["errors"]
    assert error["field"].startswith(field)
    assert expected in error["expected"]


REFUSED: list[tuple[object, str, str]] = [
    ({}, "structure", '{"mask_png": base64}'),
    ([], "structure", '{"mask_png": base64}'),
    ("mask.png", "structure", '{"mask_png": base64}'),
    ({"png": "x"}, "structure", '{"mask_png": base64}'),
    ({**GIVEN[0], **GIVEN[1]}, "structure", '{"mask_png": base64}'),
    ({**GIVEN[0], "index": 1}, "structure.index", "one of the fields keep_png, mask_png"),
    ({"job_id": "a", "n": 1}, "structure.n", "one of the fields keep_png, job_id, index"),
    ({"mask_png": ""}, "structure.mask_png", "a PNG in base64"),
    ({"mask_png": 7}, "structure.mask_png", "a PNG in base64"),
    ({"mask_png": "not base64!"}, "structure.mask_png", "base64"),
    ({"mask_png": "data:image/png;base64," + png_text(MASK)}, "structure.mask_png", "base64"),
    ({"mask_png": png_text(MASK)[:-1]}, "structure.mask_png", "base64"),
    ({"mask_png": png_text(np.tile(MASK, (2, 2)))}, "structure.mask_png", "found a PNG of 16 x 16"),
    ({"mask_png": base64.b64encode(b"II*\0" + bytes(9)).decode()}, "structure.mask_png", "a TIFF"),
    ({"tokens": TOKENS[0]}, "structure.tokens", "rows of ids"),
    ({"tokens": [[1, 2]]}, "structure.tokens", "2 rows of 2 ids from 0 to 63"),
    ({"tokens": [[1], [2, 3]]}, "structure.tokens", "2 rows of 2 ids from 0 to 63"),
    ({"tokens": [[1, 2], [3, CODEBOOK]]}, "structure.tokens", "4 ids from 0 to 63"),
    ({"tokens": [[1, 2], [3, -1]]}, "structure.tokens", "rows of ids"),
    ({"tokens": [[1, 2], [3, True]]}, "structure.tokens", "rows of ids"),
    ({"tokens": [[1, 2], [3, 4.5]]}, "structure.tokens", "rows of ids"),
    ({"tokens": [["1", "2"]] * 2}, "structure.tokens", "rows of ids"),
    ({"job_id": "nobody's"}, "structure.job_id", "a job's id"),
    ({"job_id": "unknown", "index": 0}, "structure.job_id", "a job of yours"),
    ({"job_id": "waits", "index": 1}, "structure.index", "an image that is finished"),
    ({"job_id": "waits", "index": 2}, "structure.index", "0 to 1"),
    ({"job_id": "waits", "index": -1}, "structure.index", "0 to 999"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "field", "expected"), REFUSED)
def test_what_is_no_structure_is_refused_and_makes_no_job(
    given: object, field: str, expected: str, service: LoneService
) -> None:
    put(service, "waits", None)
    problem = put(service, "a", given, status=422)
    [error] = problem["errors"]
    assert error["field"].startswith(field)
    assert expected in error["expected"]
    assert len(json.dumps(problem)) < 2000
    assert service.http.get("/jobs/a").status_code == 404


def test_hundred_thousand_wrong_ids_get_a_short_answer(service: LoneService) -> None:
    for tokens in ([["x"] * 256] * 200, [[]] * 256, [[-1] * 250] * 250):
        problem = put(service, "a", {"tokens": tokens}, status=422)
        assert len(problem["errors"]) == 1
        assert len(json.dumps(problem)) < 2000


def test_a_body_may_be_as_large_as_the_largest_image_and_no_larger(service: LoneService) -> None:
    structure = {"mask_png": "A" * 200_000}
    assert put(service, "a", structure, status=422)["errors"][0]["field"] == "structure.mask_png"
    body = json.dumps({**BODY, "structure": {"mask_png": "A" * 4_194_304}})
    answer = service.http.put("/jobs/a", content=body, headers=JSON)
    assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM)


def test_pairs_of_other_keys_and_other_models_give_nothing(service: LoneService) -> None:
    with service.redis_server.client() as client:
        store = KeyStore(client)
        tokens = {name: store.make(name, 1.0, Limits())[0] for name in ("ann", "bob")}
        ann, bob = ({"Authorization": f"Bearer {token}"} for token in tokens.values())
        assert service.http.put("/jobs/a", json=BODY, headers=ann).status_code == 201
        service.work()
        body = {**BODY, "structure": {"job_id": "a", "index": 0}}
        answer = service.http.put("/jobs/b", json=body, headers=bob)
        assert answer.json()["errors"][0]["expected"] == "the id of a job of yours"
        assert service.http.put("/jobs/b", json=body, headers=ann).status_code == 201
        client.hset(f"{keys.RECORD}{_owner(store)}-a", "model_version", "cd" * 32)
        answer = service.http.put("/jobs/c", json=body, headers=ann)
        assert "tokens of another model" in answer.json()["errors"][0]["expected"]


def _owner(store: KeyStore) -> str:
    return next(owner.id for owner in store.all() if owner.name == "ann")


def test_a_job_whose_structure_does_not_fit_the_keys_bytes_is_refused(service: LoneService) -> None:
    with service.redis_server.client() as client:
        token, _ = KeyStore(client).make("ann", 1.0, Limits(stored_bytes=20_000))
    answer = service.http.post(
        "/generate?wait=0",
        json={**BODY, "structure": GIVEN[0]},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "n"
