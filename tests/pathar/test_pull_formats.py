"""Data sets of every format, opened by the packages that people open them with."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from model.config import NAMED_SIZES
from pathar.contract import FILE_NAMES, SETTINGS, STREAMS, record_of
from pathar.manifest import check
from pathar.pull import pull_here
from pathar.recipe import FORMATS, Recipe
from pathar.verify import verify
from training.data import read_dataset
from training.evaluation import nnunet
from training.samples import read_samples

COUNTS = {"histology": 25, "blood": 12}
PAIRS = sum(COUNTS.values())
SHARD = 10
SHARDS = 4
APART = {"structure": 1.0, "appearance": (0.8, 1.1)}
SIZE = NAMED_SIZES["test"][0].image_size


@pytest.fixture(scope="module")
def pulled(test_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each format."""
    root, folders = tmp_path_factory.mktemp("pulled"), {}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATHAR_CHECKPOINT", str(test_checkpoint))
        environment.setenv("PATHAR_THREADS", "1")
        environment.setenv("PATHAR_DEVICE", "cpu")
        for form in FORMATS:
            recipe = Recipe.of(
                COUNTS, {"seed": 7, "format": form, "shard_size": SHARD, "temperature": APART}
            )
            folders[form] = root / form
            for _ in pull_here(recipe, folders[form]):
                pass
    return folders


@pytest.fixture(scope="module")
def pixels(pulled: dict[str, Path]) -> list[tuple[str, bytes, bytes]]:
    """Label, image and mask of each pair, sorted: from the plain folders."""
    found = []
    for label in COUNTS:
        for path in sorted((pulled["folder"] / label / "images").iterdir()):
            mask = path.parents[1] / "masks" / path.name
            found.append((label, path.read_bytes(), mask.read_bytes()))
    assert len(found) == PAIRS
    return sorted(found)


