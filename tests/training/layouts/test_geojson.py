"""QuPath's GeoJSON: objects, holes, cells with nuclei; and files that lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.layouts.outlined import (
    BOXES,
    Point,
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


def ring(points: list[Point]) -> list[list[float]]:
    return [list(point) for point in [*points, points[0]]]


def polygon(box: tuple[int, int, int, int], *holes: tuple[int, int, int, int]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [ring(corners(each)) for each in (box, *holes)]}


def feature(geometry: Any, kind: str = "annotation", name: str = "", **more: Any) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": kind}
    if name:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "id": "2b4e9f6c-0a1d-4e5f-8a7b-3c2d1e0f9a8b",
        "geometry": geometry,
        "properties": properties,
        **more,
    }


def collection(features: list[Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": features}


NUCLEI = [feature(polygon(box), name="Nucleus") for box in BOXES]


@pytest.mark.parametrize("ending", [".geojson", ".json"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_objects_become_ids(wrapped: bool, ending: str, tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.tif")
    save_json(tmp_path / f"a{ending}", collection(NUCLEI) if wrapped else NUCLEI)
    assert_pair(pairs("geojson", tmp_path)["a"], image, truth())
    assert layouts_of(tmp_path) == {"geojson"}


def test_one_object_and_one_named_as_the_image_with_its_ending(tmp_path: Path) -> None:
    image = save_image(tmp_path / "images/a.b.tif")
    save_json(tmp_path / "geojson/a.b.tif.geojson", NUCLEI[0])
    assert_pair(pairs("geojson", tmp_path)["images/a.b"], image, truth(BOXES[:1]))


def test_holes_and_parts(tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.tif")
    holed = polygon(BOXES[0], (8, 10, 12, 20))
    parts = [polygon(box)["coordinates"] for box in BOXES[1:]]
    several = {"type": "MultiPolygon", "coordinates": parts}
    save_json(tmp_path / "a.geojson", collection([feature(holed), feature(several)]))
    expected = truth()
    expected[8:12, 10:20] = 0
    expected[expected == 3] = 2
    assert_pair(pairs("geojson", tmp_path)["a"], image, expected)


def test_of_cells_the_nuclei_are_taken(tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.tif")
    cells = [
        feature(polygon((0, 0, 60, 80)), "cell", name, nucleusGeometry=polygon(box))
        for name, box in zip(("Tumor", "Stroma", ""), BOXES, strict=True)
    ]
    region = feature(polygon((0, 0, 60, 80)), "annotation", "Tumor")
    region["properties"]["childObjects"] = cells
    save_json(tmp_path / "a.geojson", collection([region, feature(polygon(BOXES[0]), "cell")]))
    refused = refusal("geojson", tmp_path)
    assert "annotations of 5 classes: 'annotation: Tumor' (1), 'cell: Tumor' (1)" in refused
    assert "'cell border: unclassified' (1)" in refused
    assert "got Tumor, but" in refusal("geojson", tmp_path, "Tumor")
    pair = pairs("geojson", tmp_path, "cell")["a"]
    assert_pair(pair, image, truth())
    assert pair.left_out == {
        "annotations of class annotation: Tumor": 1,
        "annotations of class cell border: unclassified": 1,
    }
    one = pairs("geojson", tmp_path, "Stroma")["a"].nuclei
    assert np.array_equal(np.asarray(one) > 0, truth() == 2)


def test_borders_of_cells_are_no_nuclei_unless_the_user_says_so(tmp_path: Path) -> None:
    save_image(tmp_path / "a.tif")
    save_json(tmp_path / "a.geojson", collection([feature(polygon(box), "cell") for box in BOXES]))
    assert "has the borders of cells, expected nucleusGeometry" in refusal("geojson", tmp_path)
    assert np.array_equal(pairs("geojson", tmp_path, "cell border")["a"].nuclei, truth())


def test_files_as_older_versions_wrote_them(tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.tif")
    cell = feature(polygon((0, 0, 60, 80)), nucleusGeometry=polygon(BOXES[0]))
    cell |= {"id": "PathCellObject", "properties": {"isLocked": False}}
    save_json(tmp_path / "a.json", [cell])
    assert_pair(pairs("geojson", tmp_path)["a"], image, truth(BOXES[:1]))


def test_files_and_images_without_each_other_are_named(tmp_path: Path) -> None:
    save_image(tmp_path / "a.tif")
    save_json(tmp_path / "b.geojson", collection(NUCLEI))
    assert refusal("geojson", tmp_path).endswith("a.tif: has no GeoJSON file with its name")
    listing = list_originals("geojson", tmp_path, UNRULED)
    assert {path.name for path in listing.unused} == {"b.geojson"}
    for folder in ("one", "two"):
        save_image(tmp_path / folder / "b.tif")
    assert "has the same name as " in refusal("geojson", tmp_path)


def with_point(point: Any) -> dict[str, Any]:
    geometry = polygon(BOXES[0])
    geometry["coordinates"][0][1] = point
    return collection([feature(geometry)])


def on_planes() -> dict[str, Any]:
    return collection([feature(polygon(BOXES[0]) | {"plane": {"c": -1, "z": z}}) for z in (0, 3)])


BROKEN = [
    ('{"type": "FeatureCollection", "features": ' + "[" * 100_000, "is nested too deeply"),
    ('{"type": "FeatureCollection", "features": [NaN]}', "holds NaN, expected a number"),
    ('{"type": "FeatureCollection", "features": [-Infinity]}', "holds -Infinity"),
    ('{"type": "FeatureCollection"', "is not JSON"),
    (with_point([float("1e200"), 1]), "has the coordinate 1e+200, expected a number of pixels"),
    (with_point(["4", 1]), "has the coordinate '4', expected a number of pixels"),
    (with_point([4]), "has the point a list of 1, expected [x, y]"),
    (with_point(4), "has the point 4, expected [x, y]"),
    (collection([5]), "has 5, expected features with a geometry"),
    (collection([{"type": "Feature", "geometry": None}]), "expected features with a geometry"),
    (collection([feature({"type": "Point", "coordinates": [1, 2]})]), "has the geometry 'Point'"),
    (collection([feature({"type": "Polygon", "coordinates": 1})]), "expected lists of points"),
    (collection([feature({"type": "Polygon", "coordinates": [1]})]), "expected a list of points"),
    (
        collection([feature({"type": "Polygon", "coordinates": [[[-1e6, 0], [1e6, 9]] * 900]})]),
        "has an outline of 3,600,000,000 pixels, expected up to 1,000,000",
    ),
    (on_planes(), "has objects on 2 planes, expected one image"),
    (
        collection([feature(polygon(BOXES[0]), name="x") | {"properties": {"classification": 5}}]),
        "has the classification 5, expected a name",
    ),
]


@pytest.mark.parametrize(("value", "message"), BROKEN)
def test_files_that_lie_are_refused_with_one_line(value: Any, message: str, tmp_path: Path) -> None:
    for name, content in (("a", value), ("b", collection([feature(polygon(b)) for b in BOXES]))):
        save_image(tmp_path / f"{name}.tif")
        save_json(tmp_path / f"{name}.geojson", content)
    refused = refusal("geojson", tmp_path)
    assert refused.startswith(f"{tmp_path}/a.geojson: ")
    assert message in refused
    assert np.array_equal(listed("geojson", tmp_path)[1].read().nuclei, truth())
