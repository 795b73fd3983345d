"""The layout of COCO: one JSON file, or several, with the images, their objects and the classes.

Polygons become pixels as in pycocotools, which is part of the format: coordinates are those of
pixels' corners, and all polygons of an object are parts of it. Run lengths count pixels down the
columns. An object with `iscrowd` stands for several objects without an outline each. It is not
painted, and its region is doubtful (https://cocodataset.org/#format-data).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from training.layouts.json_files import files_of, item, numbers, read_json, shown, size
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
    around,
    originals,
)
from training.pictures import Rules
from training.rasters import SourceError

CROWD = "crowd regions"
NOT_LISTED = "image that no annotation file lists"
NO_OUTLINES = "annotation file without outlines"


@dataclass
class File:
    """An annotation file: its images, the objects of each, and the classes by id."""

    path: Path
    images: list[dict[str, Any]] = field(default_factory=list)
    objects: dict[int | str, list[dict[str, Any]]] = field(default_factory=dict)
    classes: dict[int, str] = field(default_factory=dict)


def _look(source: Path) -> str:
    found = files_of(source, "coco")
    return f"{len(found)} COCO annotation files, such as {found[0].name}" if found else ""


def coco(source: Path, rules: Rules) -> Listing:
    """JSON files with `images`, `annotations` and `categories`, and the images that they list,
    beside them, in the source, or anywhere in it where the name is found once.
    """
    paths = files_of(source, "coco")
    if not paths:
        raise SourceError(
            f"{source}: has no COCO annotation file (*.json with images, annotations)"
        )
    files: list[File] = []
    bad: list[tuple[Original, Path]] = []
    unused: dict[Path, str] = {}
    for path in paths:
        try:
            file = _read_file(path)
        except SourceError as error:
            message = str(error).removeprefix(f"{path}: ")
            bad.append((broken(str(path.relative_to(source)), (path,), message), path))
            continue
        outlined = any("segmentation" in each for of in file.objects.values() for each in of)
        if file.objects and not outlined:
            unused[path] = NO_OUTLINES  # captions, boxes or key points of the same images
        else:
            files.append(file)
    classes, found = _classes(files), _Found(source)
    for file in files:
        bad += found.add(file)
    chosen = classes.nuclei(source, rules)
    listed = [*originals(found.annotations, chosen, rules), *bad]
    used = {path for original, _ in listed for path in original.files}
    pictures = [path for path in found.pictures if path not in used]
    return Listing(named_apart(listed), unused | dict.fromkeys(pictures, NOT_LISTED), paths)


def _classes(files: Sequence[File]) -> Classes:
    """How often each class is annotated; an id means one name, or none where files disagree."""
    classes = Classes()
    names: dict[str, set[str]] = {}
    for file in files:
        for number, name in file.classes.items():
            names.setdefault(str(number), set()).add(name)
        for objects in file.objects.values():
            classes.found.update(_label(file, each) for each in objects)
    classes.numbers = {number: found for number, found in names.items() if len(found) == 1}
    return classes


# -- annotation files ------------------------------------------------------------------------------


def _read_file(path: Path) -> File:
    """What an annotation file lists. SourceError where it is not as the format says."""
    value = read_json(path)
    file = File(path, item(path, value, "images", list, "the file"))
    for each in value.get("categories") or []:
        number = item(path, each, "id", int, "a category")
        file.classes[number] = item(path, each, "name", str, f"category {number}")
    known = set()
    for each in file.images:
        item(path, each, "file_name", str, "an image")
        number = _id(path, each, "id", "an image")
        if number in known:
            raise SourceError(f"{path}: has two images of id {number}, expected one")
        known.add(number)
    for each in value.get("annotations") or []:
        number = _id(path, each, "image_id", "an annotation")
        if number not in known:
            raise SourceError(
                f"{path}: has an annotation of image {number}, which it does not list"
            )
        file.objects.setdefault(number, []).append(each)
    for objects in file.objects.values():
        for each in objects:
            _label(file, each)
    return file


def _id(path: Path, value: Any, key: str, where: str) -> int | str:
    """An image's id: a number, or a text in some tools' files."""
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, int | str) or isinstance(found, bool):
        raise SourceError(f"{path}: {where} has {key} {shown(found)}, expected a number")
    return found


def _label(file: File, value: Mapping[str, Any]) -> str:
    if "category_id" not in value:
        return "unclassified"
    number = value["category_id"]
    if not isinstance(number, int) or number not in file.classes:
        raise SourceError(
            f"{file.path}: an annotation has category_id {shown(number)}, expected one of "
            f"{', '.join(map(str, list(file.classes)[:10])) or 'categories, which it has not'}"
        )
    return file.classes[number]


def _is_crowd(value: Mapping[str, Any]) -> bool:
    return value.get("iscrowd") in (1, True)


class _Found:
    """The images of a source's annotation files, each with its picture."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.annotations: list[Annotation] = []
        self.pictures = [path for path in files_under(source) if is_picture(path)]
        self._of_name: dict[str, list[Path]] = {}
        for path in self.pictures:
            self._of_name.setdefault(path.name, []).append(path)
        self._listed: dict[Path, Path] = {}

    def add(self, file: File) -> Iterator[tuple[Original, Path]]:
        """Take a file's images; gives those that have no picture, or are listed twice."""
        for entry in file.images:
            name = entry["file_name"].replace("\\", "/")
            found = self._pictures(file, PurePosixPath(name))
            stem = str(PurePosixPath(name).with_suffix(""))
            if len(found) != 1:
                several = " and ".join(map(str, found[:2]))
                why = f"can be {several}" if found else "is not there"
                message = f"lists the image {shown(name)}, which {why}"
                yield broken(f"{file.path.stem}/{stem}", (file.path,), message), file.path
            elif found[0] in self._listed:
                message = f"is annotated in {self._listed[found[0]]} and in {file.path}"
                yield broken(f"{file.path.stem}/{stem}", (found[0],), message), found[0]
            else:
                self._listed[found[0]] = file.path
                image = found[0].relative_to(self.source).with_suffix("").as_posix()
                objects = file.objects.get(entry["id"], [])
                read = partial(_annotated, file, entry, objects)
                self.annotations.append(Annotation(image, found[0], file.path, read))

    def _pictures(self, file: File, name: PurePosixPath) -> list[Path]:
        ends = [p for p in self._of_name.get(name.name, []) if _ends(p, name)]
        for place in (file.path.parent, self.source):
            if place / name in ends:
                return [place / name]
        return ends


