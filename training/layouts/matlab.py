"""Layouts of images with MATLAB files that hold a map of ids: CoNSeP, Lizard and others like them.

CoNSeP: Graham et al., "HoVer-Net", Medical Image Analysis 58, 2019; 40x, nominally 0.25 microns a
pixel. Lizard: Graham et al., ICCV Workshops 2021, arXiv 2108.11195; 20x, nominally 0.5. Both are of
colon. MATLAB's older files are read by scipy, those of 7.3, which are HDF5, by h5py; neither runs
anything that a file holds.
"""

from __future__ import annotations

import csv
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy import io as scipy_io  # type: ignore[import-untyped]

from training.layouts.arrays import CONIC
from training.layouts.instances import chosen_classes, of_classes, usual_classes, whole_numbers
from training.layouts.original import (
    Layout,
    Listing,
    Original,
    Pair,
    broken,
    files_under,
    is_hidden,
    is_picture,
    named_apart,
    same_shape,
)
from training.layouts.painted import IMAGES
from training.pictures import Rules, read_image
from training.rasters import SourceError, reading

CONSEP = dict(
    enumerate(
        (
            *("other", "inflammatory", "healthy epithelial", "dysplastic/malignant epithelial"),
            *("fibroblast", "muscle", "endothelial"),
        ),
        start=1,
    )
)
LIZARD_IMAGES = re.compile(r"lizard_images\d*", re.IGNORECASE)
SLIDE = re.compile(r"(.+)-lv\d+-\d+-\d+-\d+-\d+")
"""What Lizard's info.csv calls a region of a slide: the slide, its level and a rectangle on it."""

MATRIX, COMPRESSED = 14, 15
TYPES = {*range(1, 8), 9, 12, 13, MATRIX, COMPRESSED, 16, 17, 18}
"""What data in a MATLAB file can be: numbers, text, matrices of them."""
NUMERIC = {
    *("double", "single", "logical", "int8", "uint8", "int16", "uint16", "int32", "uint32"),
    *("int64", "uint64"),
}

Maps = Mapping[str, np.ndarray]
Classes = tuple[np.ndarray, np.ndarray]
"""Ids of nuclei, and the class of each."""


@dataclass(frozen=True)
class _Kind:
    """What a data set's files hold. `variables` come first of all `inst_map`; `classes` gives the
    class of each nucleus from them, all of which `names` has.
    """

    variables: tuple[str, ...] = ("inst_map",)
    classes: Callable[[Path, np.ndarray, Maps], Classes] | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    organ: str = ""
    mpp: float = 0.0


# -- what a folder holds ---------------------------------------------------------------------------


def _look_consep(source: Path) -> str:
    found = [image for image, mats in _pairs(source)[0] if mats and _of_consep(image)]
    return f"{found[0].relative_to(source)} with its .mat" if found else ""


def _look_lizard(source: Path) -> str:
    found = [image for image, mats in _pairs(source)[0] if mats and _of_lizard(image)]
    return f"{found[0].relative_to(source)} with its .mat" if found else ""


def _look_matlab(source: Path) -> str:
    found = [pair for pair in _pairs(source)[0] if not (_of_consep(pair[0]) or _of_lizard(pair[0]))]
    both = [(image, mats[0]) for image, mats in found if mats]
    return " with ".join(str(path.relative_to(source)) for path in both[0]) if both else ""


def _of_consep(image: Path) -> bool:
    """Whether an image is called as CoNSeP's are: `Train/Images/train_1.png`."""
    kind = image.stem.rpartition("_")[0]
    folders = [path.name.lower() for path in image.parents][:2]
    return kind in ("train", "test") and folders == ["images", kind]


def _of_lizard(image: Path) -> bool:
    return LIZARD_IMAGES.fullmatch(image.parent.name) is not None


