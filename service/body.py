"""Reads a JSON body safely, alone or with files in a form: checks its type, its size as it streams
in, and its depth.

Knows neither the fields nor the routes.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, NoReturn

from fastapi import Request

from pathar.contract import BadBody, BodyTooLarge, UnsupportedMediaType
from service.form import REQUEST, joined, read_parts

MAX_BODY_BYTES = 1024 * 1024
"""The largest body of a request in bytes, without its files."""
MOST_WITH_FILES = 4 * MAX_BODY_BYTES
"""The largest body with files: an image of a megapixel, a mask and regions in a form or, where the
image has less than three bytes a pixel, in base64."""


async def read_json(request: Request, files: Collection[str] = ()) -> Any:
    """The parsed JSON body. Where it may have `files` beside it in a form, they are in it, in
    base64. UnsupportedMediaType, BodyTooLarge, BadBody; RequestError, which names a part."""
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in ("application/json", *["multipart/form-data"] * bool(files)):
        form = ", or with files as multipart/form-data" * bool(files)
        raise UnsupportedMediaType(f"send the body with Content-Type: application/json{form}")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(
            f"Content-Encoding: got {encoding[:100]!r}, expected none: send the body as it is",
            headers={"Accept-Encoding": "identity"},
        )
    body = await _read(request, MOST_WITH_FILES if files else MAX_BODY_BYTES)
    if media_type == "application/json":
        return _parse(body, files)
    parts = read_parts(content_type, body, files)
    return joined(_parse(parts.pop(REQUEST), files), parts)


async def _read(request: Request, most: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:20]) > most:
        raise BodyTooLarge(f"a body may have up to {most} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise BodyTooLarge(f"a body may have up to {most} bytes")
    return bytes(body)


def _parse(body: bytes, files: Collection[str]) -> Any:
    """The JSON of a body, in which few bytes are of no file: they are work for its reader."""
    values = _values(body)
    if len(body) > MAX_BODY_BYTES:
        own = len(body) - sum(len(_text_at(values, name)) for name in files)
        if own > MAX_BODY_BYTES:
            raise BodyTooLarge(f"a body may have up to {MAX_BODY_BYTES} bytes beside its PNGs")
    return values


def _text_at(values: Any, name: str) -> str:
    """The text of a field with this dotted name; empty where there is none."""
    for field in name.split("."):
        values = values.get(field) if isinstance(values, dict) else None
    return values if isinstance(values, str) else ""


def _values(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except RecursionError:
        raise BadBody("the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise BadBody("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadBody(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:
        raise BadBody("the body has a number with too many digits") from None


def _refuse_constant(name: str) -> NoReturn:
    raise BadBody(f"{name} is not JSON; numbers must be finite")
