"""docs/datasets.md: its recipe is one, its trainings run, and what it says of the client holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pathar.manifest import check
from pathar.recipe import FIELDS, FORMATS, SETTINGS, Recipe
from tests.pathar.test_cli import called
from tests.running import Up

TEXT = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
TRAINING, CLIENT, DRAWN = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
[RECIPE] = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


def test_the_recipe_is_one(tmp_path: Path) -> None:
    (tmp_path / "pairs.toml").write_text(RECIPE)
    recipe = Recipe.of(tmp_path / "pairs.toml", {})
    assert recipe.settings == {"temperature": 1.0, "cfg_scale": (1.0, 2.0)}


def test_every_field_setting_and_format_is_named() -> None:
    for name in (*FIELDS, *SETTINGS, *FORMATS):
        assert f"`{name}`" in TEXT


@pytest.mark.processes
def test_the_training_runs_on_what_the_command_pulls(test_checkpoint: Path, tmp_path: Path) -> None:
    assert len(TRAINING.splitlines()) <= 21
    words = ("histology=24", "cytology=24", "--seed", "7", "--shard-size", "24")
    pulled = called("pull", *words, "--out", str(tmp_path / "pairs"), checkpoint=test_checkpoint)
    assert pulled.returncode == 0, pulled.stderr
    done = subprocess.run(
        [sys.executable, "-c", TRAINING], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"epoch 0: loss \S+\nepoch 1: loss \S+\n", done.stdout)


def run(code: str, stack: Up, folder: Path) -> str:
    """What code prints that asks the service of the tests."""
    code = code.replace("http://127.0.0.1:8000", stack.run()["url"])
    words = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_draws_while_it_runs(stack: Up, tmp_path: Path) -> None:
    assert len(run(DRAWN, stack, tmp_path).splitlines()) == 8


def test_the_client_pulls(stack: Up, tmp_path: Path) -> None:
    run(CLIENT, stack, tmp_path)
    assert check(tmp_path / "pairs") == (30, [])
