"""Layouts of images beside painted masks: two folders, one folder with suffixes, NuInsSeg."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from os.path import relpath
from pathlib import Path

import numpy as np

from training.layouts.original import (
    Layout,
    Listing,
    Original,
    Pair,
    broken,
    folders_named,
    is_picture,
    named_apart,
    organ_name,
    pictures_in,
    same_shape,
)
from training.meaning import Meaning
from training.pictures import Rules, read_image, read_painting
from training.rasters import SourceError

IMAGES = ("images", "image", "imgs", "img", "original", "originals", "raw")
MASKS = ("masks", "mask", "labels", "label", "instances", "annotations", "gt", "ground_truth")
"""Names of the two folders, in any case, the most usual first."""
TISSUE = "tissue images"
NUINSSEG_MASKS = ("mask binary", "label masks", "label masks modify")
"""Folders beside TISSUE, the best first; the others hold eroded or stacked masks."""
SUFFIXES = ("_masks", "_mask", "_anno", "_label", "_labels", "_seg", "_gt", "_instances", "-mask")
"""What a mask's stem has after that of its image, in one folder or in two."""
IMAGE_SUFFIXES = ("_img", "_image")
"""What an image's stem may have in place of a mask's suffix, as Cellpose writes them."""
NO_IMAGE = "mask without an image"


# -- two folders -----------------------------------------------------------------------------------


def _look_folders(source: Path) -> str:
    for images, masks in _two_folders(source):
        stems = {_stem(mask) for mask in pictures_in(masks)}
        if any(_stem(image) in stems for image in pictures_in(images)):
            return f"pictures in {relpath(images, source)} and {relpath(masks, source)}"
    return ""


def folders(source: Path, rules: Rules) -> Listing:
    """`images/` beside `masks/`, at any depth, or the same folders below both: `images/train` and
    `masks/train`. A mask has its image's name, in any format, or that name and a suffix.
    """
    found = _two_folders(source)
    if not found:
        raise SourceError(
            f"{source}: has no folder images with a folder masks beside it (or {IMAGES[4]} and "
            f"{MASKS[1]}, {IMAGES[0]} and {MASKS[2]}, in any case)"
        )
    listed: list[tuple[Original, Path]] = []
    unused: dict[Path, str] = {}
    for images, masks in found:
        below = _without(source, images)
        of_stem: dict[str, list[Path]] = {}
        for mask in pictures_in(masks):
            of_stem.setdefault(_stem(mask), []).append(mask)
        for image in pictures_in(images):
            name = "/".join((*below, _stem(image)))
            listed.append((_partnered(name, image, of_stem.get(_stem(image), []), rules), image))
        used = {path for original, _ in listed for path in original.files}
        unused |= {path: NO_IMAGE for path in pictures_in(masks) if path not in used}
    return Listing(named_apart(listed), unused)


def _two_folders(source: Path) -> list[tuple[Path, Path]]:
    """Folders that hold images, each with the folder of their masks."""
    found = []
    for top in folders_named(source, IMAGES):
        for masks in _partners(top):
            below = [top, *sorted(path for path in top.rglob("*") if path.is_dir())]
            found += [
                (images, masks / images.relative_to(top))
                for images in below
                if (masks / images.relative_to(top)).is_dir() and pictures_in(images)
            ]
    return found


def _partners(images: Path) -> list[Path]:
    """The folder of masks beside a folder of images: the one with the most usual name."""
    beside = {path.name.lower(): path for path in images.parent.iterdir() if path.is_dir()}
    return [beside[name] for name in MASKS if name in beside][:1]


def _without(source: Path, images: Path) -> tuple[str, ...]:
    """The parts of a folder's path below `source`, without the one that says `images`."""
    parts = images.relative_to(source).parts
    at = next((i for i, part in enumerate(parts) if part.lower() in IMAGES), len(parts))
    return (*parts[:at], *parts[at + 1 :])


def _stem(path: Path) -> str:
    """A stem without what marks a mask or an image."""
    stem = path.stem
    for suffix in (*SUFFIXES, *IMAGE_SUFFIXES):
        if stem.lower().endswith(suffix) and len(stem) > len(suffix):
            return stem[: -len(suffix)]
    return stem


# -- one folder ------------------------------------------------------------------------------------


def _look_suffixes(source: Path) -> str:
    pairs, _ = _suffix_pairs(source)
    both = [(image, masks[0]) for image, masks in pairs if masks]
    return f"{both[0][0].name} beside {both[0][1].name}" if both else ""


