"""YOLO polygons: folders, names of classes; and files that lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.layouts.outlined import (
    BOXES,
    SHAPE,
    assert_pair,
    layouts_of,
    listed,
    pairs,
    pixels,
    refusal,
    save_image,
    truth,
)
from training.layouts import list_originals
from training.pictures import UNRULED


def line(box: tuple[int, int, int, int], number: int = 0) -> str:
    shares = [f"{x / SHAPE[1]:.6f} {y / SHAPE[0]:.6f}" for x, y in pixels(box)]
    return f"{number} {' '.join(shares)}\n"


LINES = "".join(line(box) for box in BOXES)


def write(source: Path, text: str, images: str = "images/train", name: str = "a") -> np.ndarray:
    label = source / images.replace("images", "labels") / f"{name}.txt"
    label.parent.mkdir(parents=True, exist_ok=True)
    label.write_text(text)
    return save_image(source / images / f"{name}.png")


@pytest.mark.parametrize("images", ["images", "images/train", "train/images"])
def test_polygons_become_ids(images: str, tmp_path: Path) -> None:
    image = write(tmp_path, "\ufeff" + LINES + "\n", images)
    empty = write(tmp_path, "", images, "b")
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images/train\nnames:\n  0: nucleus\n")
    found = pairs("yolo", tmp_path)
    assert list(found) == [f"{images}/a", f"{images}/b"]
    assert_pair(found[f"{images}/a"], image, truth())
    assert_pair(found[f"{images}/b"], empty, truth(()))
    assert layouts_of(tmp_path) == {"yolo"}
    assert tmp_path / "data.yaml" in listed("yolo", tmp_path)[0].files


def test_what_is_at_the_edge_of_the_image_is_cut_off(tmp_path: Path) -> None:
    image = write(tmp_path, "0 0.5 0.5 1 0.5 1 1 0.5 1\n")
    assert_pair(pairs("yolo", tmp_path)["images/train/a"], image, truth(((30, 40, 60, 80),)))


def test_several_classes_need_a_name_or_a_number(tmp_path: Path) -> None:
    write(tmp_path, LINES + line((55, 0, 60, 9), 1))
    assert "2 classes: 0 (3), 1 (1); --nuclei says which" in refusal("yolo", tmp_path)
    assert np.array_equal(pairs("yolo", tmp_path, "0")["images/train/a"].nuclei, truth())
    (tmp_path / "data.yaml").write_text("nc: 2\nnames: [nucleus, tissue region]\n")
    assert "nucleus (3), 'tissue region' (1); --nuclei" in refusal("yolo", tmp_path)
    for word in ("0", "nucleus"):
        assert np.array_equal(pairs("yolo", tmp_path, word)["images/train/a"].nuclei, truth())
    assert "got cell, but the annotations have" in refusal("yolo", tmp_path, "cell")


def test_labels_and_images_without_each_other_are_named(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    save_image(tmp_path / "images/train/b.png")
    (tmp_path / "labels/train/c.txt").write_text(LINES)
    refused = refusal("yolo", tmp_path)
    assert "b.png: has no " in refused
    assert refused.endswith("labels/train/b.txt; an empty file says that there are no nuclei")
    unused = list_originals("yolo", tmp_path, UNRULED).unused
    assert {path.name for path in unused} == {"c.txt"}


BROKEN = [
    ("0 0.5 0.5 0.1 0.1\n", "line 1 has a class and 4 numbers, which is a box, not an outline"),
    (LINES + "0 0.1 0.1 0.2 0.2 0.3\n", "line 4 has 6 numbers, expected x, y in pairs"),
    ("0 0.1 0.1 0.2 0.2 0.3 nan\n", "line 1 has 'nan', expected a number"),
    ("0 0.1 0.1 0.2 0.2 0.3 x\n", "line 1 has 'x', expected a number"),
    ("0 12 10 20 10 20 40\n", "line 1 has 40, expected shares of 0 to 1"),
    ("0 -0.5 0 1 0 1 1\n", "line 1 has -0.5, expected shares of 0 to 1"),
    ("0.5 0 0 1 0 1 1\n", "line 1 has the class 0.5, expected one of 0"),
    ("7 0 0 1 0 1 1\n", "line 1 has the class 7, expected one of 0"),
    ("-1 0 0 1 0 1 1\n", "line 1 has the class -1, expected one of 0"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_files_that_lie_are_refused_with_one_line(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, text)
    write(tmp_path, LINES, name="b")
    (tmp_path / "data.yaml").write_text("names: [nucleus]\n")
    refused = refusal("yolo", tmp_path)
    assert refused.startswith(f"{tmp_path}/labels/train/a.txt: ")
    assert message in refused
    assert np.array_equal(listed("yolo", tmp_path)[1].read().nuclei, truth())


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    (tmp_path / "labels/train/a.txt").write_bytes(b"\xff\xfe\x00")
    assert refusal("yolo", tmp_path).endswith("a.txt: is not text, expected lines of numbers")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [", "is not YAML"),
        ("names: " + "[" * 100_000, "is nested deeply, which names do not need"),
        ("names: [" + "nucleus, " * 50_000 + "]", "has 450009 bytes, expected names in up to"),
        ("a: &a [1]\nnames: [*a, *a]\n", "has an alias or is nested deeply"),
        ("names: 5\n", "has names 5, expected a list of names"),
        ("names: {nucleus: 0}\n", "has names an object, expected a list of names"),
    ],
)
def test_names_that_cannot_be_read_are_refused(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, LINES)
    (tmp_path / "data.yaml").write_text(text)
    refused = refusal("yolo", tmp_path)
    assert refused.startswith(f"{tmp_path}/data.yaml: ")
    assert message in refused


def test_files_that_name_classes_differently_are_refused(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    (tmp_path / "a.yaml").write_text("names: [nucleus]\n")
    (tmp_path / "b.yml").write_text("names: [cell]\n")
    assert refusal("yolo", tmp_path).endswith("b.yml: name the classes differently")
