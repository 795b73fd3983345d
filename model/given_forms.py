"""What the fields `structure` and `appearance` of a request stand for, in the forms of the API.

An earlier pair is for whoever has its tokens: it is turned into tokens first. Knows no HTTP.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from model.given import Given, Size, Stream, keep_bits, of_tokens
from model.given_png import read_image_png, read_mask_png, read_region_png
from model.request import ModelInfo, RequestError, check_given

SHOWN = 20
"""Characters of a text that is no base64 which an error shows."""

Form = Mapping[str, Any]


def read_given(
    structure: Form | None, appearance: Form | None, model: ModelInfo, size: Size | None = None
) -> Given | None:
    """What two forms give of images of this size, None for patches, checked against the model; None
    where they give nothing. RequestError.

    Tokens that are all None give nothing.
    """
    given = Given(
        _stream("structure", structure, model, size), _stream("appearance", appearance, model, size)
    )
    check_given(given, model, size)
    return None if given == Given() else given


def _stream(name: str, form: Form | None, model: ModelInfo, size: Size | None) -> Stream | None:
    """What a form of one field gives: the first of the contents that it has."""
    if form is None:
        return None
    kept, pixels = _kept(name, form, model, size), size or (model.image_size, model.image_size)
    if "tokens" in form:
        ids = _flat(f"{name}.tokens", form["tokens"], model, size)
        if kept is None and ids.count(None) == len(ids):
            return None
        if kept is not None:
            ids = [token if keep else None for token, keep in zip(ids, kept, strict=True)]
        return of_tokens(ids)
    keep = None if kept is None else keep_bits(kept)
    if "mask_png" in form:
        png = _decoded(f"{name}.mask_png", form["mask_png"])
        return Stream("mask", read_mask_png(png, pixels, f"{name}.mask_png"), keep)
    if "image_png" in form:
        png = _decoded(f"{name}.image_png", form["image_png"])
        return Stream("image", read_image_png(png, pixels, f"{name}.image_png"), keep)
    return Stream("segmented", keep=keep)


def _kept(name: str, form: Form, model: ModelInfo, size: Size | None) -> list[bool] | None:
    """The locations that a form keeps; None where it names no region."""
    text, field = form.get("keep_png"), f"{name}.keep_png"
    if text is None:
        return None
    pixels = size or (model.image_size, model.image_size)
    return read_region_png(_decoded(field, text), pixels, model.grid(size), field)


def _decoded(field: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        expected = "base64 with its padding, and nothing else"
        raise RequestError(field, text[:SHOWN], expected) from None


def _flat(
    field: str, rows: Sequence[Sequence[int | None]], model: ModelInfo, size: Size | None
) -> list[int | None]:
    count, length = model.grid(size)
    if [len(row) for row in rows] != [length] * count:
        found = " and ".join(sorted({str(len(row)) for row in rows})[:3])
        expected = f"{count} rows of {length} ids from 0 to {model.codebook_size - 1}"
        raise RequestError(field, f"{len(rows)} rows of {found} ids", expected)
    return [token for row in rows for token in row]
