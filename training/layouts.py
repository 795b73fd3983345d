"""The layouts that annotated patches come in: which originals a data set's folder holds.

Each reader lists originals and checks all that can be checked without reading pixels (a mask for
each image, shapes that fit), so that an import that cannot end well does not begin. Knows nothing
of tiles and manifests; how a file is read stands in `annotations.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from training.annotations import (
    SourceError,
    fill,
    picture_shape,
    read_array,
    read_image,
    read_mask,
    read_outlines,
)

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
NUINSSEG_MASKS = ("mask binary", "label masks modify", "label masks")
"""Folders beside `tissue images`, the best first; the others hold eroded or stacked masks."""
PANNUKE_NUCLEI = 5
"""Channels of nuclei in PanNuke's masks; the sixth is the background."""
SITES = {
    "bladder": ("CU", "DK", "G2", "ZF"),
    "brain": ("FG", "HT"),
    "breast": ("A7", "AC", "AO", "AR", "E2"),
    "colon": ("A6", "AY", "NH"),
    "kidney": ("2Z", "B0", "GL", "HE", "IZ"),
    "lung": ("18", "21", "38", "44", "49", "50", "69"),
    "prostate": ("CH", "EJ", "G9", "HC"),
    "stomach": ("KB", "RD"),
}
"""The tissue source sites that MoNuSeg's images come from: the second part of a TCGA barcode, with
the organ of its cases in TCGA. (MoNuSeg's paper calls some of the lung cases liver.)"""
_ORGANS = {site: organ for organ, sites in SITES.items() for site in sites}


@dataclass(frozen=True)
class Original:
    """One annotated image; `shape` is its height and width, `organ` is empty where unknown.

    `read` gives the image, uint8 [H, W, 3], and the mask of all its nuclei, bool [H, W], from
    `files`.
    """

    name: str
    organ: str
    shape: tuple[int, int]
    read: Callable[[], tuple[np.ndarray, np.ndarray]]
    files: tuple[Path, Path]


def list_originals(layout: str, source: Path) -> list[Original]:
    """The originals of `source`, laid out as one of LAYOUTS, in a fixed order. SourceError."""
    if not source.is_dir():
        raise SourceError(f"{source}: is no folder")
    originals = LAYOUTS[layout](source)
    if not originals:
        raise SourceError(f"{source}: has the folders of the layout {layout}, but no images")
    return originals


def organ_name(text: str) -> str:
    """An organ as a label: `Adrenal_gland` is `adrenal-gland`, `human liver` is `liver`."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower())).removeprefix("human-")


# -- image + mask folders --------------------------------------------------------------------------


def folders(source: Path) -> list[Original]:
    """`images/` beside `masks/`, at any depth; a mask has its image's name, in any format."""
    found = [path for path in _folders(source, "images") if (path.parent / "masks").is_dir()]
    if not found:
        raise SourceError(f"{source}: has no folder images with a folder masks beside it")
    return [original for images in found for original in _image_folder(source, images)]


def _image_folder(source: Path, images: Path) -> Iterator[Original]:
    masks = _by_stem(_pictures(images.parent / "masks"))
    for image in _pictures(images):
        name = "/".join((*images.parent.relative_to(source).parts, image.stem))
        yield _painted(image, _partner(image, masks, "mask in masks/"), name, "")


# -- NuInsSeg --------------------------------------------------------------------------------------


def nuinsseg(source: Path) -> list[Original]:
    """`<organ>/tissue images/` beside NUINSSEG_MASKS, the first of them that has the mask."""
    found = _folders(source, "tissue images")
    if not found:
        raise SourceError(f"{source}: has no folder <organ>/tissue images")
    return [original for images in found for original in _organ_folder(images)]


def _organ_folder(images: Path) -> Iterator[Original]:
    organ = images.parent
    masks: dict[str, list[Path]] = {}
    for name in reversed(NUINSSEG_MASKS):
        masks.update(_by_stem(_pictures(organ / name)))
    for image in _pictures(images):
        mask = _partner(image, masks, f"mask in {', '.join(NUINSSEG_MASKS)}")
        yield _painted(image, mask, image.stem, organ_name(organ.name))


# -- PanNuke ---------------------------------------------------------------------------------------


def pannuke(source: Path) -> list[Original]:
    """Folds of `images.npy`, `types.npy` and `masks.npy`, as unpacked or in one folder.

    PanNuke does not say which patches come from one slide, so each is a group of its own.
    """
    found = sorted(source.rglob("images.npy"))
    if not found:
        raise SourceError(f"{source}: has no images.npy, as PanNuke's folds do")
    return [original for path in found for original in _fold(source, path)]


def _fold(source: Path, path: Path) -> Iterator[Original]:
    masks_path = _masks_of_fold(path)
    images, masks = _patches(path, 3), _patches(masks_path, 6)
    if masks.shape[:3] != images.shape[:3]:
        ours, theirs = (f"{len(a)} of {a.shape[1]} x {a.shape[2]}" for a in (masks, images))
        raise SourceError(f"{masks_path}: holds {ours}, {path} holds {theirs}")
    organs = _organs(path.with_name("types.npy"), len(images))
    parts = [part for part in path.parent.relative_to(source).parts if part != "images"]
    fold = "/".join(parts) or source.resolve().name
    for index, organ in enumerate(organs):
        read = partial(_read_patch, path, images, masks, index)
        height, width = images.shape[1:3]
        name, files = f"{fold}/{index:05d}", (path, masks_path)
        yield Original(name, organ_name(organ), (height, width), read, files)


