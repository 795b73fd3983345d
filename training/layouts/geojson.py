"""The layout of QuPath's GeoJSON: a file of objects beside each image.

Coordinates are pixels from the upper left corner of the image
(https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html), so rule 2 of
`outlines` says which pixels an outline encloses: those that QuPath's own labelled images have. A
polygon's rings after the first are holes. Of a cell, `nucleusGeometry` is the nucleus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from training.layouts.json_files import files_of, points, read_json, shown
from training.layouts.original import (
    Layout,
    Listing,
    Original,
    broken,
    files_under,
    is_picture,
    named_apart,
)
from training.layouts.outlines import (
    Annotated,
    Annotation,
    Classes,
    Outline,
    Piece,
    Shape,
    centres_inside,
    count_classes,
    originals,
)
from training.pictures import Rules
from training.rasters import SourceError

BORDER = "cell border"
"""The kind of a cell without `nucleusGeometry`: what it outlines is no nucleus."""
LEGACY = {
    "PathCellObject": "cell",
    "PathDetectionObject": "detection",
    "PathAnnotationObject": "annotation",
}
"""Kinds of objects as QuPath 0.2 wrote them, in `id`."""
NO_IMAGE = "annotation without an image"


def _look(source: Path) -> str:
    found = files_of(source, "geojson")
    return f"{len(found)} GeoJSON files, such as {found[0].name}" if found else ""


def geojson(source: Path, rules: Rules) -> Listing:
    """`x.geojson` or `x.json` beside `x.tif`, or elsewhere in the source where only one image has
    that name. A class is an object's kind and classification, such as `cell: Tumor`; --nuclei takes
    either, or the classification alone where objects of one kind have it.
    """
    files = files_of(source, "geojson")
    if not files:
        raise SourceError(f"{source}: has no GeoJSON files (*.geojson, or *.json with features)")
    pictures = [path for path in files_under(source) if is_picture(path)]
    found: list[Annotation] = []
    bad: list[tuple[Original, Path]] = []
    unused: dict[Path, str] = {}
    for path in files:
        images = _images(path, pictures)
        name = path.relative_to(source).with_suffix("").as_posix()
        if len(images) == 1:
            image = images[0]
            name = image.relative_to(source).with_suffix("").as_posix()
            found.append(Annotation(name, image, path, partial(_read, path)))
        elif images:
            message = f"has the same name as {images[0]} and {images[1]}, expected one image"
            bad.append((broken(name, (path,), message), path))
        else:
            unused[path] = NO_IMAGE
    annotated = {each.image for each in found}
    bad += [
        (broken(path.relative_to(source).with_suffix("").as_posix(), (path,), _MISSING), path)
        for path in pictures
        if path not in annotated
    ]
    classes = count_classes(found)
    _name_parts(classes)
    nuclei = _nuclei(classes, source, rules)
    return Listing(named_apart([*originals(found, nuclei, rules), *bad]), unused)


_MISSING = "has no GeoJSON file with its name"


def _images(path: Path, pictures: Sequence[Path]) -> list[Path]:
    """The images of a file's name: those beside it, or else those anywhere."""
    same = [image for image in pictures if path.stem in (image.stem, image.name)]
    return [image for image in same if image.parent == path.parent] or same


def _name_parts(classes: Classes) -> None:
    """A kind stands for all its classes, a classification for that of the only kind that has it."""
    for name in classes.found:
        kind, _, classification = name.partition(": ")
        classes.numbers.setdefault(kind, set()).add(name)
        classes.numbers.setdefault(classification, set()).add(name)
    kinds = {name.partition(": ")[0] for name in classes.found}
    for word, names in list(classes.numbers.items()):
        if len(names) > 1 and word not in kinds:
            del classes.numbers[word]


def _nuclei(classes: Classes, source: Path, rules: Rules) -> frozenset[str]:
    nuclei = classes.nuclei(source, rules)
    if not rules.nuclei and any(name.startswith(BORDER) for name in nuclei):
        raise SourceError(
            f"{source}: has the borders of cells, expected nucleusGeometry; where they are nuclei, "
            f"--nuclei '{BORDER}' says so"
        )
    return nuclei


# -- objects ---------------------------------------------------------------------------------------


def _read(path: Path) -> Annotated:
    """The objects of a file, in order, those within others after them."""
    outlines, planes = [], set()
    for feature in _features(path, read_json(path)):
        geometry, label = _outlined(path, feature)
        plane = geometry.get("plane")
        if isinstance(plane, dict):
            planes.add((plane.get("z", 0), plane.get("t", 0)))
        outlines.append(Outline(label, partial(_pixels, path, geometry)))
    if len(planes) > 1:
        raise SourceError(f"{path}: has objects on {len(planes)} planes, expected one image")
    return Annotated(outlines)


def _features(path: Path, value: Any) -> Iterator[Mapping[str, Any]]:
    """Of a FeatureCollection, a list, or one Feature, with the objects that each holds."""
    if isinstance(value, dict) and value.get("type") == "FeatureCollection":
        value = value.get("features")
    waiting = value[::-1] if isinstance(value, list) else [value]
    while waiting:
        feature = waiting.pop()
        if not isinstance(feature, dict) or not isinstance(feature.get("geometry"), dict):
            raise SourceError(f"{path}: has {shown(feature)}, expected features with a geometry")
        yield feature
        properties = _properties(feature)
        children = properties.get("childObjects", properties.get("children"))
        waiting += children[::-1] if isinstance(children, list) else []


def _properties(feature: Mapping[str, Any]) -> Mapping[str, Any]:
    found = feature.get("properties")
    return found if isinstance(found, dict) else {}


def _outlined(path: Path, feature: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The geometry of an object's nucleus, and its class."""
    properties = _properties(feature)
    kind = properties.get("objectType", properties.get("object_type", properties.get("type")))
    kind = kind if isinstance(kind, str) else LEGACY.get(str(feature.get("id")), "object")
    geometry = feature["geometry"]
    if kind == "cell":
        nucleus = feature.get("nucleusGeometry")
        geometry, kind = (nucleus, kind) if isinstance(nucleus, dict) else (geometry, BORDER)
    classification = properties.get("classification")
    if isinstance(classification, dict):
        names = classification.get("names")  # of derived classes, since QuPath 0.4
        joined = ": ".join(map(str, names)) if isinstance(names, list) else ""
        classification = classification.get("name") or joined
    if classification and not isinstance(classification, str):
        raise SourceError(
            f"{path}: has the classification {shown(classification)}, expected a name"
        )
    return geometry, f"{kind}: {classification or 'unclassified'}"


# -- pixels ----------------------------------------------------------------------------------------


def _pixels(path: Path, geometry: Mapping[str, Any], shape: Shape) -> list[Piece]:
    kind, found = geometry.get("type"), geometry.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        raise SourceError(
            f"{path}: has the geometry {shown(kind)} among nuclei, expected Polygon or MultiPolygon"
        )
    pieces = []
    for polygon in [found] if kind == "Polygon" else _list(path, found):
        rings = [points(path, ring, f"a {kind}") for ring in _list(path, polygon)]
        if rings and len(rings[0]) >= 3:
            pieces += centres_inside(rings, shape)
    return pieces


def _list(path: Path, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise SourceError(f"{path}: has coordinates {shown(value)}, expected lists of points")
    return value


LAYOUTS: dict[str, Layout] = {"geojson": Layout(_look, geojson)}
