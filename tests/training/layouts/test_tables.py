"""PanNuke as Parquet, with its pictures inside."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from tests.training.layouts.drawing import (
    assert_only,
    assert_pair,
    assert_refused,
    draw,
    listed,
    read_all,
)
from training.layouts.tables import TISSUES
from training.rasters import SourceError

FEATURES = {
    "image": {"mode": "RGB", "_type": "Image"},
    "instances": {"feature": {"mode": "1", "_type": "Image"}, "_type": "Sequence"},
    "categories": {
        "feature": {
            "names": ["Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial"],
            "_type": "ClassLabel",
        },
        "_type": "Sequence",
    },
    "tissue": {"names": list(TISSUES), "_type": "ClassLabel"},
}
PICTURE = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
SCHEMA = arrow.schema(
    [
        ("image", PICTURE),
        ("instances", arrow.list_(PICTURE)),
        ("categories", arrow.list_(arrow.int64())),
        ("tissue", arrow.int64()),
    ]
)
CATEGORIES = (0, 1, 2, 3, 4, 0)


def cell(pixels: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def row(seed: int) -> dict[str, Any]:
    image, ids = draw(seed)
    return {
        "image": cell(image),
        "instances": [cell(ids == number) for number in range(1, 7)],
        "categories": list(CATEGORIES),
        "tissue": seed % 19,
    }


def write(path: Path, rows: list[dict[str, Any]], features: Any = FEATURES, group: int = 2) -> None:
    """As the library datasets writes it, `group` rows a row group; without features, none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else {}
    table = arrow.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))
    parquet.write_table(table, path, row_group_size=group)


@pytest.mark.parametrize("features", [FEATURES, {}])
def test_every_instance_is_a_nucleus(features: Any, tmp_path: Path) -> None:
    write(tmp_path / "data/fold1-00000-of-00001.parquet", [row(n) for n in range(5)], features)
    write(tmp_path / "data/fold2-00000-of-00001.parquet", [row(5)], features)
    pairs = read_all("pannuke-parquet", tmp_path)
    names = [f"data/fold1-00000-of-00001/{n:05d}" for n in range(5)]
    assert list(pairs) == [*names, "data/fold2-00000-of-00001/00000"]
    for seed, pair in enumerate(pairs.values()):
        assert_pair(pair, *draw(seed))
        assert pair.mpp == 0.25
    organs = [original.organ for original in listed("pannuke-parquet", tmp_path).originals]
    assert organs == ["adrenal-gland", "bile-duct", "bladder", "breast", "cervix", "colon"]
    assert_only("pannuke-parquet", tmp_path)


def test_rows_are_the_same_in_any_order(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [row(n) for n in range(5)])
    originals = listed("pannuke-parquet", tmp_path).originals
    for seed in (4, 0, 3, 1, 2, 2):
        assert_pair(originals[seed].read(), *draw(seed))


def test_names_in_the_file_come_first(tmp_path: Path) -> None:
    kinds = ["a", "b", "c", "d", "tumour"]
    features = {
        "tissue": {"names": ["Head & Neck"], "_type": "ClassLabel"},
        "categories": {"feature": {"names": kinds, "_type": "ClassLabel"}, "_type": "List"},
    }
    write(tmp_path / "a.parquet", [row(0)], features)
    [original] = listed("pannuke-parquet", tmp_path, ("Tumour", "3")).originals
    assert original.organ == "head-neck"
    image, ids = draw(0)
    assert_pair(original.read(), image, np.where(np.isin(ids, (4, 5)), ids, 0))
    with pytest.raises(SourceError, match=r"got 'dead', expected some of a \(0\), b \(1\)"):
        listed("pannuke-parquet", tmp_path, ("dead",))


def test_pixels_of_two_instances_stay_with_the_first(tmp_path: Path) -> None:
    image, ids = draw(0)
    over = np.zeros(ids.shape, dtype=bool)
    over[:, 8:30] = True
    first = row(0)
    first["instances"].append(cell(over))
    first["categories"].append(2)
    write(tmp_path / "a.parquet", [first])
    [pair] = read_all("pannuke-parquet", tmp_path).values()
    assert_pair(pair, image, np.where((ids == 0) & over, 7, ids))


def test_a_patch_without_nuclei_is_one(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [row(0) | {"instances": [], "categories": []}])
    [pair] = read_all("pannuke-parquet", tmp_path).values()
    assert_pair(pair, draw(0)[0], np.zeros_like(draw(0)[1]))


def small() -> dict[str, Any]:
    return cell(np.zeros((9, 9), dtype=bool))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": [0]}, "row 1 has 6 instances with 1 categories, expected as many, of 0"),
        ({"categories": [0, 1, 2, 3, 4, 5]}, "6 categories, expected as many, of 0 to 4"),
        ({"image": {"bytes": None, "path": "a.png"}}, "row 1, image: is not an image"),
        ({"image": {"bytes": b"<html>", "path": None}}, "row 1, image: is not an image"),
        ({"image": {"bytes": row(0)["image"]["bytes"][:900]}}, "row 1, image: cannot be read"),
        ({"instances": [small()] * 6}, "row 1, instance 0: is 9 x 9 pixels, its image .* 64 x 48"),
        (
            {"instances": [cell(draw(0)[1].astype(np.uint8))] * 6},
            "row 1, instance 0: has the values 1, 2, 3, 4, 5, 6 outside its ground",
        ),
        ({"tissue": 19}, r"a\.parquet: row 1 has tissue 19, expected 0 to 18"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_the_others_are_read(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "a.parquet", [row(0), row(1) | change, row(2)])
    first, second, third = listed("pannuke-parquet", tmp_path).originals
    assert_refused(second, message)
    assert_pair(first.read(), *draw(0))
    assert_pair(third.read(), *draw(2))


def test_files_that_are_cut_short_or_something_else_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [row(0)])
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.parquet").write_text("<html>")
    parquet.write_table(arrow.table({"image": [1], "label": [2]}), tmp_path / "d.parquet")
    listing = listed("pannuke-parquet", tmp_path)
    first, second, third = listing.originals
    assert_pair(first.read(), *draw(0))
    assert_refused(second, r"b\.parquet: cannot be read")
    assert_refused(third, r"c\.parquet: cannot be read")
    assert listing.unused == {tmp_path / "d.parquet": "has no column instances"}
    assert_only("pannuke-parquet", tmp_path)


def test_other_tables_are_not_taken_for_it(tmp_path: Path) -> None:
    parquet.write_table(arrow.table({"image": [1], "label": [2]}), tmp_path / "d.parquet")
    with pytest.raises(SourceError, match=r"d\.parquet: has no column instances, expected image"):
        listed("pannuke-parquet", tmp_path)


def test_a_row_group_damaged_inside_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [row(n) for n in range(4)])
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[8:40] = bytes(32)
    (tmp_path / "a.parquet").write_bytes(content)
    originals = listed("pannuke-parquet", tmp_path).originals
    assert_refused(originals[0], r"a\.parquet: cannot be read")
    assert_pair(originals[3].read(), *draw(3))
