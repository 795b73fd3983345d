"""A sweep of sampling settings, through the command that users type; the rule by hand."""

import json
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.checkpoint import create_random_checkpoint, load_checkpoint
from model.config import NAMED_SIZES
from model.request import ByStream, Label, SamplingSettings
from tests.conftest import DEADLINE_S
from tests.training.commands import start
from tests.training.phantoms import write_phantoms
from training import segmenter, sweep
from training.evaluation.choice import (
    Choice,
    Point,
    PointScores,
    choose,
    choose_of,
    error,
    with_means,
)
from training.evaluation.dots import ticks
from training.evaluation.metric import Metric
from training.evaluation.sweep_page import Results

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("small_features")]

LABELS = [Label("fluorescence", "modality"), Label("histology", "modality"), Label("lung", "organ")]
MEASURED = ("fluorescence", "histology")
"""Of the lung there are no patches."""
SMALL = ("--samples", 8, "--threads", 1, "--top-k", 50)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight validation patches a label, which is one group."""
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), each=24, a_group=8)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a segmenter, both as they were born."""
    path = tmp_path_factory.mktemp("checkpoint") / "test"
    create_random_checkpoint(path, "test", NAMED_SIZES["test"], labels=LABELS)
    torch.manual_seed(0)
    segmenter.save(segmenter.build(4), path / "segmenter.safetensors", 4)
    return path


