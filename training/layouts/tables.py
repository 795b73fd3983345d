"""Layouts of tables: PanNuke as Parquet, with images inside.

This is the form of RationAI/PanNuke on Hugging Face, made from the arrays that `arrays` reads. A
file is read by row groups, so no data set has to fit into memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from training.layouts.arrays import PANNUKE, PANNUKE_MPP, tissue_name
from training.layouts.instances import chosen_classes, laid_over, one_nucleus
from training.layouts.original import (
    Layout,
    Listing,
    Original,
    Pair,
    files_under,
    is_hidden,
    refused,
    same_shape,
)
from training.pictures import Rules, read_image, read_painting
from training.rasters import SourceError, reading

TISSUES = (
    *("Adrenal Gland", "Bile Duct", "Bladder", "Breast", "Cervix", "Colon", "Esophagus"),
    *("Head & Neck", "Kidney", "Liver", "Lung", "Ovarian", "Pancreatic", "Prostate", "Skin"),
    *("Stomach", "Testis", "Thyroid", "Uterus"),
)
"""What the numbers in `tissue` mean where a Parquet file does not say it."""
COLUMNS = ("image", "instances", "categories", "tissue")


@dataclass
class _Rows:
    """The rows of a Parquet file. The row group that was read last is kept: rows are read in
    order, and to read one of a group costs as much as all.
    """

    path: Path
    starts: list[int]
    held: tuple[int, Any] = field(default=(-1, None))

    def row(self, index: int) -> dict[str, Any]:
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        with reading(self.path):
            if self.held[0] != group:
                self.held = (-1, None)
                with parquet.ParquetFile(self.path, memory_map=True) as file:
                    self.held = (group, file.read_row_group(group, columns=list(COLUMNS[:3])))
            found = self.held[1].slice(index - self.starts[group], 1).to_pylist()
        return dict(found[0])


@dataclass(frozen=True)
class _Head:
    """What a file says of all its rows: the tissue of each, the names of tissues and classes."""

    rows: _Rows
    tissues: Sequence[Any]
    names: Sequence[str]
    kinds: Sequence[str]


def _look(source: Path) -> str:
    for path in _tables(source):
        try:
            if not _missing(path):
                return f"{path.relative_to(source)} with columns {', '.join(COLUMNS)}"
        except SourceError:
            continue
    return ""


def pannuke_parquet(source: Path, rules: Rules) -> Listing:
    """PanNuke as Hugging Face keeps it (RationAI/PanNuke): Parquet with a row a patch, `instances`
    holding one black and white PNG a nucleus. Ids are 1 to n in their order.
    """
    found = _tables(source)
    if not found:
        raise SourceError(f"{source}: has no *.parquet")
    originals: list[Original] = []
    unused: dict[Path, str] = {}
    for path in found:
        name = path.relative_to(source).with_suffix("").as_posix()
        try:
            missing = _missing(path)
            head = None if missing else _head(path)
        except SourceError as error:
            originals.append(refused(name, (path,), error))
            continue
        if head is None:
            unused[path] = f"has no column {missing[0]}"
        else:
            originals += _patches(name, head, rules)
    if not originals:
        raise SourceError(f"{found[0]}: {unused[found[0]]}, expected {', '.join(COLUMNS)}")
    return Listing(originals, unused)


def _tables(source: Path) -> list[Path]:
    found = files_under(source)
    return [p for p in found if p.suffix.lower() == ".parquet" and not is_hidden(p)]


def _missing(path: Path) -> list[str]:
    """The columns that a Parquet file lacks."""
    with reading(path):
        present = parquet.read_schema(path).names
    return [column for column in COLUMNS if column not in present]


def _head(path: Path) -> _Head:
    with reading(path), parquet.ParquetFile(path, memory_map=True) as file:
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        features = _features(file.schema_arrow.metadata or {})
        tissues = file.read(columns=["tissue"]).column("tissue").to_pylist()
    kinds = _published(features.get("categories")) or tuple(PANNUKE.values())
    rows = _Rows(path, np.cumsum([0, *groups]).tolist()[: len(groups)])
    return _Head(rows, tissues, _published(features.get("tissue")) or TISSUES, kinds)


def _patches(name: str, head: _Head, rules: Rules) -> Iterator[Original]:
    classes, path = dict(enumerate(head.kinds)), head.rows.path
    chosen, pixels = chosen_classes(rules.nuclei, classes), replace(rules, nuclei=())
    for index, tissue in enumerate(head.tissues):
        patch = f"{name}/{index:05d}"
        read = partial(_read_row, head.rows, index, (frozenset(classes), chosen), pixels)
        try:
            organ = _organ(path, index, tissue, head.names)
        except SourceError as error:
            yield refused(patch, (path,), error)
            continue
        yield Original(patch, read, (path,), organ)


def _features(metadata: Mapping[bytes, bytes]) -> Mapping[str, Any]:
    """The types of the columns as the library datasets writes them into a file's schema."""
    written = json.loads(metadata.get(b"huggingface", b"{}"))
    return dict(written.get("info", {}).get("features", {}))


def _published(feature: Any) -> Sequence[str]:
    """The names of a feature's classes, of a list's items too; nothing where it has none."""
    while isinstance(feature, dict) and "feature" in feature:
        feature = feature["feature"]
    return tuple(feature.get("names", ())) if isinstance(feature, dict) else ()


def _organ(path: Path, index: int, tissue: Any, names: Sequence[str]) -> str:
    if tissue is None or isinstance(tissue, str):
        return tissue_name(tissue or "")
    if not isinstance(tissue, int) or not 0 <= tissue < len(names):
        expected = f"expected 0 to {len(names) - 1}"
        raise SourceError(f"{path}: row {index} has tissue {tissue}, {expected}")
    return tissue_name(names[tissue])


def _read_row(
    rows: _Rows, index: int, classes: tuple[frozenset[int], frozenset[int]], rules: Rules
) -> Pair:
    """`classes`: all that there are, and those chosen. Where two nuclei overlap, the pixels are
    the first one's.
    """
    row, (known, chosen) = rows.row(index), classes
    instances, categories = row["instances"] or [], row["categories"] or []
    if len(instances) != len(categories) or not known >= set(categories):
        raise SourceError(
            f"{rows.path}: row {index} has {len(instances)} instances with {len(categories)} "
            f"categories, expected as many, of {min(known)} to {max(known)}"
        )
    place = Path(f"{rows.path}: row {index}, image")
    image = read_image(place, rules, _embedded(place, row["image"]))
    ids = np.zeros(image.shape[:2], dtype=np.int32)
    for number, (cell, kind) in enumerate(zip(instances, categories, strict=True), start=1):
        at = Path(f"{rows.path}: row {index}, instance {number - 1}")
        painting = read_painting(at, rules, _embedded(at, cell))
        same_shape((place, at), image, painting.values)
        nucleus = one_nucleus(painting)
        if kind in chosen:
            laid_over(ids, nucleus, number)
    return Pair(image, ids, PANNUKE_MPP)


def _embedded(place: Path, cell: Any) -> bytes:
    content = cell.get("bytes") if isinstance(cell, dict) else None
    if not isinstance(content, bytes):
        raise SourceError(f"{place}: is not an image, expected the bytes of one")
    return content


LAYOUTS: dict[str, Layout] = {"pannuke-parquet": Layout(_look, pannuke_parquet)}