def _pairs(source: Path) -> tuple[list[tuple[Path, list[Path]]], dict[Path, str]]:
    """Images with the MATLAB files that have their name and no image nearer to them, in a fixed
    order, and what is not used. Images without any stand in it where a folder's others have one.
    """
    files = [path for path in files_under(source) if not is_hidden(path)]
    mats = [path for path in files if path.suffix.lower() == ".mat"]
    overlays = [
        path for path in files if is_picture(path) and "overlay" in path.parent.name.lower()
    ]
    unused = dict.fromkeys(overlays, "image with outlines drawn on it")
    of_image = {path: list[Path]() for path in files if is_picture(path) and path not in unused}
    of_stem: dict[str, list[Path]] = {}
    for image in of_image:
        of_stem.setdefault(image.stem, []).append(image)
    for mat in mats:
        nearest = _nearest(source, mat, of_stem.get(mat.stem, []))
        for image in nearest:
            of_image[image].append(mat)
        if not nearest:
            unused[mat] = "annotation without an image"
    folders = {image.parent for image, found in of_image.items() if found}
    strangers = [image for image in of_image if image.parent not in folders]
    unused |= dict.fromkeys(strangers, "image without a .mat with its name")
    return [(image, of_image[image]) for image in of_image if image.parent in folders], unused


def _nearest(source: Path, mat: Path, images: Sequence[Path]) -> list[Path]:
    """Of some images: those in the file's folder, or else below the folder above it, and so on up
    to the source.
    """
    for folder in mat.parents:
        near = [image for image in images if folder in image.parents]
        if near or folder == source:
            return near
    return []


def _listed(kind: _Kind, source: Path, rules: Rules) -> Listing:
    chosen = chosen_classes(rules.nuclei, kind.names)
    pairs, unused = _pairs(source)
    if not pairs:
        raise SourceError(f"{source}: has no images with a .mat of the same name")
    listed = [(_original(kind, source, image, mats, chosen, rules), image) for image, mats in pairs]
    return Listing(named_apart(listed), unused)


def _original(
    kind: _Kind,
    source: Path,
    image: Path,
    mats: Sequence[Path],
    chosen: frozenset[int],
    rules: Rules,
) -> Original:
    folders = image.parent.relative_to(source).parts
    plain = [p for p in folders if p.lower() not in IMAGES and not LIZARD_IMAGES.fullmatch(p)]
    name = "/".join((*plain, image.stem))
    if not mats:
        return broken(name, (image,), "has no .mat with its name")
    if len(mats) > 1:
        return broken(name, (image, *mats), f"has two annotations: {mats[0]} and {mats[1]}")
    read = partial(_read, kind, image, mats[0], chosen, rules)
    return Original(name, read, (image, mats[0]), kind.organ)


def lizard(source: Path, rules: Rules) -> Listing:
    """`Lizard_Images1/*.png` and so on with `Labels/*.mat`. The group of regions that `info.csv`
    says were cut from one slide is that slide.
    """
    listing = _listed(LIZARD, source, rules)
    infos = [path for path in files_under(source) if path.name == "info.csv"]
    slides = {name: slide for path in infos for name, slide in _slides(path).items()}
    originals = [
        replace(original, group=slides.get(original.name.rpartition("/")[2], ""))
        for original in listing.originals
    ]
    return Listing(originals, listing.unused, infos)


def _slides(path: Path) -> dict[str, str]:
    """The slide of each region whose `Source` names one."""
    with reading(path), path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if any(row.get("Filename") is None or row.get("Source") is None for row in rows):
        raise SourceError(f"{path}: expected the columns Filename and Source in every line")
    found = {row["Filename"]: SLIDE.match(row["Source"]) for row in rows}
    return {name: match[1] for name, match in found.items() if match}


# -- files -----------------------------------------------------------------------------------------


def _read(kind: _Kind, image_path: Path, path: Path, chosen: frozenset[int], rules: Rules) -> Pair:
    image, maps = read_image(image_path, rules), read_mat(path, kind.variables)
    ids = whole_numbers(path, "inst_map", maps["inst_map"])
    if ids.ndim != 2:
        raise SourceError(f"{path}: inst_map has shape {list(ids.shape)}, expected [H, W]")
    same_shape((image_path, path), image, ids)
    if kind.classes:
        numbers, classes = kind.classes(path, ids, maps)
        strange = sorted(set(classes.tolist()) - {0, *kind.names})
        if strange:
            known = f"{min(kind.names)} to {max(kind.names)}"
            raise SourceError(f"{path}: has class {strange[0]}, expected {known}")
        if chosen != frozenset(kind.names):
            ids = of_classes(ids, numbers, classes, chosen)
    return Pair(image, ids, kind.mpp)


def _from_map(path: Path, ids: np.ndarray, maps: Maps) -> Classes:
    """CoNSeP: `type_map` holds the class of every pixel. (`inst_type` has none of their ids.)"""
    classes = whole_numbers(path, "type_map", maps["type_map"])
    if classes.shape != ids.shape:
        shapes = f"{list(classes.shape)}, expected {list(ids.shape)} as inst_map has"
        raise SourceError(f"{path}: type_map has shape {shapes}")
    return usual_classes(ids, classes)


