"""What PNG files of a few pictures hash to: `python -m tests.worker.png_digest`, in an emulator,
where loading what is not needed takes seconds.
"""

from __future__ import annotations

import hashlib

import numpy as np

from worker.png import encode_png


def pictures() -> list[np.ndarray]:
    """Noise in 8 and 16 bits, a smooth picture, and a mask with one value."""
    chance = np.random.default_rng(3)
    y, x = np.mgrid[:96, :80]
    smooth = np.dstack([y * 2, x * 3, (x + y)]).astype(np.uint8)
    mask = ((y - 40) ** 2 + (x - 40) ** 2 < 300) * np.uint8(255)
    noise = chance.integers(0, 256, (64, 48, 3), dtype=np.uint8)
    ids = chance.integers(0, 2**16, (48, 64), dtype=np.uint16)
    return [noise, smooth, mask, smooth[:1, :1], ids, ids.T]


def digest() -> str:
    """One of the bytes of all pictures."""
    files = (encode_png(each, {"pathar": "text"}) for each in pictures())
    return hashlib.sha256(b"".join(files)).hexdigest()


if __name__ == "__main__":
    print(digest())
