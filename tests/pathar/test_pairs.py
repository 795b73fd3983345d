"""What a pair and a list of pairs show of themselves, and what they write."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathar import Pair, Pairs
from pathar.contract import FILE_NAMES
from pathar.pairs import SHEET_CELL, SHOWN
from pathar.quality import LogLikelihood

MOST_BYTES = 1_500_000
"""What a picture in a notebook may take."""


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def made(index: int, label: str = "blood", size: int = 256) -> Pair:
    """A pair of noise, which compresses worst, with one square nucleus."""
    noise = np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[8:16, 8:16] = 255
    ids = (mask // 255).astype(np.uint16)
    grid = tuple(tuple(range(64)) for _ in range(64))
    name = f"{label}_1_abcdef_{index:05d}"
    files = (png(noise), png(mask), png(ids))
    return Pair(
        "job", name, label, index, index, *files, grid, grid, 1, 0.5, LogLikelihood(-2.0, -3.0)
    )


def opened(content: bytes | None) -> Image.Image:
    assert content is not None
    assert len(content) < MOST_BYTES
    return Image.open(io.BytesIO(content))


def test_a_pair_prints_in_one_line() -> None:
    assert repr(made(2)) == (
        "Pair(job_id='job', name='blood_1_abcdef_00002', label='blood', index=2, seed=2)"
    )


def test_an_overlay_outlines_what_the_mask_has() -> None:
    pair = made(0)
    drawn, image = np.asarray(pair.overlay()), np.asarray(pair.image)
    outlined = np.zeros((256, 256), dtype=bool)
    outlined[8:16, 8:16] = True
    outlined[9:15, 9:15] = False
    assert (drawn[outlined] == (0, 255, 0)).all()
    assert (drawn[~outlined] == image[~outlined]).all()


@pytest.mark.parametrize("size", [64, 256, 512])
def test_a_notebook_shows_image_mask_and_overlay(size: int) -> None:
    pair = made(0, size=size)
    shown = opened(pair._repr_png_())
    assert shown.height == SHOWN
    cells = [shown.crop((left, 0, left + SHOWN, SHOWN)) for left in (0, 264, 528)]
    assert shown.width == 528 + SHOWN
    assert set(np.unique(np.asarray(cells[1].resize((64, 64), Image.Resampling.BOX)))) > {0}
    if size == SHOWN:
        for cell, picture in zip(cells, (pair.image, pair.mask, pair.overlay()), strict=True):
            assert cell.tobytes() == picture.convert("RGB").tobytes()


def test_a_list_of_pairs_prints_in_one_line_and_stays_a_list() -> None:
    pairs = Pairs([made(0), made(1), made(2, "cervix")])
    assert repr(pairs) == "<3 pairs of blood, cervix>"
    assert repr(pairs[:1]) == "<1 pair of blood>"
    assert repr(Pairs()) == "<0 pairs>"
    assert pairs[1].index == 1
    assert pickle.loads(pickle.dumps(pairs)) == pairs  # noqa: S301
    assert Pairs()._repr_png_() is None


@pytest.mark.parametrize(
    ("labels", "n", "columns", "rows"),
    [
        (["blood"], 3, 3, 1),
        (["blood"], 100, 8, 3),
        (["blood", "cervix"], 20, 8, 2),
        (["blood", "cervix", "lung", "liver"], 20, 6, 4),
        ([f"organ {k}" for k in range(30)], 2, 1, 24),
    ],
)
def test_a_notebook_shows_a_contact_sheet(
    labels: list[str], n: int, columns: int, rows: int
) -> None:
    sheet = opened(Pairs([made(k, label, 256) for label in labels for k in range(n)])._repr_png_())
    assert sheet.width // SHEET_CELL == columns
    assert sheet.height // (2 * SHEET_CELL + 60) == rows


def test_a_pair_is_saved_once_and_never_over_another(tmp_path: Path) -> None:
    pair, folder = made(0), tmp_path / "new"
    paths = pair.save(str(folder))
    assert [path.name for path in paths] == [f"blood_1_abcdef_00000_{name}" for name in FILE_NAMES]
    assert [path.read_bytes() for path in paths] == list(pair.files().values())
    assert pair.save(folder) == paths
    paths[0].unlink()
    other = replace(pair, mask_png=made(1).image_png)
    with pytest.raises(FileExistsError, match=r"other content.*mask\.png"):
        other.save(folder)
    assert not paths[0].exists()
    Pairs([made(1), made(2)]).save(folder)
    assert len(list(folder.glob("*_0000[12]_*"))) == 2 * len(FILE_NAMES)
