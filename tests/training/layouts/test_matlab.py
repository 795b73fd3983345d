"""Images with MATLAB files: CoNSeP, Lizard, and others that hold an `inst_map`."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import io

from tests.training.layouts.drawing import (
    HEIGHT,
    WIDTH,
    assert_only,
    assert_pair,
    assert_refused,
    draw,
    listed,
    read_all,
    refusal,
    save,
)
from training.rasters import SourceError

CLASSES = np.array([[3], [4], [4], [7], [1], [2]])
"""Of the nuclei 1 to 6."""


def write_mat(path: Path, variables: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    io.savemat(path, variables, do_compression=True)


def write_mat_73(path: Path, variables: dict[str, Any]) -> None:
    """As MATLAB 7.3 does: HDF5 behind a head of 512 bytes, arrays transposed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_group("#refs#")
        for name, values in variables.items():
            file[name] = np.asarray(values).T
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\0\2IM")


# -- CoNSeP ----------------------------------------------------------------------------------------


def consep_maps(ids: np.ndarray) -> dict[str, Any]:
    """As published: float64, with all that the files hold."""
    types = np.concatenate([[0], CLASSES[:, 0]])[ids]
    centres = np.zeros((6, 2))
    floats = {"inst_map": ids.astype(float), "type_map": types.astype(float)}
    return {**floats, "inst_type": CLASSES.astype(float), "inst_centroid": centres}


def write_consep(
    source: Path, write: Callable[[Path, dict[str, Any]], None] = write_mat
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    drawn = {}
    for seed, (part, stem) in enumerate((("Test", "test_1"), ("Train", "train_1"))):
        image, ids = drawn[f"{part}/{stem}"] = draw(seed)
        save(source / part / f"Images/{stem}.png", image)
        save(source / part / f"Overlay/{stem}.png", 255 - image)
        write(source / part / f"Labels/{stem}.mat", consep_maps(ids))
    return drawn


@pytest.mark.parametrize("write", [write_mat, write_mat_73])
def test_consep_keeps_its_ids(
    write: Callable[[Path, dict[str, Any]], None], tmp_path: Path
) -> None:
    drawn = write_consep(tmp_path / "CoNSeP", write)
    pairs = read_all("consep", tmp_path / "CoNSeP")
    assert list(pairs) == list(drawn)
    for name, pair in pairs.items():
        assert_pair(pair, *drawn[name])
        assert pair.mpp == 0.25
    listing = listed("consep", tmp_path)
    assert [original.organ for original in listing.originals] == ["colon", "colon"]
    assert set(listing.unused.values()) == {"image with outlines drawn on it"}
    assert len(listing.unused) == 2
    assert_only("consep", tmp_path)
    assert_only("consep", tmp_path / "CoNSeP")


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (("dysplastic/malignant epithelial",), (2, 3)),
        (("Healthy epithelial", "1"), (1, 5)),
        (("ids",), (1, 2, 3, 4, 5, 6)),
    ],
)
def test_classes_of_consep_are_chosen_by_name_or_number(
    words: tuple[str, ...], numbers: tuple[int, ...], tmp_path: Path
) -> None:
    drawn = write_consep(tmp_path)
    for name, pair in read_all("consep", tmp_path, words).items():
        image, ids = drawn[name]
        assert_pair(pair, image, np.where(np.isin(ids, numbers), ids, 0))


def test_an_unknown_class_is_refused_with_the_names(tmp_path: Path) -> None:
    write_consep(tmp_path)
    with pytest.raises(SourceError, match=r"got '8', expected some of other \(1\), inflammatory"):
        listed("consep", tmp_path, ("8",))


# -- Lizard ----------------------------------------------------------------------------------------

INFO = """Filename,Source,Split
consep_1,test_14,3
dpath_1,1800127001_2019-04-30 10_40_02-lv1-1001-22444-3989-3967,3
dpath_2,1800127001_2019-04-30 10_40_02-lv1-9-16016-3312-4096_1,2
glas_1,"testB_10",1
"""


def lizard_maps(ids: np.ndarray) -> dict[str, Any]:
    """As published: ids have gaps, and are listed in any order."""
    numbers = np.array([[60], [10], [20], [30], [40], [50]])
    classes = np.array([[6], [1], [2], [3], [4], [5]])
    boxes, centres = np.zeros((6, 4)), np.zeros((6, 2))
    return {
        **{"inst_map": (ids * 10).astype(np.int32), "id": numbers, "class": classes},
        **{"bbox": boxes, "centroid": centres},
    }