def _masks_of_fold(path: Path) -> Path:
    """`masks.npy` beside `images.npy`, or where it is unpacked to: masks/ in place of images/."""
    parts = path.parent.parts
    places = [path.parent] + [
        Path(*parts[:at], "masks", *parts[at + 1 :])
        for at, part in enumerate(parts)
        if part == "images"
    ]
    for place in places:
        if (place / "masks.npy").exists():
            return place / "masks.npy"
    raise SourceError(f"{path}: has no mask file masks.npy beside it or under masks/")


def _patches(path: Path, channels: int) -> np.ndarray:
    """A mapped array [M, H, W, channels]."""
    array = read_array(path, mapped=True)
    if array.ndim != 4 or array.shape[3] != channels:
        raise SourceError(f"{path}: has shape {list(array.shape)}, expected [M, H, W, {channels}]")
    return array


def _organs(path: Path, count: int) -> list[str]:
    organs = read_array(path, mapped=False)
    if organs.dtype.kind not in "US":
        raise SourceError(f"{path}: has dtype {organs.dtype}, expected names of organs")
    if organs.shape != (count,):
        raise SourceError(f"{path}: has shape {list(organs.shape)}, expected [{count}]")
    return [str(organ) for organ in organs.astype(np.str_)]


def _read_patch(
    path: Path, images: np.ndarray, masks: np.ndarray, index: int
) -> tuple[np.ndarray, np.ndarray]:
    image = np.asarray(images[index])
    low, high = image.min(), image.max()
    up_to_one = image.dtype.kind == "f" and 0 < high <= 1  # would come out black
    if not (low >= 0 and high <= 255) or up_to_one:
        values = f"values from {low:g} to {high:g}"
        raise SourceError(f"{path}: patch {index} has {values}, expected 0 to 255")
    nuclei = np.asarray(masks[index])[..., :PANNUKE_NUCLEI] > 0
    return np.rint(image).astype(np.uint8), np.asarray(nuclei.any(-1))


# -- MoNuSeg ---------------------------------------------------------------------------------------


def monuseg(source: Path) -> list[Original]:
    """`Tissue Images/` with `Annotations/*.xml`, or images beside their XML (the test set)."""
    listed = sorted(path for path in source.rglob("*.xml") if not _hidden(path))
    beside = {path.parent for path in listed if path.parent.name.lower() != "annotations"}
    places = {*_folders(source, "Tissue Images"), *beside}
    if not places:
        raise SourceError(f"{source}: has no folder Tissue Images and no images beside *.xml")
    annotations = _by_stem(listed)
    return [
        _outlined(image, _partner(image, annotations, "annotation *.xml"))
        for place in sorted(places)
        for image in _pictures(place)
    ]


def _outlined(image: Path, annotation: Path) -> Original:
    shape = picture_shape(image)
    return Original(
        image.stem,
        _organ_of_barcode(image.stem),
        shape,
        lambda: (read_image(image), fill(read_outlines(annotation), shape)),
        (image, annotation),
    )


def _organ_of_barcode(name: str) -> str:
    parts = name.split("-")
    return _ORGANS.get(parts[1], "") if parts[0] == "TCGA" and len(parts) > 1 else ""


# -- files -----------------------------------------------------------------------------------------


def _painted(image: Path, mask: Path, name: str, organ: str) -> Original:
    """An original whose mask is a picture too."""
    shape, of_mask = picture_shape(image), picture_shape(mask)
    if of_mask != shape:
        ours, theirs = (f"{width} x {height}" for height, width in (of_mask, shape))
        raise SourceError(f"{mask}: is {ours} pixels, its image is {theirs}")
    files = (image, mask)
    return Original(name, organ, shape, lambda: (read_image(image), read_mask(mask)), files)


def _folders(source: Path, name: str) -> list[Path]:
    """The folders of this name, in any case: `source` itself, or at any depth in it."""
    found = [source, *source.rglob("*")]
    return sorted(path for path in found if path.name.lower() == name.lower() and path.is_dir())


def _pictures(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else iter(())
    return sorted(p for p in found if p.suffix.lower() in PICTURES and not _hidden(p))


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")  # as macOS leaves beside each file of an archive


def _by_stem(paths: Sequence[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(path.stem, []).append(path)
    return found


def _partner(image: Path, found: Mapping[str, list[Path]], what: str) -> Path:
    """The one file of `found` that has the image's name."""
    paths = found.get(image.stem, [])
    if not paths:
        raise SourceError(f"{image}: has no {what} of that name")
    if len(paths) > 1:
        raise SourceError(f"{image}: has more than one {what}: {paths[0]} and {paths[1]}")
    return paths[0]


LAYOUTS: Mapping[str, Callable[[Path], list[Original]]] = {
    "folders": folders,
    "monuseg": monuseg,
    "nuinsseg": nuinsseg,
    "pannuke": pannuke,
}
