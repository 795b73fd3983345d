"""The layout of YOLO's segmentation data: `images/` beside `labels/`, a text file for each image.

A line is the number of a class and the corners of a polygon as shares of the image's width and
height (https://docs.ultralytics.com/datasets/segment). Rule 3 of `outlines` says which pixels it
encloses, as Ultralytics' own training rounds corners down and fills up to the edge.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from training.layouts.json_files import shown
from training.layouts.original import (
    Layout,
    Listing,
    Original,
    broken,
    folders_named,
    is_hidden,
    named_apart,
    pictures_in,
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

OUTSIDE = 0.01
"""How far out of 0 to 1 a share may lie, as Ultralytics allows: what is further is no share."""
DECIMALS = 0.01
"""Pixels that a corner may lack because its share was written with few decimals."""
LARGEST, DEEPEST = 1 << 18, 20
"""Bytes of a file of names, and lists within lists in it."""
NO_IMAGE = "labels without an image"


def _look(source: Path) -> str:
    for images, labels in _folders(source):
        files = [path for path in _texts(labels) if _is_polygons(path)]
        if files and pictures_in(images):
            return f"polygons in {files[0].relative_to(source)}"
    return ""


def _is_polygons(path: Path) -> bool:
    """Whether a file begins with a class and at least three corners."""
    try:
        with path.open("rb") as file:
            words = file.readline(1 << 16).removeprefix(codecs.BOM_UTF8).split()
        return len(words) >= 7 and all(math.isfinite(float(word)) for word in words)
    except (OSError, ValueError):
        return False


def yolo(source: Path, rules: Rules) -> Listing:
    """`images/train/x.png` with `labels/train/x.txt`, or `train/images` with `train/labels`; an
    image without nuclei has an empty file. The names of classes are those of `data.yaml`.
    """
    folders = _folders(source)
    if not folders:
        raise SourceError(f"{source}: has no folder images with a folder labels beside it")
    names, read = _names(source)
    found: list[Annotation] = []
    bad: list[tuple[Original, Path]] = []
    unused: dict[Path, str] = {}
    for images, labels in folders:
        pictures = pictures_in(images)
        stems = {path.stem for path in pictures}
        unused |= {path: NO_IMAGE for path in _texts(labels) if path.stem not in stems}
        for image in pictures:
            name, label = (
                image.relative_to(source).with_suffix("").as_posix(),
                labels / f"{image.stem}.txt",
            )
            if label.is_file():
                reader = partial(_read, label, names)
                found.append(Annotation(name, image, label, reader, also=tuple(read)))
            else:
                message = f"has no {label}; an empty file says that there are no nuclei"
                bad.append((broken(name, (image,), message), image))
    classes = count_classes(found)
    classes.numbers = {str(number): {name} for number, name in names.items()}
    nuclei = classes.nuclei(source, rules)
    return Listing(named_apart([*originals(found, nuclei, rules), *bad]), unused, read)


def _folders(source: Path) -> list[tuple[Path, Path]]:
    """Folders of images, each with that of their labels, which is there."""
    found = []
    for top in folders_named(source, ["images"]):
        for images in [top, *sorted(path for path in top.rglob("*") if path.is_dir())]:
            labels = top.parent / "labels" / images.relative_to(top)
            if labels.is_dir():
                found.append((images, labels))
    return found


def _texts(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.txt") if p.is_file() and not is_hidden(p))


# -- names of classes ------------------------------------------------------------------------------


def _names(source: Path) -> tuple[dict[int, str], list[Path]]:
    """Names by number from the YAML files that have `names`, and these files."""
    found: dict[Path, dict[int, str]] = {}
    for path in sorted([*source.rglob("*.yaml"), *source.rglob("*.yml")]):
        if path.is_file() and not is_hidden(path):
            names = _names_in(path)
            if names:
                found[path] = names
    paths = list(found)
    if any(found[path] != found[paths[0]] for path in paths):
        raise SourceError(f"{paths[0]} and {paths[1]}: name the classes differently")
    return (found[paths[0]] if paths else {}), paths


def _names_in(path: Path) -> dict[int, str]:
    try:
        content = path.read_bytes()
        if not re.search(rb"^names\s*:", content, re.MULTILINE):
            return {}
        _refuse_tricks(path, content)
        value = yaml.safe_load(content)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    except SourceError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())[:200]
        raise SourceError(f"{path}: is not YAML ({line})") from None
    names = value.get("names") if isinstance(value, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if names is None:
        return {}
    if not isinstance(names, dict) or not all(_is_name(*each) for each in names.items()):
        raise SourceError(f"{path}: has names {shown(names)}, expected a list of names")
    return {number: str(name) for number, name in names.items()}


def _refuse_tricks(path: Path, content: bytes) -> None:
    """SourceError for what a small file could take forever with."""
    if len(content) > LARGEST:
        raise SourceError(f"{path}: has {len(content)} bytes, expected names in up to {LARGEST}")
    depth = 0
    for event in yaml.parse(content):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
            raise SourceError(f"{path}: has an alias or is nested deeply, which names do not need")


def _is_name(number: Any, name: Any) -> bool:
    return type(number) is int and isinstance(name, str | int)


# -- labels ----------------------------------------------------------------------------------------


def _read(path: Path, names: Mapping[int, str]) -> Annotated:
    """The polygons of a file, in order."""
    outlines = []
    for number, words in _lines(path):
        where = f"line {number}"
        values = [_value(path, word, where) for word in words]
        if len(values) == 5:
            raise SourceError(
                f"{path}: {where} has a class and 4 numbers, which is a box, not an outline, "
                "expected a class and the corners of a polygon"
            )
        if len(values) % 2 == 0:
            raise SourceError(f"{path}: {where} has {len(values)} numbers, expected x, y in pairs")
        label = _label(path, values[0], names, where)
        shares = np.array(values[1:]).reshape(-1, 2)
        if len(shares) and not (shares.min() >= -OUTSIDE and shares.max() <= 1 + OUTSIDE):
            worst = max(values[1:], key=lambda value: abs(value - 0.5))
            raise SourceError(f"{path}: {where} has {worst:g}, expected shares of 0 to 1")
        outlines.append(Outline(label, partial(_pixels, shares)))
    return Annotated(outlines)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise SourceError(f"{path}: is not text, expected lines of numbers") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.split()


def _value(path: Path, word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SourceError(f"{path}: {where} has {shown(word)}, expected a number")
    return value


def _label(path: Path, value: float, names: Mapping[int, str], where: str) -> str:
    if value != int(value) or value < 0 or (names and int(value) not in names):
        expected = ", ".join(map(str, list(names)[:10])) if names else "0, 1, 2"
        raise SourceError(f"{path}: {where} has the class {value:g}, expected one of {expected}")
    return names.get(int(value), str(int(value)))


def _pixels(shares: np.ndarray, shape: Shape) -> list[Piece]:
    if len(shares) < 3:
        return []
    height, width = shape
    return drawn(shares * (width, height) + DECIMALS, shape)


LAYOUTS: dict[str, Layout] = {"yolo": Layout(_look, yolo)}
