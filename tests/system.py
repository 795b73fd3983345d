"""Programs and rights that tests marked `system` need. Where one is missing they are skipped, and
say which; with PATHAR_TEST_SYSTEM=1, as in CI, they fail instead.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
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


def old_compiler(folder: Path) -> Path:
    """A compiler that knows no set of instructions by name: `make` has compiled the code for all,
    which takes long."""
    path = folder / "old-compiler"
    path.write_text('#!/bin/sh\ncase $* in *-mavx*|*-march*) exit 1;; esac\nexec g++ "$@"\n')
    path.chmod(0o755)
    return path
