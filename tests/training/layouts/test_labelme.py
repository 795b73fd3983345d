"""LabelMe: shapes of every kind, groups; and files that lie."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

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
    save_json,
    truth,
)


def shape(
    points: Any, kind: str = "polygon", label: str = "nucleus", **more: Any
) -> dict[str, Any]:
    points = [list(point) for point in points] if isinstance(points, list) else points
    return {
        "label": label,
        "points": points,
        "group_id": None,
        "shape_type": kind,
        "flags": {},
    } | more


def document(shapes: list[Any], path: Any = "a.png", height: Any = SHAPE[0]) -> dict[str, Any]:
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": SHAPE[1],
    }


def png(mask: np.ndarray, mode: str = "L") -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).convert(mode).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


MASK = np.eye(15, 20) + np.eye(15, 20, 3)
POLYGONS = [shape(pixels(box)) for box in BOXES]
OPPOSITE = [(pixels(box)[2], pixels(box)[0]) for box in BOXES]


def test_polygons_become_ids(tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.png")
    save_json(tmp_path / "a.json", document(POLYGONS) | {"imageData": "no base64"})
    assert_pair(pairs("labelme", tmp_path)["a"], image, truth())
    assert layouts_of(tmp_path) == {"labelme"}


def test_rectangles_masks_and_parts_of_a_group(tmp_path: Path) -> None:
    image = save_image(tmp_path / "images/a.png")
    mask = shape([(30, 4), (49, 18)], "mask", mask=png(MASK, "1"))
    shapes = [
        shape(list(OPPOSITE[0]), "rectangle"),
        shape(list(OPPOSITE[1]), "rectangle", group_id=5),
        mask,
        shape(pixels(BOXES[2]), "oriented_rectangle", group_id=5),
    ]
    save_json(tmp_path / "json/a.json", document(shapes, "..\\images\\a.png"))
    expected = truth()
    expected[expected == 3] = 2
    expected[4:19, 30:50][MASK > 0] = 3
    assert_pair(pairs("labelme", tmp_path)["json/a"], image, expected)


def test_a_circle_is_drawn_round_its_first_point(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    save_json(tmp_path / "a.json", document([shape([(5.5, 20.2), (5.5, 28.9)], "circle")]))
    whole = Image.new("1", SHAPE[::-1])
    ImageDraw.Draw(whole).ellipse((-3, 11, 14, 28), fill=1, outline=1)
    expected = np.array(whole)
    assert np.array_equal(pairs("labelme", tmp_path)["a"].nuclei, expected)


def test_masks_that_leave_the_image_are_cut_off(tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.png")
    shapes = [
        shape([(-10, -5), (9, 9)], "mask", mask=png(np.ones((15, 20)))),
        shape([(70, 50), (89, 64)], "mask", mask=png(np.ones((15, 20)))),
        shape([(900, 50), (919, 64)], "mask", mask=png(np.ones((15, 20)))),
    ]
    save_json(tmp_path / "a.json", document(shapes))
    pair = pairs("labelme", tmp_path)["a"]
    assert_pair(pair, image, truth(((0, 0, 10, 10), (50, 70, 60, 80))))
    assert pair.left_out == {"annotations without a pixel": 1}


def test_several_labels_need_a_name(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    marks = [
        shape([(3, 4)], "point", "mito\nsis"),
        shape([(0, 0), (50, 50)], "rectangle", "tissue"),
    ]
    save_json(tmp_path / "a.json", document([*POLYGONS, *marks]))
    assert r"classes: nucleus (3), 'mito\nsis' (1), tissue (1); --nuclei" in refusal(
        "labelme", tmp_path
    )
    pair = pairs("labelme", tmp_path, "nucleus")["a"]
    assert np.array_equal(pair.nuclei, truth())
    assert r"of label 'mito\nsis' is a 'point', expected one of polygon" in refusal(
        "labelme", tmp_path, "mito\nsis"
    )


def test_files_and_images_without_each_other_are_named(tmp_path: Path) -> None:
    save_image(tmp_path / "secret.png")
    data = tmp_path / "data"
    for path in ("gone.png", "../secret.png", str(tmp_path / "secret.png"), 5):
        save_json(data / "a.json", document(POLYGONS, path))
        assert refusal("labelme", data).startswith(f"{data}/a.json: ")
    save_image(data / "a.png")
    save_json(data / "a.json", document(POLYGONS, "/home/somebody/a.png"))
    assert np.array_equal(pairs("labelme", data)["a"].nuclei, truth())
    save_json(data / "b.json", document(POLYGONS))
    assert "names the image" in refusal("labelme", data)
    (data / "b.json").unlink()
    save_image(data / "c.png")
    assert refusal("labelme", data).endswith("c.png: is named by no LabelMe file")


BROKEN = [
    ('{"imagePath": "a.png", "shapes": [' + "[" * 100_000, "is nested too deeply"),
    ('{"imagePath": "a.png", "shapes": [Infinity]}', "holds Infinity"),
    ('{"imagePath": "a.png", "shapes": [', "is not JSON"),
    (document(POLYGONS, height=61), "says that its image is 80 x 61 pixels, but"),
    (document(POLYGONS, height="60"), "has imageHeight '60', expected a whole number"),
    (document([5]), "shape 0 has label nothing, expected a text"),
    (document([shape([(1, 2), ("3", 4), (5, 6)])]), "has the coordinate '3'"),
    (document([shape([(1, 2), (1e9, 4), (5, 6)])]), "has the coordinate 1000000000.0"),
    (document([shape(None)]), "has nothing, expected a list of points"),
    (document([shape([(1, 2)], "circle")]), "is a circle of 1 points, expected 2"),
    (document([shape([(1, 2)], "line")]), "is a 'line', expected one of polygon"),
    (document([shape([(0, 0), (9, 9)], "mask", mask="%%")]), "a mask that is not a PNG as base64"),
    (document([shape([(0, 0), (9, 9)], "mask", mask=None)]), "a mask that is not a PNG as base64"),
    (
        document([shape([(0, 0), (9, 9)], "mask", mask=png(np.ones((9, 3000))))]),
        "a mask that is larger than its image",
    ),
    (
        document([shape([(0, 0), (9, 9)], "mask", mask=png(np.ones((9, 10))))]),
        "has a mask of 10 x 9 pixels, expected 10 x 10",
    ),
]


@pytest.mark.parametrize(("value", "message"), BROKEN)
def test_files_that_lie_are_refused_with_one_line(value: Any, message: str, tmp_path: Path) -> None:
    for name, content in (("a", value), ("b", document(POLYGONS, "b.png"))):
        save_image(tmp_path / f"{name}.png")
        save_json(tmp_path / f"{name}.json", content)
    refused = refusal("labelme", tmp_path)
    assert refused.startswith(f"{tmp_path}/a.json: ")
    assert message in refused
    whole = [original for original in listed("labelme", tmp_path) if original.name == "b"]
    nuclei = whole[0].read().nuclei
    assert np.array_equal(nuclei, truth())
