"""What is given of a pair, as the API takes it: from files, pictures, pairs and tokens.

Knows no HTTP. Whether a mask or an image fits is for the service to say.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from pathar.contract import LARGEST_SIDE, most_image_bytes, most_mask_bytes
from pathar.errors import UsageError
from pathar.pairs import Pair

Picture = Image.Image | str | os.PathLike[str]
"""A Pillow image, or the path of a PNG."""
Given = Mapping[str, Any] | Pair | Picture
"""A picture (of structure a mask, of appearance an image), a pair whose job the service still has,
or the API's own form."""
Field = Literal["structure", "appearance"]
Form = Mapping[str, Any]

PNG_OF: Mapping[Field, str] = {"structure": "mask_png", "appearance": "image_png"}


def given_form(field: Field, given: object, keep: object = None) -> Form:
    """A field of a request from a `Given`, of which the region `keep` is kept: all without one.
    UsageError on anything else, and on a file that cannot be read or is too large."""
    match given:
        case Pair():
            # By its job: the service then knows whether another model would read its tokens.
            form: Form = {"job_id": given.job_id, "index": given.index}
        case Mapping():
            form = given
        case Image.Image() | str() | os.PathLike():
            form = {PNG_OF[field]: png_text(field, given)}
        case _:
            kinds = "the path of a PNG, a Pillow image, a pair, or a mapping as the API takes it"
            raise UsageError(f"{field}: got {type(given).__name__}, expected {kinds}")
    return form if keep is None else {**form, "keep_png": png_text("keep", keep)}


def png_text(field: str, picture: object) -> str:
    """A `Picture` as PNG in base64, for a field that errors name. UsageError."""
    match picture:
        case Image.Image():
            file = io.BytesIO()
            try:
                picture.save(file, "PNG")
            except OSError:
                expected = "RGB" if field == "appearance" else "L or 1"
                raise UsageError(f"{field}: got mode {picture.mode}, expected {expected}") from None
            name, png = "the image", file.getvalue()
        case str() | os.PathLike():
            name, png = str(picture), _read(field, Path(picture))
        case _:
            kinds = "the path of a PNG or a Pillow image"
            raise UsageError(f"{field}: got {type(picture).__name__}, expected {kinds}")
    if len(png) > (most := _most(field)):
        raise UsageError(f"{field}: {name} is too large, expected a PNG of up to {most} bytes")
    return base64.b64encode(png).decode()


def _most(field: str) -> int:
    most = most_image_bytes if field == "appearance" else most_mask_bytes
    return most(LARGEST_SIDE, LARGEST_SIDE)


def _read(field: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_most(field) + 1)
    except OSError as error:
        raise UsageError(f"{field}: {path} cannot be read: {error.strerror}") from None


def encoded(image: Picture | None, mask: Picture | None) -> dict[str, Form]:
    """What a request gives to have an image encoded, its mask, or both. UsageError on neither."""
    if image is None and mask is None:
        raise UsageError("encode: got neither image nor mask, expected one of them or both")
    structure = {"segmented": True} if mask is None else given_form("structure", mask)
    if image is None:
        return {"structure": structure}
    return {"structure": structure, "appearance": given_form("appearance", image)}


def decoded(structure: ArrayLike, appearance: ArrayLike) -> dict[str, Form]:
    """What a request gives to have token ids [rows, columns] decoded. UsageError."""
    return {
        "structure": {"tokens": _rows("structure_tokens", structure)},
        "appearance": {"tokens": _rows("appearance_tokens", appearance)},
    }


def _rows(field: str, ids: ArrayLike) -> list[list[int]]:
    try:
        grid = np.asarray(ids)
    except ValueError:
        grid = np.zeros(0)
    if grid.ndim != 2 or grid.dtype.kind not in "iu":
        raise UsageError(f"{field}: expected rows of token ids, all as long as each other")
    rows: list[list[int]] = grid.tolist()
    return rows
