"""The folder of a data set, stopped at each change that it makes to the disk."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pathar.contract import image_seed
from pathar.dataset_folder import DatasetFolder, is_complete, opened
from pathar.errors import UsageError
from pathar.recipe import FORMATS, ModelRef, Plan, PlannedJob, Recipe
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
def stopping(after: int) -> Iterator[list[str]]:
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
        for owner, name in CHANGES:
            patch.setattr(owner, name, counted(name, getattr(owner, name)))
        yield made


def png(mode: str, colour: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def files(seed: int) -> dict[str, bytes]:
    """A pair that follows from its seed."""
    image = png("RGB", (seed % 251, seed % 241, seed % 239))
    tokens = f'{{"seed":{seed}}}'.encode()
    grey = {"mask.png": png("L", 255), "instances.png": png("I;16", 1)}
    return {"image.png": image, **grey, "tokens.json": tokens}


def pull(recipe: Recipe, out: Path) -> list[PlannedJob]:
    """One run; the jobs that it had to draw."""
    if is_complete(out, recipe):
        return []
    with opened(out):
        folder = DatasetFolder(out, Plan(recipe, dict.fromkeys(recipe.labels, MODEL)))
        folder.begin()
        folder.write_shards()
        missing = folder.missing()
        for job in missing:
            images = [files(image_seed(job.seed, index)) for index in range(job.n)]
            settings = {"cfg_scale": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
            with folder.keeping(job) as file:
                write_job(file, job, MODEL, settings, images)
            folder.write_shards(job)
        assert folder.safe == recipe.pairs
        folder.finish()
    return missing


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_wherever_a_run_is_stopped_the_next_one_makes_the_same_of_it(
    form: str, tmp_path: Path
) -> None:
    recipe = Recipe.of(COUNTS, {"format": form, "shard_size": 101})
    with stopping(10**6) as made:
        pull(recipe, tmp_path / "whole")
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
