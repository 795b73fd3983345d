"""Programs and rights that tests marked `system` need. Where one is missing they are skipped, and
say which; with PATHAR_TEST_SYSTEM=1, as in CI, they fail instead.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def program(name: str) -> str:
    """The path of a program; the test ends here where it is missing."""
    return shutil.which(name) or missing(f"{name} is not on PATH")


def root() -> None:
    """The test ends here unless it runs as root."""
    if os.geteuid() != 0:
        missing("not run as root")


def missing(what: str) -> NoReturn:
    """End the test because of what is missing."""
    if os.environ.get("PATHAR_TEST_SYSTEM") == "1":
        pytest.fail(f"{what}, and PATHAR_TEST_SYSTEM=1 asks for it")
    pytest.skip(what)