def suffixes(source: Path, rules: Rules) -> Listing:
    """Images and masks in one folder, at any depth: `x.tif` with `x_masks.tif`, `x_img.png` with
    `x_masks.png`, `x_anno.bmp`, or `x.bmp` with `x.png`, of which the PNG is the mask.
    """
    pairs, unused = _suffix_pairs(source)
    if not pairs:
        raise SourceError(
            f"{source}: has no images with a mask beside them, such as x.tif with x_masks.tif"
        )
    listed = []
    for image, masks in pairs:
        name = "/".join((*image.parent.relative_to(source).parts, _stem(image)))
        listed.append((_partnered(name, image, masks, rules), image))
    return Listing(named_apart(listed), unused)


def _suffix_pairs(source: Path) -> tuple[list[tuple[Path, list[Path]]], dict[Path, str]]:
    """Images with the masks of their stem, and the masks of no image. Without one pair, nothing."""
    found: dict[tuple[Path, str], list[Path]] = {}
    for path in sorted(p for p in source.rglob("*") if p.is_file() and is_picture(p)):
        found.setdefault((path.parent, _stem(path)), []).append(path)
    pairs: list[tuple[Path, list[Path]]] = []
    unused: dict[Path, str] = {}
    for paths in found.values():
        masks = [path for path in paths if _is_mask(path)]
        images = [path for path in paths if path not in masks]
        if not masks and len(images) == 2 and images[1].suffix.lower() == ".png":
            images, masks = images[:1], images[1:]
        pairs += [(image, masks) for image in images]
        unused |= {} if images else dict.fromkeys(masks, NO_IMAGE)
    return (pairs, unused) if any(masks for _, masks in pairs) else ([], {})


def _is_mask(path: Path) -> bool:
    return any(path.stem.lower().endswith(suffix) for suffix in SUFFIXES)


# -- NuInsSeg --------------------------------------------------------------------------------------


def _look_nuinsseg(source: Path) -> str:
    found = folders_named(source, [TISSUE])
    found = [path for path in found if any((path.parent / n).is_dir() for n in NUINSSEG_MASKS)]
    return f"{len(found)} folders of {TISSUE} with masks beside them" if found else ""


def nuinsseg(source: Path, rules: Rules) -> Listing:
    """`<organ>/tissue images/` beside `mask binary/` and folders of ids. Ids are taken where they
    mark the same pixels as the binary mask, which counts where they do not.
    """
    found = folders_named(source, [TISSUE])
    if not found:
        raise SourceError(f"{source}: has no folder <organ>/{TISSUE}")
    listed = [pair for images in found for pair in _organ_folder(images, rules)]
    return Listing(named_apart(listed))


def _organ_folder(images: Path, rules: Rules) -> Iterator[tuple[Original, Path]]:
    organ = images.parent
    masks: dict[str, list[Path]] = {}
    for folder in (organ / name for name in NUINSSEG_MASKS):
        for path in pictures_in(folder) if folder.is_dir() else ():
            masks.setdefault(path.stem, []).append(path)
    for image in pictures_in(images):
        found = masks.get(image.stem, [])
        if found:
            read, files = partial(_read_nuinsseg, image, found, rules), (image, *found)
            yield Original(image.stem, read, files, organ_name(organ.name)), image
        else:
            yield broken(image.stem, (image,), f"has no mask in {', '.join(NUINSSEG_MASKS)}"), image


def _read_nuinsseg(image: Path, masks: Sequence[Path], rules: Rules) -> Pair:
    pixels = read_image(image, rules)
    found = []
    for path in masks:
        means = Meaning("one" if path.parent.name == NUINSSEG_MASKS[0] else "ids")
        found.append(means.nuclei(read_painting(path, rules)))
        same_shape((image, path), pixels, found[-1])
    whole = found[0] > 0
    ids = [nuclei for nuclei in found if nuclei.dtype != bool and np.array_equal(nuclei > 0, whole)]
    return Pair(pixels, ids[0] if ids else whole)


# -- files -----------------------------------------------------------------------------------------


def _partnered(
    name: str, image: Path, masks: Sequence[Path], rules: Rules, organ: str = ""
) -> Original:
    """An image with the one mask of its name."""
    if not masks:
        return broken(name, (image,), "has no mask with its name")
    if len(masks) > 1:
        return broken(name, (image, *masks), f"has two masks: {masks[0]} and {masks[1]}")
    read = partial(read_pair, image, masks[0], rules)
    return Original(name, read, (image, masks[0]), organ)


def read_pair(image: Path, mask: Path, rules: Rules) -> Pair:
    """An image and its painted mask. SourceError where they are of different sizes."""
    pixels, painting = read_image(image, rules), read_painting(mask, rules)
    same_shape((image, mask), pixels, painting.values)
    return Pair(pixels, painting)


LAYOUTS: dict[str, Layout] = {
    "folders": Layout(_look_folders, folders, painted=True),
    "nuinsseg": Layout(_look_nuinsseg, nuinsseg, painted=True),
    "suffixes": Layout(_look_suffixes, suffixes, painted=True),
}


__all__: Sequence[str] = ("LAYOUTS", "read_pair")