@pytest.fixture
def checkpoint(shipped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def swept(shipped: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two guidances, one of them for appearance alone, by two temperatures."""
    out = tmp_path_factory.mktemp("sweep")
    run(shipped, data, out)
    return out


def words(checkpoint: Path, data: Path, out: Path, *more: object) -> list[str]:
    grid = ("--guidance", "1,1:2", "--temperature", "0.8,1")
    asked = ("--checkpoint", checkpoint, "--data", data, "--out", out, *grid, *SMALL, *more)
    return [str(word) for word in asked]


def run(checkpoint: Path, data: Path, out: Path, *more: object) -> None:
    sweep.main(words(checkpoint, data, out, *more))


def refused(capsys: pytest.CaptureFixture[str], *asked: object) -> str:
    """What the command says when it exits with 1: one line."""
    with pytest.raises(SystemExit) as ended:
        sweep.main([str(word) for word in asked])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_sweep_holds_every_figure_of_every_point_and_says_what_it_chose(swept: Path) -> None:
    written = json.loads((swept / "sweep.json").read_text())
    settings = [point["settings"] for point in written["points"]]
    apart = {"structure": 1, "appearance": 2}
    assert [(s["cfg_scale"], s["temperature"], s["top_k"]) for s in settings] == [
        (1, 0.8, 50), (1, 1, 50), (apart, 0.8, 50), (apart, 1, 50),
    ]  # fmt: skip
    for point in written["points"]:
        found = {(m["name"], m["label"]): m for m in point["metrics"]}
        for name in ("fid", "kid", "recall", "pair_agreement", "nuclei_ratio", "area_ratio"):
            one, other, mean = (found[name, label] for label in (*MEASURED, "all"))
            assert mean["value"] == pytest.approx((one["value"] + other["value"]) / 2)
            assert one["n"] == 8
            assert one["floor"] is not None
        assert found["kid", "histology"]["value"] > found["kid", "histology"]["floor"]
    values = {json.dumps(point["metrics"]) for point in written["points"]}
    assert len(values) == 4, "every point has samples of its own"
    for label in ("all", *MEASURED):
        [chosen] = [p for p in written["points"] if p["verdicts"][label].startswith("chosen")]
        assert written["chosen"][label] == chosen["settings"]
    assert written["stored"] is None
    page = (swept / "README.md").read_text()
    assert "| 1, 1, 50 | 2, 1, 50 |" in page
    assert "lung is not measured: no patches" in page
    for table in page.split("\n\n"):
        assert len({row.count("|") for row in table.splitlines()}) == 1 or table[0] != "|"
    for name in ("sweep", "sweep_fluorescence", "sweep_histology"):
        assert f"({name}.png)" in page
        with Image.open(swept / f"{name}.png") as picture:
            assert len(picture.getcolors(1 << 20) or []) > 10


def test_finished_points_are_not_drawn_again_but_for_other_settings_or_weights(
    swept: Path, shipped: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(swept, tmp_path / "sweep"))
    before = (out / "sweep.json").read_text()

    def drawn(checkpoint: Path, *more: object) -> int:
        """Sets of samples that the command draws."""
        capsys.readouterr()
        run(checkpoint, data, out, *more)
        return capsys.readouterr().out.count(": drew 8 of 8")

    assert drawn(shipped) == 0
    assert (out / "sweep.json").read_text() == before
    (out / "parts" / "guidance_1-2_temperature_1_top_k_50_histology.json").unlink()
    assert drawn(shipped) == 1, "one label of one point"
    assert (out / "sweep.json").read_text() == before, "the same seeds give the same figures"
    assert drawn(shipped, "--guidance", "1,3", "--temperature", "1") == 2
    assert drawn(shipped, "--guidance", "1", "--temperature", "1", "--top-k", "50,20:50") == 2
    other = create_random_checkpoint(
        tmp_path / "other", "test", NAMED_SIZES["test"], labels=LABELS, seed=1
    )
    shutil.copy(shipped / "segmenter.safetensors", other)
    assert drawn(other, "--guidance", "1", "--temperature", "1") == 2


def test_store_makes_what_is_chosen_the_defaults_by_label_and_draws_nothing_again(
    swept: Path, checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(swept, tmp_path / "sweep"))
    before = load_checkpoint(checkpoint)
    for _ in range(2):
        run(checkpoint, data, out, "--store")
        after = load_checkpoint(checkpoint)
        written = json.loads((out / "sweep.json").read_text())
        chosen = {n: SamplingSettings.from_dict(s) for n, s in written["chosen"].items()}
        assert after.config.defaults == chosen["all"]
        for label in MEASURED:
            assert after.config.settings(label) == chosen[label]
        assert after.config.settings("lung") == chosen["all"]
        assert written["stored"] == after.version
    assert after.version != before.version
    labels = after.config.labels
    assert after.config == replace(before.config, defaults=chosen["all"], labels=labels)
    assert after.version in (out / "README.md").read_text()
    assert "drew" not in capsys.readouterr().out


def test_interrupted_it_ends_with_130_and_goes_on_after_the_last_finished_point(
    shipped: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = words(shipped, data, tmp_path, "--guidance", "1")
    process = start("sweep", *asked)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("sweep 2/2") for line in lines), "it ended before the second point"
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, said
    assert "interrupted; run the same command again to resume" in said
    first = tmp_path / "parts" / "guidance_1_temperature_0.8_top_k_50_fluorescence.json"
    taken = first.stat().st_mtime_ns
    assert not (tmp_path / "sweep.json").exists()
    sweep.main(asked)
    said = capsys.readouterr().out
    assert said.count(": drew 8 of 8") == 2
    assert first.stat().st_mtime_ns == taken
    assert "README.md says why" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--guidance", ""), "--guidance: got '', expected numbers such as 1,1.5,1:2"),
        (("--guidance", "1,high"), "--guidance: got '1,high', expected numbers"),
        (("--guidance", "0.5,1"), "--guidance: got 0.5, expected a number from 1 to 10"),
        (("--temperature", "1,nan"), "--temperature: got nan, expected a number from 0 to 2"),
        (("--temperature", "1:3"), "--temperature, appearance: got 3.0, expected a number from"),
        (("--temperature", "1:1:1"), "--temperature: got '1:1:1', expected numbers"),
        (("--top-k", 65), "--top-k: got 65, expected an integer from 0 to 64"),
        (("--top-k", "0:1.5"), "--top-k: got '0:1.5', expected integers such as 0,50,0:100"),
        (("--samples", 7), "--samples: got 7, expected at least 8"),
        (("--features", "vgg"), "--features: got 'vgg', expected NAME=PATH with NAME one of"),
        (("--features", "uni"), "--features uni: expected --features uni=FILE.safetensors"),
        (("--licence", "MIT"), "no patches with licence in ['MIT']"),
        (("--checkpoint", "nowhere"), "--checkpoint: nowhere/config.json: cannot be read"),
    ],
)
def test_what_cannot_be_swept_is_said_in_one_line(
    more: tuple[object, ...],
    said: str,
    shipped: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert said in refused(capsys, *words(shipped, data, tmp_path, *more))
    assert not list(tmp_path.iterdir())


def test_labels_are_measured_where_there_are_real_patches_to_measure_them_by(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_phantoms(tmp_path / "few", each=6)
    said = refused(capsys, *words(checkpoint, few, tmp_path / "out"))
    assert "no label can be measured: fluorescence: 2 validation patches, under 8" in said
    other = tmp_path / "other"
    for kind in ("images", "masks"):
        shutil.copytree(few / "histology" / kind, other / "lung" / kind)
    said = refused(capsys, *words(checkpoint, other, tmp_path / "out"))
    assert "holds none of the labels of test-random" in said


def test_organs_are_swept_too(shipped: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "organs"
    labels = [Label("cytology", "modality"), Label("blood", "organ")]
    create_random_checkpoint(path, "test", NAMED_SIZES["test"], labels=labels)
    shutil.copy(shipped / "segmenter.safetensors", path)
    run(path, data, tmp_path / "out", "--guidance", 1, "--temperature", 1)
    written = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert written["labels"] == ["cytology", "blood"]


def test_a_checkpoint_without_a_segmenter_is_told_how_to_get_one(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "segmenter.safetensors").unlink()
    said = refused(capsys, *words(checkpoint, data, tmp_path / "out"))
    assert "segmenter.safetensors: not there; python -m training.segmenter" in said


def scored(kid: float, dice: float, nuclei: float = 1.0, area: float = 1.0) -> PointScores:
    """A point with a KID known to 0.01 and a Dice known to 0.005."""
    return PointScores(kid, 0.01, dice, 0.005, nuclei, area)


HALVED = scored(0.05, 0.95, nuclei=0.5)
CROWDED = scored(0.06, 0.90, nuclei=1.6)
SWOLLEN = scored(0.07, 0.90, area=1.5)
DISAGREEING = scored(0.08, 0.80)
BEST = scored(0.10, 0.87)
NEAR = scored(0.12, 0.875, nuclei=0.7, area=1.3)
CLEAREST = scored(0.30, 0.93)


def test_the_lowest_kid_wins_of_those_whose_nuclei_and_dice_are_as_in_real_pairs() -> None:
    points = [HALVED, CLEAREST, CROWDED, SWOLLEN, DISAGREEING, NEAR, BEST]
    choice = choose(points, real_dice=0.86)
    assert points[choice.best] is BEST
    assert choice.verdicts == (
        "out: 0.50 of real nuclei",
        "",
        "out: 1.60 of real nuclei",
        "out: 1.50 of their real area",
        "out: Dice under 0.860",
        "",
        "chosen",
    )
    assert [points[place] for place in choice.alike] == [NEAR]


def test_points_that_are_out_or_clearer_than_real_pairs_do_not_sway_the_choice() -> None:
    for points in ([BEST, NEAR], [NEAR, BEST, CLEAREST], [CROWDED, BEST, HALVED, NEAR]):
        assert points[choose(points, real_dice=0.86).best] is BEST


def test_where_no_point_agrees_as_well_as_real_pairs_the_best_of_them_sets_the_mark() -> None:
    points = [DISAGREEING, BEST, NEAR, CLEAREST]
    choice = choose(points, real_dice=0.99)
    assert points[choice.best] is CLEAREST
    assert choice.verdicts[1] == "out: Dice under 0.930"
    points = [DISAGREEING, BEST, NEAR]
    assert points[choose(points, real_dice=0.99).best] is BEST, "0.87 is within noise of 0.875"


def test_where_no_point_has_nuclei_as_real_patches_the_nearest_is_chosen() -> None:
    none = scored(0.01, 0.99, nuclei=0.0, area=0.0)
    choice = choose([none, HALVED, CROWDED, SWOLLEN], real_dice=0.86)
    assert choice.best == 2
    assert choice.verdicts[2] == "chosen, the nearest to real nuclei; out: 1.60 of real nuclei"


def figures(label: str, kid: float, nuclei: float, dice: float = 0.9) -> list[Metric]:
    named = {"kid": kid, "pair_agreement": dice, "nuclei_ratio": nuclei, "area_ratio": nuclei}
    return [
        Metric(name, value, 0.9, "x" if name == "kid" else "", 8, label)
        for name, value in named.items()
    ]


def test_each_label_has_a_choice_of_its_own_and_others_that_of_the_means() -> None:
    cold, warm = SamplingSettings(), SamplingSettings(temperature=ByStream(1.0, 1.1))
    of_cold = figures("a", 0.1, 1.0) + figures("b", 0.3, 0.5) + figures("c", 0.3, 0.9)
    of_warm = figures("a", 0.2, 1.0) + figures("b", 0.2, 0.9) + figures("c", 0.1, 0.9)
    points = [Point(cold, with_means(of_cold)), Point(warm, with_means(of_warm))]
    choices = {label: choose_of(points, "x", label) for label in ("all", "a", "b", "c")}
    results = Results({}, "x", {}, points, choices, None)
    assert results.overall == warm
    assert results.of_labels == {"a": cold}


def test_samples_without_nuclei_have_no_dice_and_are_chosen_for_nothing() -> None:
    nothing = with_means(figures("a", 0.1, 0.0, math.nan) + figures("b", 0.1, 1.0, 0.8))
    points = [Point(SamplingSettings(), nothing), Point(SamplingSettings(2.0), nothing)]
    assert points[0].of("all")["pair_agreement", ""].value == 0.8
    points[1] = Point(SamplingSettings(2.0), with_means(figures("a", 0.3, 1.0)))
    assert choose_of(points, "x", "a").verdicts == ("out: 0.00 of real nuclei", "chosen")


def test_means_over_labels_carry_their_noise() -> None:
    one = Metric("kid", 0.1, 0.0, "x", 8, "a", (0.1 - 1.96 * 0.03, 0.1 + 1.96 * 0.03))
    other = Metric("kid", 0.3, 0.1, "x", 8, "b", (0.3 - 1.96 * 0.04, 0.3 + 1.96 * 0.04))
    mean = with_means([one, other])[-1]
    assert (mean.label, mean.n, mean.features) == ("all", 16, "x")
    assert mean.value == pytest.approx(0.2)
    assert mean.floor == pytest.approx(0.05)
    assert error([one]) == pytest.approx(0.03)
    assert error([mean]) == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("best", "said"),
    [
        (SamplingSettings(1.0, 1.0), []),
        (SamplingSettings(ByStream(1.0, 2.0), 1.0), ["guidance of appearance"]),
        (SamplingSettings(1.0, 0.9, 20), ["temperature of both", "top-k of both"]),
        (SamplingSettings(1.0, ByStream(1.0, 1.1)), ["temperature of appearance"]),
    ],
)
def test_a_choice_at_the_edge_of_its_grid_is_said(best: SamplingSettings, said: list[str]) -> None:
    """Guidance 1 and top-k 0 are off, and have nothing beyond them."""
    grid = [
        SamplingSettings(scale, heat, top_k)
        for scale in (1.0, ByStream(1.0, 2.0))
        for heat in (0.9, 1.0, ByStream(1.0, 1.1), 1.1)
        for top_k in (20, 0)
    ]
    points = [Point(settings, []) for settings in grid]
    choice = Choice(grid.index(best), ("",) * len(points), ())
    assert Results({}, "", {}, points, {"a": choice}, None).edges("a") == said


def test_ticks_are_round_and_within() -> None:
    assert ticks(0.01, 0.99) == pytest.approx([0.5])
    assert ticks(-0.1, 1.1) == pytest.approx([0, 0.5, 1])
    assert ticks(128, 255) == pytest.approx([150, 200, 250])
    assert ticks(2, 2) == [2]
