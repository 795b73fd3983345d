"""Reads a request that comes as multipart/form-data (RFC 7578): its JSON and the files beside it.

The body is whole and bounded when it comes here, and each step takes time in proportion to it. A
part is what lies between two delimiters: what it holds is not looked at. Knows no fields but those
that it is told.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Any

from model.request import RequestError
from pathar.contract import BadBody

REQUEST = "request"
"""The part that is the request as JSON."""
MOST_HEADERS = 1024
"""The most bytes of the headers of a part, and of the type of the body."""
LONGEST_BOUNDARY = 70
"""In characters (RFC 2046, section 5.1.1)."""


def read_parts(content_type: str, body: bytes, files: Collection[str]) -> dict[str, bytes]:
    """The parts by name: REQUEST, and of `files` those that there are. BadBody; RequestError, which
    names the part."""
    delimiter = b"\r\n--" + _boundary(content_type)
    most = len(files) + 1
    before, *pieces = (b"\r\n" + body).split(delimiter, most + 2)
    if before or not pieces or (len(pieces) < most + 2 and not pieces[-1].startswith(b"--")):
        raise BadBody("the body is no whole multipart/form-data with this boundary")
    parts: dict[str, bytes] = {}
    for piece in pieces:
        if piece.startswith(b"--"):
            break
        name, content = _part(piece)
        if name not in (REQUEST, *files):
            expected = f"{REQUEST} (the request as JSON), or one of the files {', '.join(files)}"
            raise RequestError(name, "a part", expected)
        if name in parts:
            raise RequestError(name, "two parts", "one of each name")
        parts[name] = content
    if REQUEST not in parts:
        raise RequestError(REQUEST, None, "a part with the request as JSON")
    return parts


def joined(values: Any, files: Mapping[str, bytes]) -> Any:
    """The JSON of a request, `values`, with its files in base64 at the fields that they are named
    by, as if it had come without a form. RequestError where it has one of them already."""
    for name, content in files.items():
        *owners, field = name.split(".")
        place = values
        for owner in owners:
            if isinstance(place, dict) and place.get(owner) is None:
                place[owner] = {}
            place = place.get(owner) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            continue  # it is no request, as whoever reads it will say
        if place.get(field) is not None:
            raise RequestError(name, "a part", f"it in {REQUEST} or as a part, not both")
        place[field] = base64.b64encode(content).decode()
    return values


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["content-type"] = content_type[:MOST_HEADERS]
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= LONGEST_BOUNDARY:
        raise BadBody(f"the boundary of the body: expected 1 to {LONGEST_BOUNDARY} characters")
    if not boundary.isascii():
        raise BadBody("the boundary of the body: expected ASCII")
    return boundary.encode()


def _part(piece: bytes) -> tuple[str, bytes]:
    """The name and the content of what lies between two delimiters."""
    head, found, content = piece.partition(b"\r\n\r\n")
    if not found or len(head) > MOST_HEADERS:
        raise BadBody(f"a part of the body: expected headers of up to {MOST_HEADERS} bytes")
    headers = BytesHeaderParser().parsebytes(head.lstrip())
    name = headers.get_param("name", header="content-disposition")
    if not isinstance(name, str):
        raise BadBody("a part of the body: expected Content-Disposition with a name")
    if headers.get("content-transfer-encoding", "binary").strip().lower() not in ("binary", "8bit"):
        raise BadBody(f"the part {name!r}: expected it as it is, without Content-Transfer-Encoding")
    return name, content
