"""`pathar demo`: what `make demo` runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from pathar.contact_sheet import CELL
from tests.pathar.test_cli import pathar

pytestmark = pytest.mark.processes

LABELS = ["cytology", "fluorescence", "histology", "blood", "cervix"]


def test_demo_writes_pairs_of_every_label_a_contact_sheet_and_the_latency(
    test_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = pathar("demo", "--out", str(out), checkpoint=test_checkpoint)
    assert done.returncode == 0, done.stderr
    for label in LABELS:
        assert re.search(rf"^{label} +\d+\.\d\d +6$", done.stdout, re.MULTILINE)
        assert len(list(out.glob(f"{label}_*_00000_image.png"))) == 6
        assert len(list(out.glob(f"{label}_*_00000_mask.png"))) == 6
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 6 * CELL
        assert sheet.height > 2 * CELL * len(LABELS)


def test_a_service_that_does_not_start_ends_the_demo_with_its_reason(tmp_path: Path) -> None:
    done = pathar("demo", "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "PATHAR_CHECKPOINT" in done.stderr