def write_lizard(source: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    drawn = {}
    for seed, name in enumerate(("consep_1", "dpath_1", "dpath_2", "glas_1")):
        image, ids = drawn[name] = draw(seed)
        part = 1 if name.startswith("c") else 2
        folder = source / f"lizard_images{part}/Lizard_Images{part}"
        save(folder / f"{name}.png", image)
        write_mat(source / f"lizard_labels/Lizard_Labels/Labels/{name}.mat", lizard_maps(ids))
    (source / "lizard_labels/Lizard_Labels/info.csv").write_text(INFO)
    return drawn


def test_lizard_keeps_its_ids_and_groups_regions_by_slide(tmp_path: Path) -> None:
    drawn = write_lizard(tmp_path)
    pairs = read_all("lizard", tmp_path)
    assert list(pairs) == list(drawn)
    for name, pair in pairs.items():
        image, ids = drawn[name]
        assert_pair(pair, image, ids * 10)
        assert pair.mpp == 0.5
    listing = listed("lizard", tmp_path)
    slide = "1800127001_2019-04-30 10_40_02"
    assert [original.group for original in listing.originals] == ["", slide, slide, ""]
    assert {original.organ for original in listing.originals} == {"colon"}
    assert [path.name for path in listing.read] == ["info.csv"]
    assert not listing.unused
    assert_only("lizard", tmp_path)


def test_classes_of_lizard_are_chosen(tmp_path: Path) -> None:
    drawn = write_lizard(tmp_path)
    image, ids = drawn["glas_1"]
    pair = read_all("lizard", tmp_path, ("connective", "neutrophil"))["glas_1"]
    assert_pair(pair, image, np.where(np.isin(ids, (1, 6)), ids * 10, 0))


def test_slides_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    write_lizard(tmp_path)
    info = tmp_path / "lizard_labels/Lizard_Labels/info.csv"
    info.write_text("name;slide\na;b\n")
    with pytest.raises(SourceError, match=r"info\.csv: expected the columns Filename and Source"):
        listed("lizard", tmp_path)
    info.unlink()
    assert {original.group for original in listed("lizard", tmp_path).originals} == {""}


# -- any other folder ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "mat", "name"),
    [
        ("Images/a.tif", "Labels/a.mat", "a"),
        ("a.png", "a.mat", "a"),
        ("train/Images/a.png", "train/Labels/a.mat", "train/a"),
        ("pictures/x/a.png", "annotations/x/a.mat", "pictures/x/a"),
    ],
)
def test_any_map_of_ids_beside_an_image_is_read(
    image: str, mat: str, name: str, tmp_path: Path
) -> None:
    pixels, ids = draw(0)
    save(tmp_path / image, pixels)
    write_mat(tmp_path / mat, {"inst_map": ids.astype(np.uint16)})
    [(found, pair)] = read_all("matlab", tmp_path).items()
    assert found == name
    assert_pair(pair, pixels, ids)
    assert pair.mpp == 0
    assert_only("matlab", tmp_path)


def test_the_nearest_image_of_a_name_is_taken(tmp_path: Path) -> None:
    drawn = {}
    for seed, part in enumerate(("test", "train")):
        pixels, ids = drawn[f"{part}/a"] = draw(seed)
        save(tmp_path / part / "Images/a.png", pixels)
        write_mat(tmp_path / part / "Labels/a.mat", {"inst_map": ids})
    pairs = read_all("matlab", tmp_path)
    assert list(pairs) == list(drawn)
    for name, pair in pairs.items():
        assert_pair(pair, *drawn[name])


@pytest.mark.parametrize("version", ["4", "5"])
@pytest.mark.parametrize("kind", [np.float64, np.int32, np.uint16])
def test_maps_of_any_version_and_type_are_read(version: str, kind: type, tmp_path: Path) -> None:
    pixels, ids = draw(0)
    save(tmp_path / "a.png", pixels)
    variables = {"inst_map": ids.astype(kind), "note": "by hand"}
    io.savemat(tmp_path / "a.mat", variables, format=version)
    assert_pair(read_all("matlab", tmp_path)["a"], pixels, ids)


