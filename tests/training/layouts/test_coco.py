"""COCO: polygons, run lengths, crowds, several files; and files that lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.training.layouts.outlined import (
    BOXES,
    SHAPE,
    assert_pair,
    corners,
    layouts_of,
    listed,
    pairs,
    refusal,
    save_image,
    save_json,
    truth,
)
from training.layouts import list_originals
from training.pictures import UNRULED

NUCLEUS, CYTOPLASM = {"id": 3, "name": "nucleus"}, {"id": 4, "name": "cytoplasm"}


def polygon(number: int) -> list[list[float]]:
    return [[value for point in corners(BOXES[number]) for value in point]]


def runs(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.ravel(order="F").astype(np.int8)
    places = np.flatnonzero(np.diff(flat, prepend=0, append=0 if not flat[-1] else flat[-1]))
    counts = np.diff([0, *places.tolist(), flat.size]).tolist()
    return {"size": list(mask.shape), "counts": counts}


def packed(mask: np.ndarray) -> dict[str, Any]:
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def document(segmentations: list[Any], name: str = "a.png", category: int = 3) -> dict[str, Any]:
    return {
        "info": {"year": 2026},
        "images": [{"id": 7, "file_name": name, "height": SHAPE[0], "width": SHAPE[1]}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": category, "iscrowd": 0, "segmentation": found}
            for i, found in enumerate(segmentations, start=1)
        ],
        "categories": [NUCLEUS, CYTOPLASM],
    }


FORMS = [polygon(0), runs(truth() == 2), packed(truth() == 3)]


def test_polygons_and_run_lengths_become_ids(tmp_path: Path) -> None:
    image = save_image(tmp_path / "images/train/a.png")
    save_json(tmp_path / "annotations/instances_train.json", document(FORMS))
    assert_pair(pairs("coco", tmp_path)["images/train/a"], image, truth())
    assert layouts_of(tmp_path) == {"coco"}


def test_several_files_name_images_in_folders(tmp_path: Path) -> None:
    images = [save_image(tmp_path / f"{split}/a.png", i) for i, split in enumerate(("one", "two"))]
    save_json(tmp_path / "one/_annotations.coco.json", document(FORMS))
    save_json(tmp_path / "two.json", document(FORMS[:1], "two\\a.png"))
    save_json(tmp_path / "empty.json", document([], "b.png"))
    empty = save_image(tmp_path / "one/b.png", 5)
    save_image(tmp_path / "one/c.png")
    captions = {"images": document([])["images"], "annotations": [{"image_id": 7, "caption": "x"}]}
    save_json(tmp_path / "captions.json", captions)
    found = pairs("coco", tmp_path)
    assert sorted(found) == ["one/a", "one/b", "two/a"]
    assert_pair(found["one/a"], images[0], truth())
    assert_pair(found["two/a"], images[1], truth(BOXES[:1]))
    assert_pair(found["one/b"], empty, truth(()))
    unused = list_originals("coco", tmp_path, UNRULED).unused
    assert {path.name: why for path, why in unused.items()} == {
        "c.png": "image that no annotation file lists",
        "captions.json": "annotation file without outlines",
    }


def test_parts_of_one_object_have_one_id_and_crowds_are_doubtful(tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.png")
    value = document([polygon(0) + polygon(1), runs(truth() == 3)])
    value["annotations"][1]["iscrowd"] = 1
    save_json(tmp_path / "a.json", value)
    pair = pairs("coco", tmp_path)["a"]
    assert_pair(pair, image, np.isin(truth(), (1, 2)).astype(np.int32))
    assert pair.doubtful is not None
    assert np.array_equal(pair.doubtful, truth() == 3)
    assert pair.left_out == {"crowd regions": 1}


def test_several_classes_need_a_name_or_a_number(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    value = document(FORMS)
    value["annotations"][2]["category_id"] = 4
    save_json(tmp_path / "a.json", value)
    refused = refusal("coco", tmp_path)
    assert "2 classes: nucleus (2), cytoplasm (1); --nuclei says which" in refused
    assert "got cell, but the annotations have classes: nucleus (2)" in refusal(
        "coco", tmp_path, "cell"
    )
    for word in ("nucleus", "3"):
        pair = pairs("coco", tmp_path, word)["a"]
        assert np.array_equal(pair.nuclei, truth(BOXES[:2]))
        assert pair.left_out == {"annotations of class cytoplasm": 1}


def test_images_that_are_not_there_or_listed_twice_are_named(tmp_path: Path) -> None:
    save_json(tmp_path / "a.json", document(FORMS))
    assert (
        refusal("coco", tmp_path)
        == f"{tmp_path}/a.json: lists the image 'a.png', which is not there"
    )
    for folder in ("one", "two"):
        save_image(tmp_path / folder / "a.png")
    assert "which can be " in refusal("coco", tmp_path)
    (tmp_path / "two/a.png").unlink()
    save_json(tmp_path / "b.json", document(FORMS))
    assert "a.png: is annotated in " in refusal("coco", tmp_path)


def test_a_picture_outside_the_source_is_not_there(tmp_path: Path) -> None:
    save_image(tmp_path / "secret.png")
    save_json(tmp_path / "data/a.json", document(FORMS, "../secret.png"))
    assert "'../secret.png', which is not there" in refusal("coco", tmp_path / "data")


def changed(key: str, value: Any) -> dict[str, Any]:
    """A document whose first annotation, image or category has another value."""
    found = document(FORMS)
    part, _, name = key.partition(".")
    found[part] = [found[part][0] | {name: value}, *found[part][1:]]
    return found


BROKEN = [
    ('{"annotations": [' * 50_000 + '"image_id":', "is nested too deeply"),
    ("[" * 100_000 + '"annotations": [ "image_id": ', "is nested too deeply"),
    ('{"annotations": [{"image_id": 1', "is not JSON"),
    ('{"annotations": [], "images": [{"id": NaN, "file_name": "a.png"}]}', "holds NaN"),
    ('{"annotations": [], "images": [{"id": Infinity, "file_name": ""}]}', "holds Infinity"),
    ('{"annotations": [], "images": [{"id": ' + "9" * 5000 + ', "file_name": ""}]}', "is not JSON"),
    ('{"annotations": [{"image_id": 1}], "images": {}}', "has images an object, expected a list"),
    (changed("images.id", [1]), "an image has id a list of 1, expected a number"),
    (changed("images.file_name", 5), "an image has file_name 5, expected a text"),
    (changed("images.height", 61), "says that its image is 80 x 61 pixels, but"),
    (changed("images.height", "60"), "has height '60', expected a whole number"),
    (changed("annotations.image_id", 8), "has an annotation of image 8, which it does not list"),
    (changed("annotations.category_id", 9), "has category_id 9, expected one of 3, 4"),
    (changed("annotations.segmentation", []), "a box is no outline"),
    (changed("annotations.segmentation", None), "a box is no outline"),
    (changed("annotations.segmentation", [[1, 2, 3, 4, 5]]), "has 5 coordinates, expected an even"),
    (changed("annotations.segmentation", [[1, 2, 3, 4, 5, "6"]]), "has the coordinate '6'"),
    (changed("annotations.segmentation", [[1, 2, 3, 4, 5, True]]), "has the coordinate True"),
    (changed("annotations.segmentation", [[0, 0, 9, 0, 9, 10**400]]), "the coordinate a huge"),
    (changed("annotations.segmentation", [[0, 0, 9, 9, 0, 1e7]]), "the coordinate 10000000.0"),
    (changed("annotations.segmentation", [[-1e6, 0, 1e6, 9] * 200]), "has an outline of"),
    (changed("annotations.segmentation", [5]), "has 5, expected a list of numbers"),
    (changed("annotations.segmentation", {"size": [60, 81], "counts": []}), "of size [60, 81]"),
    (changed("annotations.segmentation", {"size": [60, 80], "counts": [10]}), "do not cover 4800"),
    (
        changed("annotations.segmentation", {"size": [60, 80], "counts": [10**18, -(10**18)]}),
        "do not cover 4800 pixels",
    ),
    (changed("annotations.segmentation", {"size": [60, 80], "counts": "oooooooo"}), "decompressed"),
    (changed("annotations.segmentation", {"size": [60, 80], "counts": "o"}), "that break off"),
    (changed("annotations.segmentation", {"size": [60, 80], "counts": "\x00é"}), "decompressed"),
    (changed("annotations.segmentation", {"size": [10**9] * 2, "counts": [10**18]}), "of size"),
]


@pytest.mark.parametrize(("value", "message"), BROKEN)
def test_files_that_lie_are_refused_with_one_line(value: Any, message: str, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    save_json(tmp_path / "a.json", value)
    save_image(tmp_path / "b.png")
    save_json(tmp_path / "b.json", document(FORMS, "b.png"))
    refused = refusal("coco", tmp_path)
    assert refused.startswith(f"{tmp_path}/a.json: ")
    assert message in refused
    readable = [original for original in listed("coco", tmp_path) if original.name == "b"]
    assert np.array_equal(readable[0].read().nuclei, truth())


@pytest.mark.parametrize("seed", range(20))
def test_polygons_enclose_what_pycocotools_says(seed: int, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    random = np.random.default_rng(seed)
    for _ in range(5):
        flat = (random.random((random.integers(3, 9), 2)) * (120, 100) - 20).ravel().tolist()
        save_json(tmp_path / "a.json", document([[flat]]))
        ids = pairs("coco", tmp_path)["a"].nuclei
        ours = coco_mask.encode(np.asfortranarray((np.asarray(ids) > 0).astype(np.uint8)))
        assert ours == coco_mask.frPyObjects([flat], *SHAPE)[0]


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_of_any_mask_are_read(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    mask = random.random(SHAPE) < random.random()
    if seed % 3 == 0:
        mask[:, ::7] = True
        mask[:, :20] = False
    mask[0, 79] = seed % 2
    image = save_image(tmp_path / "a.png")
    for form in (runs(mask), packed(mask)):
        save_json(tmp_path / "a.json", document([form]))
        assert_pair(pairs("coco", tmp_path)["a"], image, mask.astype(np.int32))
