"""Reading JSON from untrusted files, and telling annotation formats by a look at their files.

Anything that is not JSON, or holds a value of an unexpected kind, is a SourceError of one line that
names the file and the place in it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from training.layouts.original import files_under, is_hidden
from training.layouts.outlines import LIMIT
from training.rasters import SourceError

Format = Literal["coco", "geojson", "labelme"]
GLANCE = 1 << 16
"""Bytes of a file's head, and of its tail, that tell its format."""
SIGNS: dict[Format, tuple[re.Pattern[bytes], ...]] = {
    "coco": (
        re.compile(rb'"(annotations|images|categories)"\s*:\s*\['),
        re.compile(rb'"(file_name|image_id|category_id)"\s*:'),
    ),
    "geojson": (re.compile(rb'"type"\s*:\s*"Feature(Collection)?"'),),
    "labelme": (
        re.compile(rb'"shapes"\s*:\s*\['),
        re.compile(rb'"(imagePath|imageData|shape_type)"\s*:'),
    ),
}
"""What all files of a format have, each in its head or its tail."""


def files_of(source: Path, form: Format) -> list[Path]:
    """The JSON files at any depth that look like a format, in a fixed order."""
    endings = (".geojson", ".json")
    found = [p for p in files_under(source) if p.suffix.lower() in endings and not is_hidden(p)]
    return [path for path in found if _format(path) == form]


def _format(path: Path) -> Format | None:
    """By its first and last bytes; a file that cannot be read has none."""
    try:
        with path.open("rb") as file:
            glance = file.read(GLANCE)
            file.seek(max(len(glance), path.stat().st_size - GLANCE))
            glance += file.read(GLANCE)
    except OSError:
        return None
    for form, signs in SIGNS.items():
        if all(sign.search(glance) for sign in signs):
            return form
    return "geojson" if path.suffix.lower() == ".geojson" else None


def read_json(path: Path) -> Any:
    """The value of a JSON file; NaN and infinities are refused, which are no JSON."""

    def refuse(constant: str) -> None:
        raise SourceError(f"{path}: holds {constant}, expected a number")

    try:
        return json.loads(path.read_bytes(), parse_constant=refuse)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError:
        raise SourceError(f"{path}: is nested too deeply for an annotation") from None
    except MemoryError:
        raise SourceError(f"{path}: does not fit into memory") from None
    except ValueError as error:
        raise SourceError(f"{path}: is not JSON ({error})") from None


def item(path: Path, value: Any, key: str, kind: type, where: str) -> Any:
    """An entry of a JSON object. SourceError where it is missing or of another kind."""
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        names = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}
        raise SourceError(f"{path}: {where} has {key} {shown(found)}, expected {names[kind]}")
    return found


def numbers(path: Path, values: Any, where: str) -> np.ndarray:
    """Coordinates [N] from a list. SourceError where one is no number of at most LIMIT."""
    if not isinstance(values, list):
        raise SourceError(f"{path}: {where} has {shown(values)}, expected a list of numbers")
    for value in values:
        if type(value) not in (int, float) or not abs(value) <= LIMIT:
            raise SourceError(
                f"{path}: {where} has the coordinate {shown(value)}, expected a number of pixels "
                f"up to {LIMIT:,.0f}"
            )
    return np.array(values, dtype=np.float64)


def points(path: Path, values: Any, where: str) -> np.ndarray:
    """Points [N, 2] from a list of [x, y]; what follows the two is left out."""
    if not isinstance(values, list):
        raise SourceError(f"{path}: {where} has {shown(values)}, expected a list of points")
    for value in values:
        if not isinstance(value, list) or len(value) < 2:
            raise SourceError(f"{path}: {where} has the point {shown(value)}, expected [x, y]")
    flat = [coordinate for value in values for coordinate in value[:2]]
    return numbers(path, flat, where).reshape(-1, 2)


def size(path: Path, value: Any, names: tuple[str, str], where: str) -> tuple[int, int] | None:
    """Height and width as a file states them under two names, or None where it does not."""
    if all(value.get(name) is None for name in names):
        return None
    height, width = (item(path, value, name, int, where) for name in names)
    return height, width


def shown(value: Any) -> str:
    """A value for a message, cut short."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
