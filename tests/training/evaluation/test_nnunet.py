"""nnU-Net in the place of the groups' segmenter."""

import json
import os
from pathlib import Path

import pytest
import torch

from model.checkpoint import create_random_checkpoint
from model.config import NAMED_SIZES
from model.request import Label
from tests.training.commands import run
from tests.training.evaluation.test_segmentation import pairs_of
from tests.training.phantoms import write_phantoms
from training.evaluation import nnunet
from training.evaluation.segmentation import group_scores

pytestmark = pytest.mark.processes

needs_package = pytest.mark.skipif(not nnunet.installed(), reason="needs the package nnunetv2")


@needs_package
@pytest.mark.filterwarnings("ignore")  # of nnU-Net and what it stands on
def test_nnunet_learns_nuclei_from_pairs_and_leaves_no_setting_behind() -> None:
    real, drawn = (pairs_of(8, seed, stains=1) for seed in (0, 1))
    validation = pairs_of(4, 2, stains=1)
    (score,) = group_scores(
        "a", real, drawn, validation, groups={"III": (4, 8)}, steps=20, seeds=1,
        network=nnunet.NNUNET,
    )  # fmt: skip
    assert score.metric().features == "nnU-Net"
    chance = 2 * validation.masks.float().mean() / (1 + validation.masks.float().mean())
    assert score.mean > chance + 0.2, "better than to call everything a nucleus"
    assert not [name for name in os.environ if name.startswith("nnUNet")]


def report(folder: Path) -> dict[str, list[dict[str, object]]]:
    data, checkpoint = write_phantoms(folder / "phantoms", each=4), folder / "checkpoint"
    create_random_checkpoint(
        checkpoint, "test", NAMED_SIZES["test"], labels=[Label("histology", "modality")]
    )
    run(
        "evaluate", "--checkpoint", checkpoint, "--data", data, "--out", folder / "out",
        "--sections", "segmentation", "--segmentation-network", "nnunet", "--synthetic", 1,
        "--segmenter-steps", 1, "--seeds", 1, "--threads", 1,
    )  # fmt: skip
    written: dict[str, list[dict[str, object]]] = json.loads(
        (folder / "out" / "report.json").read_text()
    )
    return written


@needs_package
@pytest.mark.filterwarnings("ignore")
def test_a_report_names_it_beside_its_dice(tmp_path: Path) -> None:
    metrics = report(tmp_path)["metrics"]
    assert {metric["name"] for metric in metrics} == {
        "segmenter Dice, group I",
        "segmenter Dice, group all real",
    }
    assert {metric["features"] for metric in metrics} == {"nnU-Net"}


@pytest.mark.skipif(nnunet.installed(), reason="the package nnunetv2 is there")
def test_without_the_package_a_report_says_what_to_install(tmp_path: Path) -> None:
    written = report(tmp_path)
    assert not written["metrics"]
    assert any("nnunetv2" in str(missing["needs"]) for missing in written["missing"])


def test_pairs_are_named_as_often_as_their_weights_ask(tmp_path: Path) -> None:
    weights = torch.tensor([0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    nnunet._split(tmp_path, [f"pair{n}" for n in range(7)], weights)
    (split,) = json.loads((tmp_path / "splits_final.json").read_text())
    assert split["train"].count("pair0") == split["train"].count("pair1") == 5
    assert split["train"].count("pair6") == 1
