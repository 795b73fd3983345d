"""One command from patches to a checkpoint: killed, repeated, changed."""

import csv
import json
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from model.checkpoint import load_checkpoint, store_defaults
from model.request import SamplingSettings
from tests.conftest import DEADLINE_S
from tests.training.phantoms import COLUMNS, write_phantoms
from tests.training.test_stages import run, start
from training import export as training_export
from training import train
from training.data import DataError, compared_split, read_dataset
from training.prior import read_tokens

pytestmark = pytest.mark.processes

STEPS = ("--tokenizer-steps", "6", "--prior-steps", "4", "--segmenter-steps", "4")
SETTINGS = ("--size", "test", "--fewest-groups", "3", *STEPS)
STAGES = ["teacher", "tokenizer", "tokens", "prior", "export", "judge"]


def words(data: Path, folder: Path) -> list[str]:
    places = ("--data", data, "--workdir", folder / "run", "--out", folder / "mine")
    return [*map(str, places), *SETTINGS]


def times(folder: Path) -> dict[str, int]:
    """When each file that a stage goes on from, or that is served, was written."""
    files = [*folder.rglob("*.safetensors"), folder / "mine" / "config.json"]
    return {file.name: file.stat().st_mtime_ns for file in files}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms with an organ of two groups, and one of three that all are held out."""
    root = write_phantoms(tmp_path_factory.mktemp("phantoms"))
    with (root / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[16:20]:
        row["organ"] = "colon"
    for row in (rows[11], rows[13], rows[35]):
        row["organ"] = "thymus"
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def said(data: Path, folder: Path) -> str:
    """What a run without interruption prints."""
    return run("train", *words(data, folder))


def test_it_makes_a_checkpoint_whose_labels_have_enough_groups(folder: Path, said: str) -> None:
    assert "labels left out for too few groups: colon (2)" in said
    assert (
        "labels left out because they have no group for training or none for validation: thymus (3)"
        in said
    )
    config = load_checkpoint(folder / "mine").config
    assert [label.name for label in config.labels] == [
        "cytology", "fluorescence", "histology", "blood",
    ]  # fmt: skip
    assert config.labels == read_tokens(folder / "run").labels
    assert (config.name, config.licence) == ("mine", "CC0-1.0")
    assert (folder / "mine" / "segmenter.safetensors").exists()


def test_killed_it_goes_on_and_ends_with_the_very_same_checkpoint(
    data: Path, folder: Path, said: str, tmp_path: Path
) -> None:
    process = start("train", *words(data, tmp_path))
    record, deadline = tmp_path / "run" / "train.json", time.monotonic() + DEADLINE_S
    while not record.exists() or "tokenizer" not in json.loads(record.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    teacher = (tmp_path / "run" / "teacher.safetensors").stat().st_mtime_ns
    again = run("train", *words(data, tmp_path))
    assert "train: teacher is finished" in again
    assert "train: tokenizer: " in again
    assert (tmp_path / "run" / "teacher.safetensors").stat().st_mtime_ns == teacher
    for name in ("config.json", "model.safetensors", "segmenter.safetensors"):
        assert (tmp_path / "mine" / name).read_bytes() == (folder / "mine" / name).read_bytes()


def test_given_again_it_runs_nothing(
    data: Path, folder: Path, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(folder)
    train.main(words(data, folder))
    out = capsys.readouterr().out
    assert [name for name in STAGES if f"train: {name} is finished" in out] == STAGES
    assert times(folder) == before


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            ("--tokenizer-steps", "7"),
            "its tokenizer was started with --steps 6, now it is --steps 7",
        ),
        (("--segmenter-steps", "7"), "its teacher was started with --steps 4, now it is --steps 7"),
        (("--perceptual", "/f"), "started with no --perceptual, now it is --perceptual /f"),
        (("--size", "small"), "with --image-size 64, now it is --image-size 256"),
        (("--fewest-groups", "1"), "lists other patches or labels than those chosen now"),
        (("--prior-steps", "0"), "--prior-steps: got 0, expected at least 1"),
        (("--start-from", "/nowhere"), "started with no --start-from, now it is --start-from /now"),
        (("--workdir", "NEW"), "mine holds another checkpoint"),
    ],
)
def test_other_settings_are_refused_and_change_nothing(
    data: Path,
    folder: Path,
    said: str,
    changed: tuple[str, str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = times(folder)
    with pytest.raises(SystemExit) as ended:
        train.main([*words(data, folder), *(w.replace("NEW", str(tmp_path)) for w in changed)])
    assert ended.value.code == 1
    assert says in capsys.readouterr().err
    assert times(folder) == before
    assert not list(tmp_path.iterdir())


def test_patches_that_have_changed_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patches, folder = tmp_path / "patches", tmp_path / "trained"
    shutil.copytree(data, patches)
    train.main(words(patches, folder))
    before = times(folder)
    mask = next((patches / "histology" / "masks").iterdir())
    Image.open(mask).rotate(180).save(mask)
    with pytest.raises(SystemExit) as ended:
        train.main(words(patches, folder))
    assert ended.value.code == 1
    assert "are not what they were when this run started" in capsys.readouterr().err
    assert times(folder) == before


def test_another_name_keeps_the_settings_that_a_sweep_has_stored(
    data: Path, folder: Path, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    out = tmp_path / "mine"
    export = ["--workdir", str(tmp_path / "run"), "--out", str(out)]
    training_export.main(export)
    first = load_checkpoint(out).config.defaults
    assert first == SamplingSettings(1.5, 1.0, min(100, 64), 1.0)
    store_defaults(out, SamplingSettings(2.0, 1.1, 50, 0.9))
    training_export.main([*export, "--name", "other"])
    again = load_checkpoint(out).config
    assert (again.name, again.defaults) == ("other", SamplingSettings(2.0, 1.1, 50, 0.9))
    assert "keeps the settings that it recommends" in capsys.readouterr().out
    training_export.main([*export, "--temperature", "0.9"])
    assert load_checkpoint(out).config.defaults == replace(first, temperature=0.9)


def test_the_checkpoint_knows_which_groups_were_held_out(
    data: Path, folder: Path, said: str, tmp_path: Path
) -> None:
    ours = read_dataset(folder / "run" / "patches", [], 64)
    assert compared_split(folder / "mine", ours) == "held out in training"
    assert compared_split(folder / "mine", read_dataset(data, [], 64)).startswith("NOT those")
    assert compared_split(tmp_path, ours).startswith("unknown")
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(DataError, match=r"data\.json: cannot be read"):
        compared_split(tmp_path, ours)


def test_more_prior_steps_go_on_from_the_tokens_that_are_there(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(words(data, tmp_path))
    before = times(tmp_path)
    train.main([*words(data, tmp_path), "--prior-steps", "6"])
    assert "prior after 6 steps" in capsys.readouterr().out
    kept = {name for name, time_ns in times(tmp_path).items() if before[name] == time_ns}
    assert kept == {"teacher.safetensors", "tokenizer.safetensors", "tokens.safetensors"}


def test_what_a_late_stage_would_refuse_is_refused_before_the_first(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--perceptual", "--start-from"):
        with pytest.raises(SystemExit):
            train.main([*words(data, tmp_path), flag, str(tmp_path / "nowhere")])
        assert "nowhere" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
