"""The layout of LabelMe: a JSON file for each image, which names it.

Rule 3 of `outlines` says which pixels a shape encloses, as LabelMe's own `shape_to_mask` does.
Shapes of one label and one `group_id` are parts of one nucleus. The copy of the image in the file
(`imageData`) is not read (https://github.com/wkentaro/labelme).
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from training.layouts.json_files import files_of, item, points, read_json, shown, size
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
    Outline,
    Piece,
    Shape,
    count_classes,
    drawn,
    originals,
)
from training.pictures import Rules
from training.rasters import SourceError

POLYGONS = ("polygon", "oriented_rectangle")
CORNERS = ("rectangle", "circle", "mask")
"""Shapes that two points give."""


def _look(source: Path) -> str:
    found = files_of(source, "labelme")
    return f"{len(found)} LabelMe files, such as {found[0].name}" if found else ""


def labelme(source: Path, rules: Rules) -> Listing:
    """`x.json` with `shapes` and `imagePath`, at any depth; the image is where `imagePath` says, as
    long as that is in the source, or beside the file. A class is a shape's label.
    """
    files = files_of(source, "labelme")
    if not files:
        raise SourceError(f"{source}: has no LabelMe files (*.json with shapes and imagePath)")
    found: list[Annotation] = []
    bad: list[tuple[Original, Path]] = []
    listed: dict[Path, Path] = {}
    for path in files:
        name = path.relative_to(source).with_suffix("").as_posix()
        try:
            image = _image(source, path)
            if image in listed:
                raise SourceError(f"{path}: names the image {image}, as {listed[image]} does")
        except SourceError as error:
            message = str(error).removeprefix(f"{path}: ")
            bad.append((broken(name, (path,), message), path))
            continue
        listed[image] = path
        found.append(Annotation(name, image, path, partial(_read, path)))
    bad += [
        (
            broken(image.relative_to(source).as_posix(), (image,), "is named by no LabelMe file"),
            image,
        )
        for image in files_under(source)
        if is_picture(image) and image not in listed
    ]
    nuclei = count_classes(found).nuclei(source, rules)
    return Listing(named_apart([*originals(found, nuclei, rules), *bad]))


def _image(source: Path, path: Path) -> Path:
    """The image that a file names. SourceError where it is not there."""
    text = item(path, read_json(path), "imagePath", str, "the file").replace("\\", "/")
    inside = source.resolve()
    for place in (path.parent / text, path.parent / PurePosixPath(text).name):
        found = place.resolve()
        if found.is_file() and found.is_relative_to(inside):
            return source / found.relative_to(inside)
    raise SourceError(f"{path}: names the image {shown(text)}, which is not there")


def _read(path: Path) -> Annotated:
    """The shapes of a file in order; a group has the place of its first."""
    value = read_json(path)
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for number, shape in enumerate(item(path, value, "shapes", list, "the file")):
        label = item(path, shape, "label", str, f"shape {number}")
        group = shape.get("group_id")
        key = f"alone {number}" if group is None else f"group {shown(group)}"
        groups.setdefault((label, key), []).append(shape)
    outlines = [
        Outline(label, partial(_pixels, path, shapes)) for (label, _), shapes in groups.items()
    ]
    return Annotated(outlines, size(path, value, ("imageHeight", "imageWidth"), "the file"))


# -- pixels ----------------------------------------------------------------------------------------


def _pixels(path: Path, shapes: Sequence[Mapping[str, Any]], shape: Shape) -> list[Piece]:
    return [piece for each in shapes for piece in _shape_pixels(path, each, shape)]


def _shape_pixels(path: Path, value: Mapping[str, Any], shape: Shape) -> list[Piece]:
    kind = value.get("shape_type") or "polygon"  # old files have none
    where = f"a shape of label {shown(value['label'])}"
    if kind not in POLYGONS + CORNERS:
        expected = ", ".join(POLYGONS + CORNERS)
        raise SourceError(f"{path}: {where} is a {shown(kind)}, expected one of {expected}")
    vertices = points(path, value.get("points"), where)
    if kind in POLYGONS:
        return drawn(vertices, shape)
    if len(vertices) != 2:
        raise SourceError(f"{path}: {where} is a {kind} of {len(vertices)} points, expected 2")
    if kind == "circle":
        centre, radius = vertices[0], math.dist(*vertices)
        return drawn(np.array([centre - radius, centre + radius]), shape, "ellipse")
    low, high = vertices.min(0), vertices.max(0)
    if kind == "rectangle":
        return drawn(np.array([low, high]), shape, "rectangle")
    return _mask(path, value.get("mask"), np.rint(vertices).astype(int), shape, where)


def _mask(path: Path, text: Any, corners: np.ndarray, shape: Shape, where: str) -> list[Piece]:
    """A painted shape: a PNG as base64, and its first and last pixel."""
    mask = _decoded(path, text, shape, where)
    (left, top), (width, height) = corners[0].tolist(), (corners[1] - corners[0] + 1).tolist()
    if mask.shape != (height, width):
        found = f"{mask.shape[1]} x {mask.shape[0]}"
        raise SourceError(
            f"{path}: {where} has a mask of {found} pixels, expected {width} x {height}"
        )
    rows, columns = (
        slice(max(0, -top), max(0, shape[0] - top)),
        slice(max(0, -left), max(0, shape[1] - left)),
    )
    mask = mask[rows, columns]
    return [Piece(max(0, top), max(0, left), mask)] if mask.size else []


def _decoded(path: Path, text: Any, shape: Shape, where: str) -> np.ndarray:
    """No larger than the image, which is told before it is decoded."""
    try:
        content = base64.b64decode(text if isinstance(text, str) else "", validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if picture.height > shape[0] + 1 or picture.width > shape[1] + 1:
                raise SourceError(f"{path}: {where} has a mask that is larger than its image")
            return np.array(picture.convert("L")) > 0
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, binascii.Error) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: {where} has a mask that is not a PNG as base64") from None


LAYOUTS: dict[str, Layout] = {"labelme": Layout(_look, labelme)}
