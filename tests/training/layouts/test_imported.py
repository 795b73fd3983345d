"""Arrays, tables, MATLAB files and masks of single nuclei through the front door: the import."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.layouts import test_apart, test_arrays, test_matlab, test_tables
from tests.training.layouts.drawing import HEIGHT, WIDTH, draw
from training.importing import Import, import_patches
from training.pictures import Rules


def write_dsb(source: Path) -> None:
    for seed, name in enumerate("ab"):
        test_apart.write(source, name, seed)


def write_tables(source: Path) -> None:
    test_tables.write(source / "a.parquet", [test_tables.row(seed) for seed in range(2)])


WRITTEN: dict[str, tuple[Callable[[Path], object], int, str, list[str]]] = {
    "conic": (test_arrays.write_conic, 1, "0.5", ["consep_1", "consep_1", "glas_10"]),
    "consep": (test_matlab.write_consep, 1, "0.25", ["Test/test_1", "Train/train_1"]),
    "dsb2018": (write_dsb, 1, "", ["a", "b"]),
    "lizard": (
        test_matlab.write_lizard,
        *(10, "0.5"),
        ["consep_1", *["1800127001_2019-04-30 10_40_02"] * 2, "glas_1"],
    ),
    "pannuke": (test_arrays.write_fold, 10, "0.25", [f"source/0000{n}" for n in range(3)]),
    "pannuke-parquet": (write_tables, 1, "0.25", ["a/00000", "a/00001"]),
}
"""By layout: what writes a folder, what its ids are multiplied by, microns a pixel and groups."""


def bring_in(layout: str, root: Path, nuclei: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """The rows of the manifest of an import with one tile of HEIGHT a side at each end."""
    run = Import(
        *(layout, root / "source", root / "out", "histology", "", "CC0-1.0"),
        size=HEIGHT,
        rules=Rules(nuclei=nuclei),
    )
    import_patches(run)
    with (root / "out/manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("layout", WRITTEN)
def test_an_import_writes_what_was_drawn(layout: str, tmp_path: Path) -> None:
    write, factor, mpp, groups = WRITTEN[layout]
    write(tmp_path / "source")
    rows = bring_in(layout, tmp_path)
    assert [row["group"] for row in rows] == [group for group in groups for _ in range(2)]
    assert {row["mpp"] for row in rows} == {mpp}
    for number, row in enumerate(rows):
        image, ids = draw(number // 2)
        tile = np.s_[:, :HEIGHT] if number % 2 == 0 else np.s_[:, WIDTH - HEIGHT :]
        written = {name: np.array(Image.open(tmp_path / "out" / row[name])) for name in NAMES}
        assert np.array_equal(written["image"], image[tile])
        assert np.array_equal(written["mask"], (ids[tile] > 0) * 255)
        assert np.array_equal(written["instances"], ids[tile] * factor)


NAMES = ("image", "mask", "instances")


@pytest.mark.parametrize(
    ("layout", "words", "numbers"),
    [
        ("conic", ("neutrophil",), (3,)),
        ("consep", ("other", "7"), (4, 5)),
        ("lizard", ("connective",), (6,)),
        ("pannuke", ("dead",), (4,)),
        ("pannuke-parquet", ("neoplastic", "1"), (1, 2, 6)),
    ],
)
def test_an_import_takes_chosen_classes_alone(
    layout: str, words: tuple[str, ...], numbers: tuple[int, ...], tmp_path: Path
) -> None:
    write, factor, *_ = WRITTEN[layout]
    write(tmp_path / "source")
    row = bring_in(layout, tmp_path, words)[0]
    ids = draw(0)[1][:, :HEIGHT]
    written = np.array(Image.open(tmp_path / "out" / row["instances"]))
    assert np.array_equal(written, np.where(np.isin(ids, numbers), ids, 0) * factor)
