"""`pathar paint`: pairs for a mask of the user's own, as `pathar generate` draws others.

Knows nothing of what a mask may be: what draws says so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pathar.generate import Wanted, generate
from pathar.given import of_file


def paint(mask: Path, wanted: Wanted) -> None:
    """Draw what is wanted, with the structure of a mask. UsageError."""
    fields = {**wanted.fields, "structure": of_file(mask)}
    generate(replace(wanted, fields=fields, mask=mask))
