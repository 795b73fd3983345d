"""Given structure as the API takes it: from a mask, a pair, or what is in that form already.

Knows no HTTP. Whether a mask fits is for the service to say.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from pathar.contract import MOST_MASK_BYTES
from pathar.errors import UsageError
from pathar.pairs import Pair

Given = Mapping[str, Any] | Pair | Image.Image | str | os.PathLike[str]
"""A mask (the path of a PNG, or a Pillow image), a pair whose job the service still has, or the
API's own form."""


def given_structure(given: object) -> Mapping[str, Any]:
    """The field `structure` of a request from a `Given`. UsageError on anything else, and on a file
    that cannot be read or is too large for a mask."""
    match given:
        case Pair():
            # By its job: the service then knows whether another model would read its tokens.
            return {"job_id": given.job_id, "index": given.index}
        case Image.Image():
            file = io.BytesIO()
            try:
                given.save(file, "PNG")
            except OSError:
                raise UsageError(f"structure: got mode {given.mode}, expected L or 1") from None
            return of_png(file.getvalue(), "the image")
        case Mapping():
            return given
        case str() | os.PathLike():
            return of_file(Path(given))
    kinds = "the path of a PNG, a Pillow image, a pair, or a mapping as the API takes it"
    raise UsageError(f"structure: got {type(given).__name__}, expected {kinds}")


def of_file(path: Path) -> Mapping[str, Any]:
    """The structure of a mask in a PNG file."""
    try:
        with path.open("rb") as file:
            png = file.read(MOST_MASK_BYTES + 1)
    except OSError as error:
        raise UsageError(f"structure: {path} cannot be read: {error.strerror}") from None
    return of_png(png, str(path))


def of_png(png: bytes, name: str) -> Mapping[str, Any]:
    """The structure of a mask in the bytes of a PNG, which errors call `name`."""
    if len(png) > MOST_MASK_BYTES:
        expected = f"expected a PNG of up to {MOST_MASK_BYTES}"
        raise UsageError(f"structure: {name} is too large, {expected} bytes")
    return {"mask_png": base64.b64encode(png).decode()}