def test_what_else_a_file_holds_does_not_matter(tmp_path: Path) -> None:
    pixels, ids = draw(0)
    save(tmp_path / "a.png", pixels)
    cells = np.array([["x", np.arange(3)]], dtype=object)
    write_mat(tmp_path / "a.mat", {"cells": cells, "inst_map": ids, "about": {"by": "me", "n": 1}})
    assert_pair(read_all("matlab", tmp_path)["a"], pixels, ids)


def test_there_are_no_classes_to_choose_where_none_are_published(tmp_path: Path) -> None:
    write_consep(tmp_path)
    with pytest.raises(SourceError, match="got '1', but this layout has no classes"):
        listed("matlab", tmp_path, ("1",))


# -- what is broken --------------------------------------------------------------------------------


def changed(**changes: Any) -> Callable[[Path, Path], None]:
    """Write a label of Lizard's with other variables; None leaves one out."""

    def spoil(image: Path, mat: Path) -> None:
        maps = {**io.loadmat(mat), **changes}
        write_mat(mat, {k: v for k, v in maps.items() if v is not None and k[0] != "_"})

    return spoil


def strange_id(image: Path, mat: Path) -> None:
    ids = io.loadmat(mat)["inst_map"]
    ids[0, 0] = 7
    changed(inst_map=ids)(image, mat)


def turned(image: Path, mat: Path) -> None:
    changed(inst_map=io.loadmat(mat)["inst_map"].T)(image, mat)


def halved(image: Path, mat: Path) -> None:
    content = mat.read_bytes()
    mat.write_bytes(content[: len(content) // 2])


def unknown_type(image: Path, mat: Path) -> None:
    """Not compressed, so no checksum tells that the tag of a number is wrong; scipy crashes."""
    io.savemat(mat, lizard_maps(draw(0)[1]))
    tag = struct.pack("<II", 5, HEIGHT * WIDTH * 4)
    content = mat.read_bytes()
    assert content.count(tag) == 1
    mat.write_bytes(content.replace(tag, struct.pack("<II", 200, HEIGHT * WIDTH * 4)))


def halved_73(image: Path, mat: Path) -> None:
    write_mat_73(mat, lizard_maps(draw(0)[1]))
    halved(image, mat)


def group_73(image: Path, mat: Path) -> None:
    """As MATLAB 7.3 writes a sparse array."""
    write_mat_73(mat, {"id": CLASSES, "class": CLASSES})
    with h5py.File(mat, "r+") as file:
        file.create_group("inst_map")


def elsewhere_73(image: Path, mat: Path) -> None:
    write_mat_73(mat.with_suffix(".other"), lizard_maps(draw(0)[1]))
    write_mat_73(mat, {"id": CLASSES, "class": CLASSES})
    with h5py.File(mat, "r+") as file:
        file["inst_map"] = h5py.ExternalLink(str(mat.with_suffix(".other")), "inst_map")


def empty(image: Path, mat: Path) -> None:
    mat.write_bytes(b"")


def a_page(image: Path, mat: Path) -> None:
    mat.write_text("<html>not found</html>" * 50)


def second(image: Path, mat: Path) -> None:
    (mat.parent / "old").mkdir()
    (mat.parent / "old" / mat.name).write_bytes(mat.read_bytes())


def gone(image: Path, mat: Path) -> None:
    mat.unlink()


def bad_image(image: Path, mat: Path) -> None:
    image.write_bytes(image.read_bytes()[:200])


CELLS = np.array([["a"]], dtype=object)
HALF = np.full((HEIGHT, WIDTH), 0.5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (changed(inst_map=None), r"dpath_1\.mat: has no inst_map, but .*id"),
        (changed(id=None), r"dpath_1\.mat: has no id, but .*inst_map"),
        (changed(inst_map=CELLS), "inst_map is not an array of numbers, expected one"),
        (changed(inst_map=HALF), "inst_map has values from 0.5 to 0.5, expected whole numbers"),
        (changed(inst_map=-np.ones((HEIGHT, WIDTH))), "inst_map has values from -1 to -1"),
        (changed(inst_map=np.ones((HEIGHT, WIDTH, 2))), r"inst_map has shape \[48, 64, 2\]"),
        (changed(**{"class": CLASSES[:5]}), "has 6 id but 5 class, expected as many"),
        (changed(**{"class": CLASSES * 0}), "has class 0, expected 1 to 6"),
        (changed(**{"class": CLASSES}), "has class 7, expected 1 to 6"),
        (strange_id, "inst_map has nucleus 7, which is not listed in id"),
        (turned, r"dpath_1\.mat: is 48 x 64 pixels, its image .*dpath_1\.png is 64 x 48"),
        (halved, r"dpath_1\.mat: is cut short or damaged, expected a whole MATLAB file"),
        (unknown_type, r"dpath_1\.mat: is damaged: it has data of an unknown type"),
        (halved_73, r"dpath_1\.mat: cannot be read"),
        (group_73, "inst_map is not an array of numbers, expected one"),
        (elsewhere_73, "inst_map is not an array of numbers, expected one"),
        (empty, r"dpath_1\.mat: is empty \(0 bytes\), expected a MATLAB file"),
        (a_page, r"dpath_1\.mat: cannot be read"),
        (second, "has two annotations: .*Labels/dpath_1.mat and .*old/dpath_1.mat"),
        (gone, r"dpath_1\.png: has no \.mat with its name"),
        (bad_image, r"dpath_1\.png: cannot be read"),
    ],
)
def test_what_is_broken_is_named_and_the_others_are_read(
    spoil: Callable[[Path, Path], None], message: str, tmp_path: Path
) -> None:
    write_lizard(tmp_path)
    labels = tmp_path / "lizard_labels/Lizard_Labels/Labels"
    spoil(tmp_path / "lizard_images2/Lizard_Images2/dpath_1.png", labels / "dpath_1.mat")
    refusal("lizard", tmp_path, message)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (np.full((HEIGHT, WIDTH), 8), "has class 8, expected 1 to 7"),
        (np.zeros((9, 9)), r"type_map has shape \[9, 9\], expected \[48, 64\] as inst_map has"),
        (np.full((HEIGHT, WIDTH), np.nan), "type_map has values from nan to nan"),
        (None, r"train_1\.mat: has no type_map, but inst_map"),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    types: np.ndarray | None, message: str, tmp_path: Path
) -> None:
    write_consep(tmp_path)
    maps = {"inst_map": draw(1)[1]} | ({} if types is None else {"type_map": types})
    write_mat(tmp_path / "Train/Labels/train_1.mat", maps)
    refusal("consep", tmp_path, message)