@pytest.mark.parametrize("form", FORMATS)
def test_each_is_complete_and_its_files_are_those_of_the_manifest(
    form: str, pulled: dict[str, Path]
) -> None:
    assert check(pulled[form]) == (PAIRS, [])
    manifest = json.loads((pulled[form] / "manifest.json").read_text())
    assert [shard["pairs"] for shard in manifest["shards"]] == [SHARD, SHARD, SHARD, 7]
    with Image.open(pulled[form] / "contact_sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
    assert not (pulled[form] / ".partial").exists()


@pytest.mark.filterwarnings("ignore")  # of webdataset
def test_webdataset_reads_the_shards(
    pulled: dict[str, Path], pixels: list[tuple[str, bytes, bytes]]
) -> None:
    import webdataset

    urls = str(pulled["webdataset"] / f"pairs-{{00000..{SHARDS - 1:05d}}}.tar")
    raw = list(webdataset.WebDataset(urls, shardshuffle=False))
    found = [
        (json.loads(each["json"])["label"], each["image.png"], each["mask.png"]) for each in raw
    ]
    assert sorted(found) == pixels
    assert [each["__key__"] for each in raw[:2]] == ["histology-000000", "histology-000001"]
    drawn = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert drawn[0]["image.png"].shape == drawn[0]["mask.png"].shape == (SIZE, SIZE, 3)
    facts = drawn[0]["json"]
    assert set(facts) == {
        *("label", "seed"),
        *(f"{name}_{stream}" for name in SETTINGS for stream in STREAMS),
        *("model_name", "model_version", "model_numerics"),
        *("nuclei", "agreement", "log_likelihood_structure", "log_likelihood_appearance"),
    }
    assert set(FILE_NAMES) < set(drawn[0])
    assert set(drawn[0]["tokens.json"]) == {"structure_tokens", "appearance_tokens"}


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package `datasets`, with a cache of its own and without the network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()
    return lambda folder: datasets.load_dataset(
        str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )


@pytest.mark.filterwarnings("ignore")  # of datasets and what it stands on
def test_hugging_faces_datasets_opens_parquet_as_images(
    pulled: dict[str, Path], pixels: list[tuple[str, bytes, bytes]], hugging_face: Any
) -> None:
    import datasets

    rows = hugging_face(pulled["parquet"])
    assert len(rows) == PAIRS
    assert isinstance(rows.features["image"], datasets.Image)
    assert isinstance(rows.features["mask"], datasets.Image)
    assert rows[0]["image"].mode == "RGB"
    assert rows[0]["image"].size == (SIZE, SIZE)
    assert rows[0]["mask"].mode == "L"
    assert {name.partition(".")[0] for name in FILE_NAMES} < set(rows.features)
    assert rows[0]["name"] == "histology-000000"
    said = record_of(rows.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"])
    temperature = said["settings"]["temperature"]
    assert temperature["structure"] == rows[0]["temperature_structure"] == 1.0
    assert 0.8 <= temperature["appearance"] == rows[0]["temperature_appearance"] <= 1.1
    assert (rows[0]["nuclei"], rows[0]["agreement"]) == (said["nuclei"], said["agreement"])
    assert rows[0]["log_likelihood_structure"] == said["log_likelihood"]["structure"]
    kept = rows.cast_column("image", datasets.Image(decode=False))
    kept = kept.cast_column("mask", datasets.Image(decode=False))
    assert sorted((r["label"], r["image"]["bytes"], r["mask"]["bytes"]) for r in kept) == pixels


@pytest.mark.filterwarnings("ignore")  # of datasets and what it stands on
def test_hugging_faces_datasets_opens_the_tar_shards_too(
    pulled: dict[str, Path], hugging_face: Any
) -> None:
    rows = hugging_face(pulled["webdataset"])
    assert len(rows) == PAIRS
    assert rows[0]["image.png"].size == (SIZE, SIZE)
    assert rows[0]["json"]["label"] == "histology"


def test_plain_folders_are_what_the_training_reads(pulled: dict[str, Path]) -> None:
    samples = read_samples(pulled["folder"], [])
    assert [sum(s.labels[0].name == label for s in samples) for label in COUNTS] == [25, 12]
    assert len(read_dataset(pulled["folder"], [], SIZE).images) == PAIRS


def test_labels_of_nnunet_are_the_masks_and_keep_what_they_say(
    pulled: dict[str, Path], pixels: list[tuple[str, bytes, bytes]]
) -> None:
    by_image = {image: mask for _, image, mask in pixels}
    images = sorted((pulled["nnunet"] / "imagesTr").iterdir())
    assert len(images) == PAIRS
    for path in images:
        label = pulled["nnunet"] / "labelsTr" / path.name.replace("_0000", "")
        with Image.open(label) as ids, Image.open(io.BytesIO(by_image[path.read_bytes()])) as mask:
            assert np.array_equal(np.asarray(ids) * 255, np.asarray(mask))
            assert ids.info["pathar"] == mask.info["pathar"]


@pytest.mark.parametrize("form", FORMATS)
def test_verify_finds_each_pair_as_it_was_drawn(
    form: str, pulled: dict[str, Path], test_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"PATHAR_CHECKPOINT": str(test_checkpoint), "PATHAR_DEVICE": "cpu"}
    settings["PATHAR_THREADS"] = "1"
    assert verify([pulled[form]], settings, regenerate=True) == 0
    assert capsys.readouterr().out.endswith(f"\n{PAIRS} authentic\n")


def test_verify_finds_swapped_masks_in_shards_and_painted_labels(
    pulled: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = {"histology-000000": "histology-000001", "histology-000001": "histology-000000"}
    with (
        tarfile.open(pulled["webdataset"] / "pairs-00000.tar") as whole,
        tarfile.open(tmp_path / "a.tar", "w") as altered,
    ):
        for member in whole:
            pair, _, name = member.name.partition(".")
            source = f"{swapped.get(pair, pair)}.{name}" if name == "mask.png" else member.name
            content = whole.extractfile(source)
            assert content is not None
            member.size = whole.getmember(source).size
            altered.addfile(member, content)
    assert verify([tmp_path / "a.tar"], {}) == 1
    assert capsys.readouterr().out.endswith("\n2 altered, 8 authentic; nothing was drawn again\n")
    shutil.copytree(pulled["nnunet"], tmp_path / "nnunet")
    label = tmp_path / "nnunet" / "labelsTr" / "histology-000003.png"
    with Image.open(label) as ids:
        ids.putpixel((0, 0), 1 - ids.getpixel((0, 0)))
        ids.save(label, pnginfo=texts_of(ids))
    assert verify([label], {}) == 1
    assert verify([tmp_path / "nnunet"], {}) == 1
    assert capsys.readouterr().out.endswith(
        f"1 altered, {PAIRS - 1} authentic; nothing was drawn again\n"
    )


def texts_of(image: Image.Image) -> PngImagePlugin.PngInfo:
    texts = PngImagePlugin.PngInfo()
    for key, value in image.info.items():
        if isinstance(value, str):
            texts.add_itxt(str(key), value)
    return texts


@pytest.mark.processes
@pytest.mark.skipif(not nnunet.installed(), reason="needs the package nnunetv2")
@pytest.mark.filterwarnings("ignore")  # of nnU-Net and what it stands on
def test_nnunet_finds_its_raw_layout_intact(pulled: dict[str, Path]) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    verify_dataset_integrity(str(pulled["nnunet"]), num_processes=1)
    damaged = pulled["nnunet"] / "labelsTr" / os.listdir(pulled["nnunet"] / "labelsTr")[0]
    before = damaged.read_bytes()
    try:
        Image.new("L", (SIZE, SIZE), 255).save(damaged)
        with pytest.raises(RuntimeError, match="unexpected labels"):
            verify_dataset_integrity(str(pulled["nnunet"]), num_processes=1)
    finally:
        damaged.write_bytes(before)
