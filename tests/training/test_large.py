"""Originals with more pixels than memory has room for are imported like any other."""

from __future__ import annotations

import itertools
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from training import scratch
from training.pictures import Rules, read_image
from training.rasters import SourceError
from training.run import StageError
from training.tiles import tile_places

SIDE, BLOCK, TILE = 7_000, 700, 1_000
MEMORY = 100 * 2**20
"""Bytes that the command may allocate beside its modules, of which torch's take 300 to 800 million
by its build. Its picture alone has 147 million."""
LIMITED = f"""
import resource
from pathlib import Path
from PIL import Image
from training import scratch
from training.import_patches import main

Image.MAX_IMAGE_PIXELS //= 4
scratch.LARGE //= 4
taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (taken + {MEMORY},) * 2)
main()
"""
PAPER, INK = (230, 190, 210), (90, 30, 120)


def nuclei() -> np.ndarray:
    """The mask, bool [SIDE, SIDE]: ten discs a block, larger ones to the right and further down,
    so that no place looks like another.
    """
    found = np.zeros((SIDE, SIDE), dtype=bool)
    for down, right in itertools.product(range(SIDE // BLOCK), repeat=2):
        radius = 10 + down + right
        y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
        disc = y**2 + x**2 < radius**2
        for number in range(10):
            top = down * BLOCK + 50 + 62 * number - radius
            left = right * BLOCK + 50 + 62 * (number * 7 % 10) - radius
            found[top : top + len(disc), left : left + len(disc)] |= disc
    return found


def write_original(source: Path, mask: np.ndarray) -> None:
    """A tiled TIFF beside a PNG of the same size."""
    (source / "images").mkdir(parents=True)
    (source / "masks").mkdir()
    image = np.where(mask[..., None], np.uint8(INK), np.uint8(PAPER))
    fast = {"compression": "zlib", "compressionargs": {"level": 1}}
    tifffile.imwrite(source / "images" / "slide.tif", image, tile=(512, 512), **fast)
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    picture.save(source / "masks" / "slide.png", compress_level=1)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux can")
def test_a_large_original_is_imported_in_little_memory(tmp_path: Path) -> None:
    """All limits are a quarter of what they are: Pillow would refuse so many pixels as a bomb."""
    drawn = nuclei()
    write_original(tmp_path / "source", drawn)
    words = f"folders {tmp_path / 'source'} --out {tmp_path / 'out'} --size {TILE} "
    words += "--modality histology --licence CC0-1.0"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words.split()], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 original, 49 tiles" in done.stdout
    for top, left in tile_places((SIDE, SIDE), TILE):
        inside = drawn[top : top + TILE, left : left + TILE]
        name = f"slide_{top:04d}_{left:04d}.png"
        with Image.open(tmp_path / "out" / "masks" / name) as mask:
            assert np.array_equal(np.array(mask), inside * np.uint8(255))
        with Image.open(tmp_path / "out" / "images" / name) as image:
            assert np.array_equal(np.array(image.getchannel(0)) == INK[0], inside)
    with Image.open(tmp_path / "out" / "overview.png") as sheet:
        assert max(sheet.size) <= 8 * 512


def test_the_limit_of_pixels_can_be_moved(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (1_200, 1_000)).save(path)
    assert read_image(path, Rules(max_megapixels=1.2)).shape == (1_000, 1_200, 3)
    with pytest.raises(SourceError, match=r"has 1 megapixels, .* limit of 1; --max-megapixels"):
        read_image(path, Rules(max_megapixels=1))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="cannot reserve room on a disk")
def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not met as a bus error when pixels are written."""
    monkeypatch.setattr(scratch, "LARGE", 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        folder = re.escape(tempfile.gettempdir())
        with pytest.raises(StageError, match=rf"{folder}: has no room for 0\.1 GB .* TMPDIR"):
            scratch.zeros((10_000, 10_000), np.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
