"""`pathar paint`: pairs for a mask of the user's own, as `pathar generate` draws others.

Knows nothing of what a mask may be: what draws says so.
"""

from __future__ import annotations

from dataclasses import replace

from pathar.generate import Wanted, generate
from pathar.given import of_file


def paint(wanted: Wanted) -> None:
    """Draw what is wanted, with the structure of its mask. UsageError."""
    assert wanted.mask is not None
    generate(replace(wanted, fields={**wanted.fields, "structure": of_file(wanted.mask)}))
