"""Several models behind one service: which one a request goes to, and what it is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from model.request import Label, ModelInfo
from tests.running import PROBLEM
from tests.service.conftest import MODEL, LoneService

# MODEL, "stub", draws histology and blood.
OTHER = replace(
    MODEL,
    name="organs",
    version="cd" * 32,
    labels=(Label("histology", "modality"), Label("kidney", "organ")),
)


@pytest.fixture
def both(emptied: LoneService) -> LoneService:
    for info in (MODEL, OTHER):
        emptied.registry.publish(info, f"worker of {info.name}", 4)
    return emptied


def asked(service: LoneService, **fields: Any) -> dict[str, Any]:
    """The model that a request is bound to."""
    answer = service.http.post("/generate?wait=0", json=fields)
    assert answer.status_code == 202, answer.text
    model: dict[str, Any] = answer.json()["model"]
    return model


def refused(service: LoneService, **fields: Any) -> dict[str, Any]:
    """The one field of a request that is refused."""
    answer = service.http.post("/generate?wait=0", json=fields)
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM), answer.text
    [error] = answer.json()["errors"]
    result: dict[str, Any] = error
    return result


def withdraw(service: LoneService, info: ModelInfo) -> None:
    service.registry.withdraw(info, f"worker of {info.name}", 4)


def listed(service: LoneService) -> list[tuple[str, str, bool]]:
    labels = service.http.get("/labels").json()["labels"]
    return [(label["name"], label["model"], label["ready"]) for label in labels]


def test_every_pair_of_label_and_model_is_listed(both: LoneService) -> None:
    assert listed(both) == [
        ("histology", "organs", True),
        ("kidney", "organs", True),
        ("histology", "stub", True),
        ("blood", "stub", True),
    ]


def test_a_label_of_one_model_needs_no_model(both: LoneService) -> None:
    assert asked(both, label="blood")["version"] == MODEL.version
    assert asked(both, label="kidney", model=None)["version"] == OTHER.version


def test_a_label_of_two_models_needs_one_and_the_answer_names_them(both: LoneService) -> None:
    error = refused(both, label="histology")
    assert (error["field"], error["value"]) == ("model", None)
    assert error["expected"] == "one of organs, stub, which all have the label 'histology'"
    for info in (MODEL, OTHER):
        assert asked(both, label="histology", model=info.name)["version"] == info.version


def test_a_model_that_is_not_there_is_refused_with_those_that_are(both: LoneService) -> None:
    error = refused(both, label="histology", model="granite")
    assert (error["field"], error["value"]) == ("model", "granite")
    assert error["expected"] == "one of organs, stub"
    assert refused(both, label="histology", model=3)["field"] == "model"


def test_a_label_that_the_model_does_not_have_is_refused_with_those_it_has(
    both: LoneService,
) -> None:
    error = refused(both, label="kidney", model="stub")
    assert (error["field"], error["value"]) == ("label", "kidney")
    assert error["expected"] == "a label of the model 'stub': histology, blood"


def test_a_label_of_no_model_is_refused_with_all_there_are(both: LoneService) -> None:
    error = refused(both, label="granite")
    assert (error["field"], error["value"]) == ("label", "granite")
    assert error["expected"] == "one of histology, kidney, blood"


def test_a_model_whose_workers_are_gone_makes_no_label_ambiguous(both: LoneService) -> None:
    withdraw(both, MODEL)
    assert asked(both, label="histology")["version"] == OTHER.version
    assert ("histology", "stub", False) in listed(both)
    waiting = asked(both, label="histology", model="stub")
    assert waiting["version"] == MODEL.version, "it may be on its way back"
    withdraw(both, OTHER)
    assert refused(both, label="histology")["field"] == "model"


def test_of_two_versions_under_one_name_the_one_that_came_last_is_asked(lone: LoneService) -> None:
    new = replace(MODEL, version="ef" * 32, labels=(Label("histology", "modality"),))
    for info in (MODEL, new, MODEL):
        lone.registry.publish(info, f"worker {info.version[:2]}", 4)
    assert listed(lone) == [("histology", "stub", True)]
    for fields in ({}, {"model": "stub"}):
        assert asked(lone, label="histology", **fields)["version"] == new.version
    lone.registry.withdraw(new, "worker ef", 4)
    assert asked(lone, label="histology")["version"] == MODEL.version


def test_a_job_is_answered_after_its_model_is_gone(both: LoneService) -> None:
    job = both.http.post("/generate?wait=0", json={"label": "blood"}).json()
    withdraw(both, MODEL)
    assert both.http.get(f"/jobs/{job['job_id']}").json()["model"]["name"] == "stub"
    assert both.work() == 1, "and drawn, once a worker of its version is there"
    assert both.http.get(f"/jobs/{job['job_id']}").json()["status"] == "finished"


def test_a_job_waits_only_for_workers_of_its_own_model(both: LoneService) -> None:
    asked(both, label="histology", model="organs")
    assert both.work() == 0, "the test's worker serves stub"
    asked(both, label="histology", model="stub")
    assert both.work() == 1


def test_a_label_is_asked_for_at_a_scale_and_one_that_is_unknown_is_told_those_that_are(
    emptied: LoneService,
) -> None:
    half = Label("histology@0.5", "modality", 0.5)
    emptied.registry.publish(replace(MODEL, labels=(*MODEL.labels, half)), "worker", 4)
    labels = {each["name"]: each for each in emptied.http.get("/labels").json()["labels"]}
    assert [labels[name]["scale"] for name in ("histology", "histology@0.5", "blood")] == [
        *(1.0, 0.5, 1.0)
    ]
    assert labels["histology"]["scales"] == labels["histology@0.5"]["scales"] == [1.0, 0.5]
    body = {"label": "histology", "seed": 1, "n": 2}
    for job_id, scale in (("half", 0.5), ("whole", None)):
        made = emptied.http.put(f"/jobs/{job_id}", json={**body, "scale": scale}).json()
        assert made["labels"] == [f"histology@{scale}" if scale else "histology"]
    assert emptied.http.put("/jobs/whole", json={**body, "scale": 1}).status_code == 200
    assert emptied.http.put("/jobs/whole", json={**body, "scale": 0.5}).status_code == 409
    assert asked(emptied, label="histology@0.5", model="stub")["name"] == "stub"
    for label, known in (("histology", "1, 0.5"), ("blood", "1")):
        error = refused(emptied, label=label, scale=0.25)
        assert (error["field"], error["value"]) == ("scale", 0.25)
        assert error["expected"] == f"one of {known}: the scales of {label}"
    assert "a scale of its own" in refused(emptied, label="histology@0.5", scale=0.5)["expected"]
    assert refused(emptied, label="granite", scale=0.5)["value"] == "granite"
    assert refused(emptied, label="histology", scale=0)["field"] == "scale"
