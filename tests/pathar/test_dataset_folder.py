"""The folder of a data set, stopped at each change that it makes to the disk."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from pathar.contract import image_seed
from pathar.dataset_folder import DatasetFolder, is_complete, opened
from pathar.errors import UsageError
from pathar.manifest import CARD, MANIFEST
from pathar.quality import LogLikelihood, Quality, passing
from pathar.recipe import FORMATS, JOB_PAIRS, ModelRef, Plan, PlannedJob, Recipe
from pathar.spool import write_job
from tests.pathar.test_pull_killed import contents

MODEL = ModelRef("small", "ab" * 32, "0123456789ab")
COUNTS = {"blood": 103, "cervix": 2}
CHANGES = ((os, "replace"), (os, "fsync"), (Path, "unlink"), (shutil, "rmtree"))


class Stopped(BaseException):
    """Like a kill, as far as a process can do that to itself."""


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped loses nothing that it wrote: only a machine that is does."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@contextmanager
def stopping(after: int, changes: Sequence[tuple[Any, str]] = CHANGES) -> Iterator[list[str]]:
    """Stop at the change after so many; the changes that were made."""
    made: list[str] = []

    def counted(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*words: Any, **options: Any) -> Any:
            if len(made) >= after:
                raise Stopped
            made.append(name)
            return change(*words, **options)

        return changed

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in changes:
            patch.setattr(owner, name, counted(name, getattr(owner, name)))
        yield made


def png(mode: str, colour: Any, record: str = "{}") -> bytes:
    buffer, texts = io.BytesIO(), PngImagePlugin.PngInfo()
    texts.add_itxt("pathar", record)
    Image.new(mode, (4, 4), colour).save(buffer, "PNG", pnginfo=texts)
    return buffer.getvalue()


def agreement(seed: int) -> float:
    """About as often above as below a half."""
    return (seed % 101) / 100


@functools.cache
def files(seed: int, *, segmenter: bool = True) -> dict[str, bytes]:
    """A pair that follows from its seed."""
    likelihood = {"structure": -float(seed % 7), "appearance": -1.0}
    record: dict[str, Any] = {"nuclei": seed % 5, "log_likelihood": likelihood}
    record |= {"agreement": agreement(seed)} if segmenter else {}
    image = png("RGB", (seed % 251, seed % 241, seed % 239), json.dumps(record))
    tokens = f'{{"seed":{seed}}}'.encode()
    grey = {"mask.png": png("L", 255), "instances.png": png("I;16", 1)}
    return {"image.png": image, **grey, "tokens.json": tokens}


def pull(recipe: Recipe, out: Path, *, segmenter: bool = True) -> list[PlannedJob]:
    """One run; the jobs that it had to draw."""
    if is_complete(out, recipe):
        return []
    with opened(out):
        folder = DatasetFolder(out, Plan(recipe, dict.fromkeys(recipe.labels, MODEL)))
        folder.begin()
        folder.write_shards()
        missing, drawn = folder.missing(), list[PlannedJob]()
        while missing:
            job = missing.pop(0)
            seeds = (image_seed(job.seed, index) for index in range(job.n))
            images = [files(seed, segmenter=segmenter) for seed in seeds]
            settings = {"cfg_scale": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
            with folder.keeping(job) as file:
                write_job(file, job, MODEL, settings, images)
            drawn.append(job)
            folder.write_shards(job)
            if following := folder.following(job):
                missing.insert(0, following)
        assert folder.safe == recipe.pairs
        folder.finish()
    return drawn


def kept(out: Path) -> list[dict[str, Any]]:
    """What is said with each pair of a WebDataset, in order."""
    found = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as archive:
            members = [member for member in archive if member.name.endswith(".json")]
            members = [member for member in members if not member.name.endswith("tokens.json")]
            for member in members:
                content = archive.extractfile(member)
                assert content is not None
                found.append({"name": member.name, **json.loads(content.read())})
    return found


FILTER = {"min_agreement": 0.7, "best_of": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "filters"), [*((form, {}) for form in FORMATS), ("webdataset", FILTER)]
)
def test_wherever_a_run_is_stopped_the_next_one_makes_the_same_of_it(
    form: str, filters: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs have 10 pairs, so that few files are written at each stop."""
    monkeypatch.setattr("pathar.recipe.JOB_PAIRS", 10)
    counts = {"blood": 13, "cervix": 2}
    recipe = Recipe.of(counts, {"format": form, "shard_size": 11, **filters})
    with stopping(10**6) as made:
        assert len(pull(recipe, tmp_path / "whole")) >= 3
    whole = contents(tmp_path / "whole")
    every = max(1, len(made) // 20)  # files of plain folders are alike
    for after in range(0, len(made), every):
        out = tmp_path / f"stopped-{after}"
        with pytest.raises(Stopped), stopping(after):
            pull(recipe, out)
        pull(recipe, out)
        assert contents(out) == whole, f"stopped after {after} changes"
        assert pull(recipe, out) == []
        shutil.rmtree(out)


def test_only_pairs_that_agree_are_kept_and_the_rest_is_drawn_again(tmp_path: Path) -> None:
    recipe = Recipe.of(COUNTS, {"shard_size": 40, "min_agreement": 0.75})
    drawn = pull(recipe, tmp_path)
    pairs = kept(tmp_path)
    assert [pair["name"][: pair["name"].index(".")] for pair in pairs] == [
        *(f"blood-{number:06d}" for number in range(103)),
        *(f"cervix-{number:06d}" for number in range(103, 105)),
    ]
    assert len({pair["seed"] for pair in pairs}) == 105
    assert all(pair["agreement"] == agreement(pair["seed"]) >= 0.75 for pair in pairs)
    assert len({job.key for job in drawn}) == len(drawn) > 3
    assert all(job.settings == {} and job.n <= JOB_PAIRS for job in drawn)
    first = [image_seed(drawn[0].seed, index) for index in range(drawn[0].n)]
    assert [s for s in first if agreement(s) >= 0.75] == [
        pair["seed"] for pair in pairs if pair["seed"] in first
    ]
    told = json.loads((tmp_path / MANIFEST).read_text())["quality"]
    assert sum(each["drawn"] for each in told.values()) == sum(job.n for job in drawn)
    assert {label: each["kept"] for label, each in told.items()} == COUNTS
    for each in told.values():
        assert sum(each["agreement_drawn"]) == each["drawn"]
        assert sum(each["agreement_kept"]) == sum(each["agreement_kept"][15:]) == each["kept"]
        assert sum(each["nuclei"].values()) == each["kept"]
    card = (tmp_path / CARD).read_text()
    assert f"| `blood` | {told['blood']['drawn']} | 103 |" in card
    assert "agreement of 0.75 or more" in card


def test_the_best_of_several_is_kept(tmp_path: Path) -> None:
    drawn = pull(Recipe.of(COUNTS, {"best_of": 4}), tmp_path)
    assert sum(job.n for job in drawn) == 4 * 105
    pairs = iter(kept(tmp_path))
    for job in drawn:
        seeds = [image_seed(job.seed, index) for index in range(job.n)]
        for start in range(0, job.n, 4):
            row = seeds[start : start + 4]
            alike = [seed for seed in row if bool(seed % 5) == bool(row[0] % 5)]
            assert next(pairs)["agreement"] == max(map(agreement, alike))


def test_of_pairs_that_agree_alike_the_likeliest_is_kept() -> None:
    def pair(nuclei: int, agreement: float, likelihood: float) -> Quality:
        return Quality(nuclei, agreement, LogLikelihood(likelihood, -1.0))

    row = [pair(3, 0.5, -9.0), pair(3, 0.5, -8.0), pair(0, 1.0, -1.0), pair(2, 0.4, -1.0)]
    assert passing(row, 4, None) == [1]
    assert passing(row[::-1], 4, None) == [2]
    assert passing(row[2:], 2, None) == [0], "the first has no nuclei"
    assert passing(row, 4, 0.6) == []
    assert passing(row, 1, 0.5) == [0, 1, 2]
    with pytest.raises(ValueError, match="no segmenter"):
        passing([Quality(1, None, LogLikelihood(-1.0, -1.0))], 1, 0.5)


def test_where_too_few_pass_the_run_ends_and_says_how_few(tmp_path: Path) -> None:
    recipe = Recipe.of({"blood": 5}, {"min_agreement": 1.0})
    for _ in range(2):
        with pytest.raises(
            UsageError, match=r"min_agreement: got 1\.0.* of 100.* 5 pairs of 'blood'"
        ):
            pull(recipe, tmp_path)


def test_without_a_segmenter_nothing_can_be_filtered(tmp_path: Path) -> None:
    pull(Recipe.of({"blood": 2}, {}), tmp_path / "all", segmenter=False)
    assert [pair["agreement"] for pair in kept(tmp_path / "all")] == [None, None]
    for name, value in FILTER.items():
        with pytest.raises(UsageError, match=f"{name}.*'small'.*no segmenter"):
            pull(Recipe.of({"blood": 2}, {name: value}), tmp_path / name, segmenter=False)


def test_a_job_that_is_safe_is_not_drawn_again(tmp_path: Path) -> None:
    recipe = Recipe.of(COUNTS, {"shard_size": 101})
    with stopping(10**6) as made:
        pull(recipe, tmp_path / "whole")
    with pytest.raises(Stopped), stopping(len(made) - 1):
        pull(recipe, tmp_path / "late")
    assert pull(recipe, tmp_path / "late") == []


def test_a_folder_in_which_nothing_is_safe_takes_another_recipe(tmp_path: Path) -> None:
    with opened(tmp_path):
        DatasetFolder(tmp_path, Plan(Recipe.of({"blood": 1}, {}), {"blood": MODEL})).begin()
    assert [job.n for job in pull(Recipe.of({"blood": 2}, {}), tmp_path)] == [2]
    with pytest.raises(UsageError, match="begun with labels"):
        pull(Recipe.of({"blood": 1}, {}), tmp_path)
