"""The report of a checkpoint, through the command that users type."""

import json
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest
import torch.nn.functional as F
from PIL import Image

from model.checkpoint import FACTS, create_random_checkpoint, load_checkpoint, store_defaults
from model.config import NAMED_SIZES
from model.request import Audit, ByStream, Label, Learned, SamplingSettings
from tests.training.commands import run
from tests.training.phantoms import write_phantoms
from training.evaluate import store_audit
from training.evaluation.features import Features
from training.evaluation.report import Missing
from training.run import StageError

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("small_features")]

LABELS = [Label("cytology", "modality"), Label("fluorescence", "modality"), Label("blood", "organ")]
CELLS = Features("cells", lambda images: F.adaptive_avg_pool2d(images, 8).flatten(1))
SMALL = ("--samples", 8, "--synthetic", 8, "--segmenter-steps", 2, "--seeds", 2, "--threads", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight validation patches a label, which is one group."""
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), each=16, a_group=8)


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "test"
    create_random_checkpoint(path, "test", NAMED_SIZES["test"], labels=LABELS)
    words = ("--data", data, "--image-size", 64, "--steps", 10, "--threads", 1)
    run("segmenter", *words, "--out", path / "segmenter.safetensors")
    return path


def report(checkpoint: Path, data: Path, out: Path, *words: object, code: int = 0) -> str:
    places = ("--checkpoint", checkpoint, "--data", data, "--out", out)
    return run("evaluate", *places, *SMALL, *words, code=code)


@pytest.fixture
def features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some that cost nothing; of others than these a report says what they need."""

    def parse(options: Sequence[str]) -> tuple[list[Features], list[Missing]]:
        return [CELLS] if options else [], []

    monkeypatch.setattr("training.evaluate.parse_features", parse)


def test_a_report_holds_every_figure_its_floor_and_pictures(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    report(checkpoint, data, tmp_path, "--features", "efficientnet-lite0")
    written = json.loads((tmp_path / "report.json").read_text())
    metrics = written["metrics"]
    assert {"name", "value", "floor", "features", "n", "label"} <= metrics[0].keys()
    names = {metric["name"] for metric in metrics}
    assert {
        "fid", "kid", "precision", "recall", "density", "coverage", "style_score",
        "reconstruction_psnr", "structure_use", "swap_within_gap", "pair_agreement",
        "reconstruction_kid", "swap_kid", "reconstruction_told_apart", "told_apart",
        "reconstruction_lattice", "swap_checkerboard", "swap_within_gap_poor_copy",
        "nuclei_area_distance", "segmenter Dice, group I", "memorised_tokens",
        "structure_centroid_distance", "parameters_prior", "seconds_an_image",
    } <= names  # fmt: skip
    kid = next(metric for metric in metrics if metric["name"] == "kid")
    assert kid["features"] == "EfficientNet-lite0"
    assert kid["floor"] < kid["value"]
    needs = [missing["needs"] for missing in written["missing"]]
    assert any("MahmoodLab/UNI" in need for need in needs)
    assert any("AlexNet" in need for need in needs)
    assert any("instance maps" in need for need in needs)
    page = (tmp_path / "README.md").read_text()
    for picture in ("samples.jpg", "swaps.jpg", "closest.jpg", "tsne.png", "nuclei.png"):
        assert f"({picture})" in page
        with Image.open(tmp_path / picture) as opened:
            assert opened.width >= 64


def test_a_finished_section_is_not_taken_again_but_for_other_settings(
    checkpoint: Path, data: Path, tmp_path: Path, features: None
) -> None:
    words = ("--sections", "samples,reconstruction,cost")
    report(checkpoint, data, tmp_path, *words)
    (tmp_path / "samples.jpg").unlink()
    (tmp_path / "parts" / "cost.json").unlink()
    report(checkpoint, data, tmp_path, *words)
    assert not (tmp_path / "samples.jpg").exists()
    assert (tmp_path / "parts" / "cost.json").exists()
    report(checkpoint, data, tmp_path, *words, "--features", "cells")
    assert (tmp_path / "samples.jpg").exists()


def test_a_report_says_what_labels_and_streams_are_drawn_with(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    usual = SamplingSettings(1.5, 1.0, 50)
    store_defaults(path, usual, {"blood": SamplingSettings(ByStream(1.0, 2.0), 0.9, 50)})
    out = tmp_path / "report"
    report(path, data, out, "--sections", "samples")
    said = (
        "guidance 1.5, temperature 1, top-k 50, top-p 1; blood: guidance 1:2, temperature 0.9 "
        "(1:2 is 1 for structure, 2 for appearance)"
    )
    assert json.loads((out / "report.json").read_text())["settings"] == said
    assert f"- settings: {said}\n" in (out / "README.md").read_text()


def test_sections_can_be_chosen(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    report(checkpoint, data, tmp_path, "--sections", "cost,samples")
    assert {path.stem for path in (tmp_path / "parts").iterdir()} == {"cost", "samples", "missing"}
    output = report(checkpoint, data, tmp_path, "--sections", "x", code=1)
    assert "expected some of samples,reconstruction" in output


def test_a_report_can_do_without_pictures_of_real_patches(
    checkpoint: Path, data: Path, tmp_path: Path, features: None
) -> None:
    sections = "samples,reconstruction,swaps,audit"
    words = ("--sections", sections, "--features", "cells", "--no-real-pictures")
    report(checkpoint, data, tmp_path, *words)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"README.md", "report.json", "parts", "samples.jpg"}
    page = (tmp_path / "README.md").read_text()
    assert "- pictures of real patches: left out\n" in page
    assert page.count("![") == 1
    names = {
        metric["name"] for metric in json.loads((tmp_path / "report.json").read_text())["metrics"]
    }
    assert {"reconstruction_psnr", "swap_within_gap", "memorised_tokens"} <= names


def test_a_label_with_too_few_real_patches_says_so_and_holds_up_nothing(
    checkpoint: Path, tmp_path: Path, features: None
) -> None:
    data = write_phantoms(tmp_path / "few", each=6)
    report(checkpoint, data, tmp_path, "--features", "cells")
    written = json.loads((tmp_path / "report.json").read_text())
    assert "fid" not in {metric["name"] for metric in written["metrics"]}
    said = [f"{missing['name']}: {missing['needs']}" for missing in written["missing"]]
    assert any("fluorescence" in line and "8" in line for line in said)


def test_a_label_with_one_real_patch_or_none_holds_up_nothing(
    checkpoint: Path, tmp_path: Path, features: None
) -> None:
    """Fluorescence has one group, so none is held out; cytology and blood have one patch each."""
    data = write_phantoms(tmp_path / "few", each=2, a_group=1)
    manifest = data / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("fluorescence-1", "fluorescence-0"))
    report(checkpoint, data, tmp_path, "--features", "cells")
    written = json.loads((tmp_path / "report.json").read_text())
    said = [f"{missing['name']}: {missing['needs']}" for missing in written["missing"]]
    assert "swapped streams of cytology: 2 validation patches or more, there are 1" in said
    for figures in ("nuclei", "agreement", "segmenter groups", "the audit", "embeddings"):
        assert f"{figures} of fluorescence: 1 validation patch or more, there are 0" in said
    labels = {m["label"] for m in written["metrics"] if m["name"] == "pair_agreement"}
    assert labels == {"cytology", "blood"}


def test_an_audit_is_stored_where_data_sets_find_it(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "mine")
    (tmp_path / "mine" / FACTS).write_text('{"labels": {"blood": {"nuclei_a_patch": 3.5}}}')

    def figure(name: str, value: float, floor: float) -> dict[str, object]:
        return {"name": name, "label": "blood", "value": value, "floor": floor, "n": 8}

    metrics = [figure("nearest_tokens", 0.9, 0.8), figure("memorised_tokens", 0.125, 0.0)]
    (tmp_path / "report.json").write_text(json.dumps({"metrics": metrics}))
    store_audit(tmp_path / "mine", tmp_path, date(2026, 1, 2))
    audit = Audit("2026-01-02", 8, 0.9, 0.8, 0.125)
    assert load_checkpoint(tmp_path / "mine").learned == {"blood": Learned(3.5, audit)}
    (tmp_path / "report.json").write_text(json.dumps({"metrics": []}))
    with pytest.raises(StageError, match="has no audit"):
        store_audit(tmp_path / "mine", tmp_path, date(2026, 1, 2))


def test_data_without_a_held_out_group_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    data = write_phantoms(tmp_path / "one", each=2)
    output = report(checkpoint, data, tmp_path, code=1)
    assert "no label has two groups" in output


def test_a_report_of_other_patches_pairs_or_another_segmenter_is_taken_anew(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    words = ("--sections", "swaps")
    report(checkpoint, data, tmp_path, *words)
    part = tmp_path / "parts" / "swaps.json"
    first = part.read_text()
    other = tmp_path / "other.safetensors"
    fit = ("--data", data, "--image-size", 64, "--steps", 1, "--threads", 1, "--seed", 5)
    run("segmenter", *fit, "--out", other)
    report(checkpoint, data, tmp_path, *words, "--segmenter", other)
    agreements = [
        [m["value"] for m in json.loads(text)["metrics"] if m["name"] == "pair_agreement"]
        for text in (first, part.read_text())
    ]
    assert agreements[0] != agreements[1]
    facts = json.loads(part.read_text())["facts"]
    turned = tmp_path / "turned"
    shutil.copytree(data, turned)
    mask = next((turned / "cytology" / "masks").iterdir())
    Image.open(mask).rotate(90).save(mask)
    report(checkpoint, turned, tmp_path, *words, "--segmenter", other, "--synthetic", 7)
    again = json.loads(part.read_text())["facts"]
    changed = {name for name, value in facts.items() if again[name] != value}
    assert changed == {"patches", "synthetic pairs"}


def test_what_a_report_with_real_patches_left_is_taken_away_where_none_may_be(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    report(checkpoint, data, tmp_path, "--sections", "reconstruction,swaps,cost")
    assert {"reconstructions.jpg", "swaps.jpg"} <= {path.name for path in tmp_path.iterdir()}
    report(checkpoint, data, tmp_path, "--sections", "samples", "--no-real-pictures")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"README.md", "report.json", "parts", "samples.jpg"}
    assert {path.stem for path in (tmp_path / "parts").iterdir()} == {"samples", "missing"}


def test_each_label_s_segmenter_groups_are_kept(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    words = ("--sections", "segmentation")
    report(checkpoint, data, tmp_path, *words)
    page = (tmp_path / "README.md").read_text()
    kept = tmp_path / "parts" / "segmentation-cytology.json"
    before = kept.read_bytes(), kept.stat().st_mtime_ns
    (tmp_path / "parts" / "segmentation-fluorescence.json").unlink()
    said = report(checkpoint, data, tmp_path, *words)
    assert "segmentation: fluorescence group I " in said
    assert "segmentation: cytology" not in said
    assert (kept.read_bytes(), kept.stat().st_mtime_ns) == before
    assert (tmp_path / "README.md").read_text() == page


def test_a_folder_without_a_checkpoint_is_refused(data: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    output = report(nowhere, data, tmp_path / "out", code=1)
    assert f"--checkpoint: {nowhere}" in output


def test_data_without_a_label_of_the_checkpoint_is_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "data"
    write_phantoms(other, each=2)
    output = report(checkpoint, other, tmp_path, "--licence", "other", code=1)
    assert "licence" in output