def _from_list(path: Path, ids: np.ndarray, maps: Maps) -> Classes:
    """Lizard: `id` lists the values of `inst_map`, which have gaps, and `class` is in its order."""
    numbers, classes = (whole_numbers(path, name, maps[name]).ravel() for name in ("id", "class"))
    if len(numbers) != len(classes):
        raise SourceError(
            f"{path}: has {len(numbers)} id but {len(classes)} class, expected as many"
        )
    if (classes < 1).any():
        raise SourceError(f"{path}: has class 0, expected {min(CONIC)} to {max(CONIC)}")
    missing = sorted(set(np.unique(ids).tolist()) - {0} - set(numbers.tolist()))
    if missing:
        raise SourceError(f"{path}: inst_map has nucleus {missing[0]}, which is not listed in id")
    return numbers, classes


def read_mat(path: Path, variables: Sequence[str]) -> dict[str, np.ndarray]:
    """These variables of a MATLAB file of any version as arrays [rows, columns]. SourceError where
    it is none, is cut short, or where one of them is missing or no plain array.
    """
    with reading(path):
        if path.stat().st_size == 0:
            raise SourceError(f"{path}: is empty (0 bytes), expected a MATLAB file")
        read = _hdf5 if h5py.is_hdf5(path) else _matlab
        present, found = read(path, variables)
    for name in variables:
        if name not in present:
            names = ", ".join(present) or "nothing"
            raise SourceError(f"{path}: has no {name}, but {names}")
        if not isinstance(found.get(name), np.ndarray) or found[name].dtype.kind not in "biuf":
            raise SourceError(f"{path}: {name} is not an array of numbers, expected one")
    return found


def _matlab(path: Path, variables: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    content = path.read_bytes()
    if content[126:128] in (b"IM", b"MI"):
        _refuse_unknown_types(path, content)
    classes = {name: kind for name, _, kind in scipy_io.whosmat(path)}
    numeric = [name for name in variables if classes.get(name) in NUMERIC]
    return list(classes), scipy_io.loadmat(path, variable_names=numeric) if numeric else {}


def _refuse_unknown_types(path: Path, content: bytes) -> None:
    """SourceError where a file of MATLAB 5 to 7 has a type of data that there is not: scipy does
    not check it, and crashes. (MATLAB, "MAT-File Format", table of data types.)
    """
    order = "<" if content[126:128] == b"IM" else ">"
    for kind, data in _elements(path, content[128:], order):
        inner = (
            _elements(path, zlib.decompress(data), order) if kind == COMPRESSED else [(kind, data)]
        )
        for kind, data in inner:
            types = {each for each, _ in _elements(path, data, order)} if kind == MATRIX else {kind}
            if not types <= TYPES:
                raise SourceError(f"{path}: is damaged: it has data of an unknown type")


def _elements(path: Path, data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element: after 8 bytes of head, or within them where it is small."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start, end = at + 8, at + 8 + size
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = at + 4, at + 4 + size
        if end > len(data) or (start == at + 4 and size > 4):
            raise SourceError(f"{path}: is cut short or damaged, expected a whole MATLAB file")
        yield kind, data[start:end]
        at = end if kind == COMPRESSED else end + -end % 8


def _hdf5(path: Path, variables: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """MATLAB 7.3 writes columns as rows, so its arrays are transposed."""
    with h5py.File(path, "r") as file:
        present = [name for name in file if not name.startswith("#")]
        arrays = {
            name: np.asarray(file[name][()]).T
            for name in variables
            if name in present and _plain(file, name)
        }
    return present, arrays


def _plain(file: Any, name: str) -> bool:
    """Whether it is an array whose values stand in this file: HDF5 can point into any other."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return False
    data = file[name]
    return isinstance(data, h5py.Dataset) and not (data.external or data.is_virtual)


LIZARD = _Kind(("inst_map", "id", "class"), _from_list, CONIC, "colon", 0.5)
LAYOUTS: dict[str, Layout] = {
    "consep": Layout(
        _look_consep,
        partial(_listed, _Kind(("inst_map", "type_map"), _from_map, CONSEP, "colon", 0.25)),
    ),
    "lizard": Layout(_look_lizard, lizard),
    "matlab": Layout(_look_matlab, partial(_listed, _Kind())),
}