def _ends(path: Path, name: PurePosixPath) -> bool:
    parts = [part for part in name.parts if part not in (".", "/")]
    return list(path.parts[-len(parts) :]) == parts


def _annotated(
    file: File, entry: Mapping[str, Any], objects: Sequence[dict[str, Any]]
) -> Annotated:
    where = f"image {shown(entry['file_name'])}"
    outlines = [
        Outline(
            _label(file, each),
            partial(_pixels, file.path, each),
            CROWD if _is_crowd(each) else "",
        )
        for each in objects
    ]
    return Annotated(outlines, size(file.path, entry, ("height", "width"), where))


# -- pixels ----------------------------------------------------------------------------------------


def _pixels(path: Path, value: Mapping[str, Any], shape: Shape) -> list[Piece]:
    where = f"annotation {shown(value.get('id'))}"
    found = value.get("segmentation")
    if isinstance(found, dict):
        return _run_lengths(path, found, shape, where)
    if not isinstance(found, list) or not found:
        raise SourceError(
            f"{path}: {where} has segmentation {shown(found)}, expected polygons or run lengths; "
            "a box is no outline"
        )
    return [piece for part in found for piece in _polygon(path, part, shape, where)]


def _polygon(path: Path, values: Any, shape: Shape, where: str) -> list[Piece]:
    """[x1, y1, x2, y2, ...]; drawn in the part of the image that it reaches."""
    flat = numbers(path, values, where)
    if len(flat) % 2:
        raise SourceError(f"{path}: {where} has {len(flat)} coordinates, expected an even number")
    vertices = flat.reshape(-1, 2)
    if len(vertices) < 3:
        return []
    box = around(vertices, shape)
    if box is None:
        return []
    top, left, bottom, right = box
    moved = (vertices - (left, top)).ravel().tolist()
    height, width = bottom - top, right - left
    packed = coco_mask.frPyObjects([moved], height, width)[0]["counts"].decode()
    return _covered(_unpacked(path, packed, where), (height, width), top, left)


def _run_lengths(path: Path, value: Mapping[str, Any], shape: Shape, where: str) -> list[Piece]:
    """An object's run lengths, as a list or compressed."""
    stated = value.get("size")
    if stated != list(shape):
        raise SourceError(
            f"{path}: {where} has run lengths of size {_listed(stated)}, expected that of the "
            f"image, {list(shape)}"
        )
    counts = value.get("counts")
    if isinstance(counts, str):
        counts = _unpacked(path, counts, where)
    height, width = shape
    runs: list[int] = counts if isinstance(counts, list) else []
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != height * width:
        raise SourceError(
            f"{path}: {where} has run lengths that do not cover {height * width} pixels"
        )
    return _covered(runs, shape, 0, 0)


def _covered(runs: Sequence[int], shape: Shape, top: int, left: int) -> list[Piece]:
    """Run lengths are of pixels outside and inside in turn, down the columns, in the part of an
    image that begins at `top` and `left`. Columns before the first that is reached, and after the
    last, are cut off.
    """
    height, width = shape
    runs = [*runs, 0] if len(runs) % 2 == 0 else list(runs)
    before, after = runs[0] // height, runs[-1] // height
    if before + after >= width:
        return []
    runs[0], runs[-1] = runs[0] - before * height, runs[-1] - after * height
    mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return [Piece(top, left + before, mask.reshape(height, width - before - after, order="F"))]


def _listed(value: Any) -> str:
    return str(value) if isinstance(value, list) and len(value) == 2 else shown(value)


def _unpacked(path: Path, text: str, where: str) -> list[int]:
    """Compressed run lengths: five bits a letter, the lowest first, the sixth says that more
    follow; from the third on, a length is the difference to the one before the last (rleFrString
    of pycocotools, which itself reads past the end of a text that breaks off).
    """
    counts: list[int] = []
    value = bits = 0
    for letter in text.encode("utf-8", "replace"):
        code = letter - 48
        if not 0 <= code < 64 or bits > 30:
            raise SourceError(f"{path}: {where} has run lengths that cannot be decompressed")
        value |= (code & 31) << bits
        bits += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << bits
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = bits = 0
    if bits:
        raise SourceError(f"{path}: {where} has run lengths that break off")
    return counts


LAYOUTS: dict[str, Layout] = {"coco": Layout(_look, coco)}
