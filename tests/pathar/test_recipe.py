"""Recipes: what they may say, and which jobs follow from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pathar.contract import MAX_SEED, is_job_id
from pathar.errors import UsageError
from pathar.pull import read_recipe
from pathar.recipe import ModelRef, Plan, Recipe

FILE = """
seed = 7
format = "parquet"
shard_size = 120
[labels]
histology = 250
blood = 30
[settings]
temperature = 1
cfg_scale = [1.0, 2.0]
top_k = 20
"""
MODEL = ModelRef("small", "ab" * 32, "0123456789ab")


def plan(recipe: Recipe, model: ModelRef = MODEL) -> Plan:
    return Plan(recipe, dict.fromkeys(recipe.labels, model))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "pairs.toml").write_text(FILE)
    return read_recipe([str(tmp_path / "pairs.toml")], {})


def test_a_file_and_arguments_say_the_same(recipe: Recipe) -> None:
    options: dict[str, Any] = {"seed": 7, "format": "parquet", "shard_size": 120, "top_k": 20}
    options |= {"temperature": 1.0, "cfg_scale": (1, 2)}
    assert read_recipe(["histology=250", "blood=30"], options) == recipe
    assert recipe.pairs == 280


def test_jobs_are_small_cover_every_pair_and_draw_their_own_seeds_and_settings(
    recipe: Recipe,
) -> None:
    jobs = plan(recipe).jobs
    assert [(job.label, job.n) for job in jobs] == [
        *[("histology", 100), ("histology", 100), ("histology", 50), ("blood", 30)]
    ]
    assert [job.first for job in jobs] == [0, 100, 200, 250]
    assert len({job.seed for job in jobs}) == 4
    assert all(0 <= job.seed <= MAX_SEED for job in jobs)
    scales = {job.settings["cfg_scale"] for job in jobs}
    assert len(scales) == 4
    assert all(1 <= scale <= 2 for scale in scales)
    assert all(job.settings["temperature"] == 1 and job.settings["top_k"] == 20 for job in jobs)
    assert [list(shard)[-1] for shard in plan(recipe).shards] == [119, 239, 279]


def test_a_setting_may_differ_between_the_streams(tmp_path: Path) -> None:
    text = """temperature = {structure = 1, appearance = [0.9, 1.1]}
    top_k = {structure = 0, appearance = 100}
    cfg_scale = {structure = 2, appearance = 2}"""
    (tmp_path / "pairs.toml").write_text(f"[labels]\nblood = 250\n[settings]\n{text}")
    recipe = read_recipe([str(tmp_path / "pairs.toml")], {})
    told = json.loads(json.dumps(recipe.to_dict()))
    assert Recipe.from_dict(told) == recipe
    settings = [job.settings for job in plan(recipe).jobs]
    assert all(each["top_k"] == {"structure": 0, "appearance": 100} for each in settings)
    assert all(each["cfg_scale"] == 2 for each in settings)
    temperatures = [each["temperature"] for each in settings]
    assert all(isinstance(each, Mapping) and each["structure"] == 1 for each in temperatures)
    drawn = {each["appearance"] for each in temperatures if isinstance(each, Mapping)}
    assert len(drawn) == 3
    assert all(0.9 <= value <= 1.1 for value in drawn)


def test_the_same_recipe_is_the_same_jobs_for_ever(recipe: Recipe) -> None:
    """Another rule must have another SCHEME."""
    first = plan(recipe).jobs[0]
    assert plan(recipe).job_id(first) == "pull-54dbfbbba6c9d64820029380-0"
    assert (first.seed, first.settings["cfg_scale"]) == (6099610684547940, 1.8868)


def test_format_and_shard_size_change_no_pair_and_all_else_does(recipe: Recipe) -> None:
    first = plan(recipe)
    assert plan(replace(recipe, format="folder", shard_size=7)).jobs == first.jobs
    ids = {
        first.digest,
        plan(replace(recipe, seed=8)).digest,
        plan(replace(recipe, labels={"blood": 30, "histology": 250})).digest,
        plan(replace(recipe, settings={})).digest,
        plan(recipe, replace(MODEL, version="cd" * 32)).digest,
    }
    assert len(ids) == 5


def test_ids_are_ids_and_each_attempt_has_its_own(recipe: Recipe) -> None:
    ids = [plan(recipe).job_id(job, attempt) for job in plan(recipe).jobs for attempt in range(3)]
    assert all(map(is_job_id, ids))
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"seed": -1}, f"seed: got -1, expected an integer from 0 to {MAX_SEED}"),
        ({"seed": True}, "seed: got True"),
        ({"format": "zip"}, "format: got 'zip', expected one of webdataset, parquet, folder"),
        ({"shard_size": 0}, "shard_size: got 0, expected an integer from 1"),
        ({"min_agreement": 1.5}, "min_agreement: got 1.5, expected a number from 0 to 1"),
        ({"min_agreement": "high"}, "min_agreement: got 'high'"),
        ({"best_of": 0}, "best_of: got 0, expected an integer from 1 to 100"),
        ({"cfg_scale": 0.5}, r"settings.cfg_scale: got 0.5, expected a number from 1 to 10"),
        ({"cfg_scale": [2.0, 1.0]}, r"or \[low, high\] to draw from"),
        ({"cfg_scale": [1.0, 11.0]}, "a number from 1 to 10"),
        ({"temperature": "hot"}, "a number from 0 to 2"),
        ({"temperature": float("nan")}, "a number from 0 to 2"),
        ({"top_p": 0}, "a number from above 0 to 1"),
        ({"top_k": [1, 2]}, r"settings.top_k: got \[1, 2\], expected an integer"),
        (
            {"top_p": {"structure": 1}},
            "settings.top_p: .* a value for each of structure and appear",
        ),
        (
            {"temperature": {"structure": 1, "appearance": 3}},
            "settings.temperature.appearance: got 3",
        ),
        ({"model": 3}, "model: got 3, expected the name of a model"),
        ({"colour": "red"}, "colour: got 'red', expected one of the fields labels, seed"),
    ],
)
def test_what_is_wrong_is_named(fields: Mapping[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Recipe.of({"blood": 1}, fields)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected LABEL=N"),
        (["blood"], "got 'blood', expected LABEL=N such as histology=2500"),
        (["blood=many"], "got 'blood=many'"),
        (["blood=0"], "labels.blood: got 0, expected an integer from 1"),
        (["blood=1", "blood=2"], "got 'blood' twice"),
        (["a.toml", "blood=2"], "got 'blood=2' beside a.toml"),
        (["nowhere.toml"], "cannot read the recipe nowhere.toml"),
    ],
)
def test_wrong_words_are_named(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_recipe(words, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "labels: got None, expected labels with counts"),
        ("labels = 3", "labels: got 3"),
        ("seed 7", "is not TOML"),
        ("[labels]\nblood = 1.5", "labels.blood: got 1.5"),
        ("[labels]\nblood = 1\n[filters]\nx = 1", "filters: got"),
        ("[labels]\nblood = 1\n[settings]\nheat = 1", "settings.heat: got 1, expected one of"),
        ("settings = 3\n[labels]\nblood = 1", "settings: got 3, expected any of cfg_scale"),
    ],
)
def test_a_wrong_file_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"{path}: {said}"):
        read_recipe([str(path)], {})


def test_a_recipe_in_a_file_takes_no_options(tmp_path: Path) -> None:
    (tmp_path / "pairs.toml").write_text(FILE)
    with pytest.raises(UsageError, match="seed: write it into"):
        read_recipe([str(tmp_path / "pairs.toml")], {"seed": 3})
