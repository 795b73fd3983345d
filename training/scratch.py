"""Arrays of large images: on disk rather than in memory, processed in bands of rows.

The image of a whole slide has more pixels than many machines have memory for. Its pixels are
decoded into a file without a name in the folder for temporary files (TMPDIR). The system deletes
the file with the last array on it. Small arrays stay in memory. Knows nothing of pictures.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import DTypeLike

from training.run import StageError

LARGE = 128 * 2**20
"""Bytes from which on an array is on disk."""
BAND = 4 * 2**20
"""Pixels of a band. What is done to one takes some 50 bytes a pixel."""


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array of zeros, in memory or on disk by its size. StageError where the disk has no room:
    without its blocks reserved, a full disk would kill the process at a later write.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size < LARGE:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile() as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "w+", shape=shape)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EFBIG):
                raise
            raise StageError(
                f"{tempfile.gettempdir()}: has no room for {size / 1e9:.1f} GB of pixels; TMPDIR "
                "names another folder for temporary files"
            ) from error


def bands(shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of an array [H, W, ...], a band at a time; all at once where they are few."""
    height, width = shape[:2]
    rows = max(1, BAND // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, min(height, top + rows))


def by_bands(
    function: Callable[[slice], np.ndarray], shape: tuple[int, ...], dtype: DTypeLike
) -> np.ndarray:
    """The array [H, W, ...] of which `function` gives any rows, computed a band at a time."""
    if np.prod(shape[:2], dtype=np.int64) <= BAND:
        return np.array(function(slice(0, shape[0])), dtype)
    whole = zeros(shape, dtype)
    for rows in bands(shape):
        whole[rows] = function(rows)
    return whole


def every(function: Callable[[slice], object], shape: tuple[int, ...]) -> bool:
    """Whether `function` holds for all bands of rows."""
    return all(function(rows) for rows in bands(shape))
