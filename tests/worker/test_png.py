"""PNG files: what they hold, and that their bytes do not depend on the processor."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.system import program
from worker.png import encode_png

TEXTS = {"pathar": "Gewebe, µm", "more": ""}
PROCESSORS = ("Nehalem", "Haswell", "max")
"""With SSE4.2, the least that numpy runs on, with AVX2, and with all that the emulator knows."""


def pictures() -> list[np.ndarray]:
    """Noise in 8 and 16 bits, a smooth picture, and a mask with one value."""
    chance = np.random.default_rng(3)
    y, x = np.mgrid[:96, :80]
    smooth = np.dstack([y * 2, x * 3, (x + y)]).astype(np.uint8)
    mask = ((y - 40) ** 2 + (x - 40) ** 2 < 300) * np.uint8(255)
    noise = chance.integers(0, 256, (64, 48, 3), dtype=np.uint8)
    ids = chance.integers(0, 2**16, (48, 64), dtype=np.uint16)
    return [noise, smooth, mask, smooth[:1, :1], ids, ids.T]


def digests() -> str:
    """One of the bytes of all pictures."""
    files = (encode_png(each, {"pathar": "text"}) for each in pictures())
    return hashlib.sha256(b"".join(files)).hexdigest()


@pytest.mark.parametrize("number", range(len(pictures())))
def test_a_file_holds_the_pixels_and_the_text(number: int) -> None:
    pixels = pictures()[number]
    with Image.open(io.BytesIO(encode_png(pixels, TEXTS))) as image:
        image.load()
        grey = "L" if pixels.dtype == np.uint8 else "I;16"
        assert image.mode == ("RGB" if pixels.ndim == 3 else grey)
        assert np.array_equal(np.array(image), pixels)
        assert image.text == TEXTS  # type: ignore[attr-defined]


@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="qemu-user runs Linux programs")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_bytes_are_the_same_on_every_processor(processor: str) -> None:
    command = [
        program("qemu-x86_64"),
        "-cpu",
        processor,
        sys.executable,
        "-m",
        "tests.worker.test_png",
    ]
    # NumPy's OpenBLAS, of which nothing is used, takes some hosts for what is emulated, and fails.
    env = {**os.environ, "OPENBLAS_CORETYPE": "Nehalem"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digests()


if __name__ == "__main__":
    print(digests())
