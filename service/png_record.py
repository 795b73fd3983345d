"""Reads the record in a PNG that a worker wrote. Knows nothing of its pixels."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from pathar.contract import RECORD_KEY

FIRST = 8
"""Bytes before the first chunk of a PNG."""
TEXT = RECORD_KEY.encode() + b"\0\0\0\0\0"
"""What the chunk iTXt of a record begins with."""


def record_of(png: bytes) -> Mapping[str, Any]:
    """The record; empty where there is none."""
    at = FIRST
    while at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        content = png[at + 8 : at + 8 + length]
        if kind == b"iTXt" and content.startswith(TEXT):
            record: Mapping[str, Any] = json.loads(content[len(TEXT) :])
            return record
        at += 12 + length
    return {}