def test_files_without_their_partner_are_named_as_unused(tmp_path: Path) -> None:
    write_consep(tmp_path)
    write_mat(tmp_path / "Train/Labels/train_2.mat", {"inst_map": draw(0)[1]})
    save(tmp_path / "figures/poster.png", draw(0)[0])
    (tmp_path / "Train/Labels/._train_1.mat").write_bytes(b"left by a Mac")
    unused = listed("consep", tmp_path).unused
    assert unused[tmp_path / "Train/Labels/train_2.mat"] == "annotation without an image"
    assert unused[tmp_path / "figures/poster.png"] == "image without a .mat with its name"
    assert len(unused) == 4


def test_a_folder_without_any_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "Train/Images/train_1.png", draw(0)[0])
    for layout in ("consep", "lizard", "matlab"):
        with pytest.raises(SourceError, match=r"has no images with a \.mat of the same name"):
            listed(layout, tmp_path)


def test_a_nucleus_without_a_class_is_in_no_class(tmp_path: Path) -> None:
    drawn = write_consep(tmp_path)
    image, ids = drawn["Train/train_1"]
    maps = consep_maps(ids)
    maps["type_map"][ids == 2] = 0
    write_mat(tmp_path / "Train/Labels/train_1.mat", maps)
    assert_pair(read_all("consep", tmp_path)["Train/train_1"], image, ids)
    chosen = read_all("consep", tmp_path, ("4",))["Train/train_1"]
    assert_pair(chosen, image, np.where(ids == 3, ids, 0))


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    write_consep(tmp_path)
    save(tmp_path / "Train/Images/train_1.tif", draw(0)[0])
    with pytest.raises(SourceError, match=r"train_1\.png and .*train_1\.tif: have one name"):
        listed("consep", tmp_path)


def test_a_broken_annotation_does_not_hide_the_layout(tmp_path: Path) -> None:
    write_consep(tmp_path)
    halved(tmp_path, tmp_path / "Test/Labels/test_1.mat")
    assert_only("consep", tmp_path)
    assert_refused(listed("consep", tmp_path).originals[0], r"test_1\.mat: is cut short")
