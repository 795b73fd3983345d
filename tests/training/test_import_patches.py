"""Importing patches: each layout is drawn and compared with what `read_dataset` reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.request import Label
from tests.training.import_sources import (
    LICENCE,
    SIZE,
    SLIDES,
    assert_cut_from,
    bring_in,
    of_group,
    patch,
    save,
    write_slides,
)
from training.importing import ImportRefused
from training.pictures import Rules
from training.rasters import SourceError
from training.run import counted
from training.tiles import tile_places

# -- how an original is cut -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "starts"), [(256, [0]), (512, [0, 256]), (257, [0, 1]), (1000, [0, 248, 496, 744])]
)
def test_tiles_cover_an_original_and_overlap_where_they_must(
    length: int, starts: list[int]
) -> None:
    assert tile_places((256, length), 256) == [(0, start) for start in starts]
    assert tile_places((length, 256), 256) == [(start, 0) for start in starts]


# -- image + mask folders -------------------------------------------------------------------------

MASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "binary.png": lambda labels: labels > 0,
    "ones.png": lambda labels: (labels > 0).astype(np.uint8),
    "white.bmp": lambda labels: (labels > 0).astype(np.uint8) * 255,
    "instances.tif": lambda labels: labels,
    "wide.tif": lambda labels: labels.astype(np.int32) * 1000,
    "instances.npy": lambda labels: labels,
    "coloured.png": lambda labels: np.stack([labels // 300, labels * 0, labels * 0], 2).astype(
        "u1"
    ),
    "opaque.png": lambda labels: np.stack(
        [*[(labels > 0) * 255] * 3, np.full(labels.shape, 255)], 2
    ).astype(np.uint8),
}


def labels_are_ids(pixels: np.ndarray) -> bool:
    return len(np.unique(pixels.reshape(-1, pixels.shape[-1]) if pixels.ndim == 3 else pixels)) > 2


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_every_kind_line_up_with_their_images(name: str, tmp_path: Path) -> None:
    image, labels = patch(1, 100, 150)
    save(tmp_path / "source/images/slide one.tif", image)
    mask = Path(name)
    save(tmp_path / f"source/masks/slide one{mask.suffix}", MASKS[name](labels))
    rules = Rules(nuclei=("ids",)) if labels_are_ids(MASKS[name](labels)) else Rules()
    dataset = bring_in("folders", tmp_path / "source", tmp_path / "out", "Blood", rules=rules)
    assert_cut_from(of_group(dataset, "slide one"), image, labels)
    assert dataset.labels == (Label("histology", "modality"), Label("blood", "organ"))
    assert {sample.licence for sample in dataset.samples} == {LICENCE}


def test_folders_beneath_the_source_keep_their_names_apart(tmp_path: Path) -> None:
    pictures = {}
    for seed, name in enumerate(("a", "b")):
        pictures[name] = image, labels = patch(seed, SIZE, SIZE)
        save(tmp_path / f"source/{name}/images/1.png", image)
        save(tmp_path / f"source/{name}/masks/1.png", (labels > 0).astype(np.uint8) * 255)
    dataset = bring_in("folders", tmp_path / "source", tmp_path / "out")
    for name, (image, labels) in pictures.items():
        assert_cut_from(of_group(dataset, f"{name}/1"), image, labels)


# -- which originals belong together ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("group_by", "groups"),
    [
        ("(.*)/", ["slide-7", "slide-7", "slide-8", "slide-8"]),
        (r"p\d+", ["p1", "p1", "p1", "p2"]),
        ("", list(SLIDES)),
    ],
)
def test_a_pattern_finds_the_group_in_an_originals_name(
    group_by: str, groups: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path / "source", *SLIDES)
    dataset = bring_in("folders", tmp_path / "source", tmp_path / "out", group_by=group_by)
    assert [sample.group for sample in dataset.samples] == groups
    sides = [{groups[i] for i in part.tolist()} for part in (dataset.training, dataset.validation)]
    assert not sides[0] & sides[1]
    said = capsys.readouterr().out
    assert (
        f"{counted(len(set(groups)), 'group')} of patches; validation never splits a group" in said
    )
    assert ("slide-7 holds 2 of them" in said) == (not group_by)


def test_an_import_given_again_with_a_pattern_keeps_its_tiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path / "source", *SLIDES)
    bring_in("folders", tmp_path / "source", tmp_path / "out")
    again = bring_in("folders", tmp_path / "source", tmp_path / "out", group_by="(.*)/")
    assert {sample.group for sample in again.samples} == {"slide-7", "slide-8"}
    assert "4 tiles, 4 of them kept" in capsys.readouterr().out


def test_an_original_that_has_changed_is_cut_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path / "source", *SLIDES)
    bring_in("folders", tmp_path / "source", tmp_path / "out")
    mask = next((tmp_path / "source").rglob("masks/*"))
    corrected = 255 - np.array(Image.open(mask).convert("L"))
    save(mask, corrected)
    again = bring_in("folders", tmp_path / "source", tmp_path / "out")
    assert "4 tiles, 3 of them kept" in capsys.readouterr().out
    whites = [int(found.sum()) for found in again.masks]
    assert int((corrected > 0).sum()) in whites


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("(.*)/p1", r"slide-8/p2_3: --group-by '\(\.\*\)/p1' finds nothing in this name"),
        ("(x)?slide", r"slide-7/p1_0: --group-by .* finds nothing"),
        ("x*", r"slide-7/p1_0: --group-by .* finds nothing"),
        ("(.*", r"--group-by: got '\(\.\*', expected a regular expression \("),
    ],
)
def test_a_pattern_that_finds_no_group_is_refused_before_anything_is_written(
    group_by: str, message: str, tmp_path: Path
) -> None:
    write_slides(tmp_path / "source", *SLIDES)
    with pytest.raises(ImportRefused, match=message):
        bring_in("folders", tmp_path / "source", tmp_path / "out", group_by=group_by)
    assert not (tmp_path / "out").exists()


def test_large_originals_and_one_in_each_folder_are_not_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path / "apart", "a/1", "b/1")
    bring_in("folders", tmp_path / "apart", tmp_path / "of apart")
    for name in ("1", "2"):
        image, labels = patch(0, 2 * SIZE, SIZE)
        save(tmp_path / f"large/images/{name}.png", image)
        save(tmp_path / f"large/masks/{name}.png", (labels > 0).astype(np.uint8))
    bring_in("folders", tmp_path / "large", tmp_path / "of large")
    assert "warning" not in capsys.readouterr().out


def test_a_modality_with_the_name_of_an_organ_is_refused(tmp_path: Path) -> None:
    write_slides(tmp_path / "source", "1")
    with pytest.raises(ImportRefused, match="--modality: histology is an organ's name too"):
        bring_in("folders", tmp_path / "source", tmp_path / "out", organ="Histology")
    assert not (tmp_path / "out").exists()


# -- NuInsSeg -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "suffix"),
    [("mask binary", ".png"), ("label masks modify", ".tif"), ("label masks", ".tif")],
)
def test_nuinsseg_organ_folders(folder: str, suffix: str, tmp_path: Path) -> None:
    pictures = {}
    for seed, organ in enumerate(("human bladder", "mouse fat (white and brown)")):
        stem = organ.replace(" ", "_") + "_01"
        pictures[stem] = image, labels = patch(seed, 128, 128)
        home = tmp_path / "source/NuInsSeg" / organ
        save(home / "tissue images" / f"{stem}.png", image)
        written = labels if suffix == ".tif" else (labels > 0).astype(np.uint8)
        save(home / folder / f"{stem}{suffix}", written)
        save(home / "overlay" / f"{stem}.png", image)
    dataset = bring_in("nuinsseg", tmp_path / "source", tmp_path / "out")
    assert [label.name for label in dataset.labels] == [
        "histology",
        "bladder",
        "mouse-fat-white-and-brown",
    ]
    for stem, (image, labels) in pictures.items():
        assert_cut_from(of_group(dataset, stem), image, labels)


# -- what is missing, and what is interrupted -----------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("folders", "images with a folder masks beside it"),
        ("nuinsseg", "tissue images"),
        ("suffixes", "no images with a mask beside them"),
    ],
)
def test_a_source_of_another_layout_is_told_what_was_looked_for(
    layout: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(SourceError, match=expected):
        bring_in(layout, tmp_path / "source", tmp_path / "out")
    with pytest.raises(SourceError, match="is not a folder"):
        bring_in(layout, tmp_path / "elsewhere", tmp_path / "out")


def test_missing_masks_are_named_in_one_run_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, labels = patch(0, SIZE, SIZE)
    white = (labels > 0).astype(np.uint8)
    for name in ("1", "2", "3"):
        save(tmp_path / f"folders/images/{name}.png", image)
        save(tmp_path / f"nuinsseg/human liver/tissue images/{name}.png", image)
        save(tmp_path / f"suffixes/{name}.tif", image)
    save(tmp_path / "folders/masks/1.png", white)
    save(tmp_path / "nuinsseg/human liver/mask binary/1.png", white)
    save(tmp_path / "suffixes/1_masks.tif", white)
    for layout in ("folders", "nuinsseg", "suffixes"):
        with pytest.raises(ImportRefused, match="2 originals cannot be used"):
            bring_in(layout, tmp_path / layout, tmp_path / "out")
        said = capsys.readouterr().err
        assert re.findall(r"(\d\.)\w+: has no mask", said) == ["2.", "3."]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        ((SIZE, SIZE), (SIZE, SIZE + 1), r"masks/1\.png: is 65 x 64 pixels, its image \S+ is 64 x"),
        (
            (SIZE, 63),
            (SIZE, 63),
            "is 63 x 64 pixels, smaller than a tile of 64 x 64.* --small skip",
        ),
    ],
)
def test_a_wrong_size_is_named(
    image: tuple[int, int],
    mask: tuple[int, int],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path / "source/images/1.png", patch(0, *image)[0])
    save(tmp_path / "source/masks/1.png", np.zeros(mask, dtype=np.uint8))
    with pytest.raises(ImportRefused) as refused:
        bring_in("folders", tmp_path / "source", tmp_path / "out")
    assert re.search(message, capsys.readouterr().err + str(refused.value))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((SIZE, SIZE), dtype=np.uint16), "type uint16 .*, expected 8 bits per channel"),
        (np.zeros((SIZE, SIZE), dtype=np.float32), "type float32 .*, expected 8 bits per channel"),
    ],
)
def test_an_image_that_would_lose_its_depth_is_refused(
    pixels: np.ndarray, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "source/images/1.tif", pixels)
    save(tmp_path / "source/masks/1.png", np.zeros((SIZE, SIZE), dtype=np.uint8))
    with pytest.raises(ImportRefused):
        bring_in("folders", tmp_path / "source", tmp_path / "out")
    assert re.search(rf"1\.tif: has values of {message}; --white", capsys.readouterr().err)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    image, labels = patch(0, SIZE, SIZE)
    for place in ("images/1.png", "images/1.tif", "masks/1.png"):
        save(tmp_path / "source" / place, image if "images" in place else (labels > 0))
    with pytest.raises(SourceError, match=r"images/1\.png and \S+images/1\.tif: have one name"):
        bring_in("folders", tmp_path / "source", tmp_path / "out")
