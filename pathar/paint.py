"""`pathar paint`, `encode` and `decode`: what the user gives of pairs, drawn as `pathar generate`
draws others.

Knows nothing of what a mask or an image may be: what draws says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pathar.errors import UsageError
from pathar.generate import Wanted, generate
from pathar.given import decoded, encoded, given_form

ALONE: Mapping[str, Any] = {"n": 1, "seed": 0}
"""One pair, with the seed that the routes take: most often nothing is drawn."""


def paint(wanted: Wanted, mask: Path, image: Path | None, keep: Path | None) -> None:
    """Draw what is wanted, with the structure of a mask and the appearance of an image, in the
    region that is kept of them. UsageError."""
    given = {"structure": given_form("structure", mask, keep)}
    words = [str(mask)]
    if image is not None:
        given["appearance"] = given_form("appearance", image, keep)
        words += ["--image", str(image)]
    if keep is not None:
        words += ["--keep", str(keep)]
    _draw(wanted, given, words)


def encode(wanted: Wanted, image: Path | None, mask: Path | None) -> None:
    """Write the tokens of an image and its mask, and their reconstruction. UsageError."""
    _draw(wanted, {**encoded(image, mask), **ALONE})


def decode(wanted: Wanted, tokens: Path) -> None:
    """Write the pixels of the token ids in a file as `tokens.json`. UsageError."""
    try:
        grids = json.loads(tokens.read_bytes())
        given = decoded(grids["structure_tokens"], grids["appearance_tokens"])
    except OSError as error:
        raise UsageError(f"tokens: {tokens} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        expected = "JSON with structure_tokens and appearance_tokens, rows of ids"
        raise UsageError(f"tokens: {tokens} is something else, expected {expected}") from None
    _draw(wanted, {**given, **ALONE})


def _draw(wanted: Wanted, fields: Mapping[str, Any], words: Sequence[str] = ()) -> None:
    generate(replace(wanted, fields={**wanted.fields, **fields}, words=words))
