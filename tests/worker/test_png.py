"""PNG files: what they hold, and that their bytes do not depend on the processor."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.system import program
from tests.worker.png_digest import digest, pictures
from worker.png import encode_png

TEXTS = {"pathar": "Gewebe, µm", "more": ""}
PROCESSORS = ("Nehalem", "Haswell", "max")
"""With SSE4.2, the least that numpy runs on, with AVX2, and with all that the emulator knows."""


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
        "tests.worker.png_digest",
    ]
    # NumPy's OpenBLAS, of which nothing is used, takes some hosts for what is emulated, and fails.
    env = {**os.environ, "OPENBLAS_CORETYPE": "Nehalem"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest()
