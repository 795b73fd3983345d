"""Layouts of arrays that hold many patches each: PanNuke and CoNIC.

PanNuke: Gamper et al., arXiv 2003.10778; patches of 19 tissues at 40x, 0.25 microns a pixel as its
card on Hugging Face (RationAI/PanNuke) says. CoNIC: Graham et al., arXiv 2111.14485; patches of
Lizard, of colon at 20x, nominally 0.5 microns a pixel.
Arrays are mapped, so no data set has to fit into memory.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from training.layouts.nucleus_ids import (
    chosen_classes,
    of_classes,
    usual_classes,
    whole_numbers,
)
from training.layouts.original import (
    AnnotatedImage,
    Layout,
    Listing,
    Original,
    files_under,
    is_hidden,
    named_apart,
    organ_name,
    refused,
)
from training.pictures import Rules
from training.rasters import SourceError, read_array, reading

PANNUKE = {0: "neoplastic", 1: "inflammatory", 2: "connective", 3: "dead", 4: "epithelial"}
"""The channels of PanNuke's masks; the sixth is the ground."""
PANNUKE_MPP = 0.25
CONIC = dict(
    enumerate(("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective"), 1)
)
"""The classes of Lizard too, of which CoNIC is made."""
CONIC_MPP = 0.5


# -- PanNuke ---------------------------------------------------------------------------------------


def _look_pannuke(source: Path) -> str:
    for path in _named(source, "images.npy"):
        masks = _masks_of_fold(path)
        if masks and _shape(masks)[3:] == (6,):
            return f"{path.relative_to(source)}, and {masks.name} with 6 channels"
    return ""


def pannuke(source: Path, rules: Rules) -> Listing:
    """Folds of `images.npy`, `types.npy` and `masks.npy`, as unpacked or in one folder.

    PanNuke does not say which patches come from one slide, so each is a group of its own.
    """
    chosen = chosen_classes(rules.nuclei, PANNUKE)
    found = _named(source, "images.npy")
    if not found:
        raise SourceError(f"{source}: has no images.npy, as PanNuke's folds do")
    originals = [each for path in found for each in _fold(source, path, chosen)]
    used = {path for original in originals for path in original.files}
    others = [path for path in _named(source, "masks.npy") if path not in used]
    types = [path.with_name("types.npy") for path in found]
    unused = dict.fromkeys(others, "masks without images.npy")
    return Listing(_checked(originals), unused, [path for path in types if path.exists()])


def _fold(source: Path, path: Path, chosen: frozenset[int]) -> Iterator[Original]:
    name, masks_path = _folder_name(source, path), _masks_of_fold(path)
    name = name or source.resolve().name
    try:
        if masks_path is None:
            raise SourceError(f"{path}: has no masks.npy beside it or under masks/")
        images, masks = _patches(path, 3), _patches(masks_path, 6)
        _same_count(path, images, masks_path, masks)
        organs = _organs(path.with_name("types.npy"), len(images))
    except SourceError as error:
        yield refused(name, (path, masks_path) if masks_path else (path,), error)
        return
    for index, organ in enumerate(organs):
        read = partial(_read_pannuke, path, masks_path, (images, masks), index, chosen)
        yield Original(f"{name}/{index:05d}", read, (path, masks_path), organ)


def _masks_of_fold(path: Path) -> Path | None:
    """`masks.npy` beside `images.npy`, or where it is unpacked to: masks/ in place of images/."""
    parts = path.parent.parts
    places = [path.parent] + [
        Path(*parts[:at], "masks", *parts[at + 1 :])
        for at, part in enumerate(parts)
        if part.lower() == "images"
    ]
    return next((at / "masks.npy" for at in places if (at / "masks.npy").exists()), None)


def _organs(path: Path, count: int) -> list[str]:
    organs = read_array(path, mapped=False)
    if organs.dtype.kind not in "US":
        raise SourceError(f"{path}: has values of type {organs.dtype}, expected names of organs")
    if organs.shape != (count,):
        raise SourceError(f"{path}: has shape {list(organs.shape)}, expected [{count}]")
    return [tissue_name(str(organ)) for organ in organs.astype(np.str_)]


def tissue_name(name: str) -> str:
    """A tissue as a label, the same one from the arrays (`HeadNeck`) and from Parquet."""
    return "head-neck" if name == "HeadNeck" else organ_name(name)


def _read_pannuke(
    path: Path,
    masks_path: Path,
    arrays: tuple[np.ndarray, np.ndarray],
    index: int,
    chosen: frozenset[int],
) -> AnnotatedImage:
    """Ids are those of the masks, unless two channels share one: then they are 1 to n. Where two
    channels overlap, the pixels are the first one's.
    """
    images, masks = arrays
    image = _patch(path, images, index)
    channels = whole_numbers(masks_path, f"patch {index}", np.asarray(masks[index]))
    layers = [channels[..., channel] for channel in PANNUKE]
    named = [np.unique(layer[layer > 0]) for layer in layers]
    if len(np.unique(np.concatenate(named))) < sum(map(len, named)):
        starts = np.cumsum([1, *map(len, named)])
        layers = [
            np.where(layer > 0, np.searchsorted(numbers, layer) + start, 0)
            for layer, numbers, start in zip(layers, named, starts, strict=False)
        ]
    ids = np.zeros(image.shape[:2], dtype=np.int32)
    for channel in sorted(chosen):
        ids = np.where(ids == 0, layers[channel], ids).astype(np.int32)
    return AnnotatedImage(image, ids, PANNUKE_MPP)


# -- CoNIC -----------------------------------------------------------------------------------------


def _look_conic(source: Path) -> str:
    for path in _named(source, "images.npy"):
        labels = path.with_name("labels.npy")
        if labels.exists() and _shape(labels)[3:] == (2,):
            return f"{path.relative_to(source)}, and labels.npy with 2 channels"
    return ""


def conic(source: Path, rules: Rules) -> Listing:
    """`images.npy` beside `labels.npy`, whose channels are ids and classes of nuclei; the group of
    a patch is the image that `patch_info.csv` says it was cut from, where that file is there.
    """
    chosen = chosen_classes(rules.nuclei, CONIC)
    found = _named(source, "images.npy")
    if not found:
        raise SourceError(f"{source}: has no images.npy beside a labels.npy, as CoNIC has")
    originals = [each for path in found for each in _labelled(source, path, chosen)]
    used = {path for original in originals for path in original.files}
    others = [path for path in _named(source, "labels.npy") if path not in used]
    names = [path.with_name("patch_info.csv") for path in found]
    unused = dict.fromkeys(others, "labels without images.npy")
    return Listing(_checked(originals), unused, [path for path in names if path.exists()])


def _labelled(source: Path, path: Path, chosen: frozenset[int]) -> Iterator[Original]:
    labels_path, info = path.with_name("labels.npy"), path.with_name("patch_info.csv")
    folder = _folder_name(source, path)
    try:
        images, labels = _patches(path, 3), _patches(labels_path, 2)
        _same_count(path, images, labels_path, labels)
        patches = _patch_names(info, len(images)) if info.exists() else [""] * len(images)
    except SourceError as error:
        files = (path, labels_path) if labels_path.exists() else (path,)
        yield refused(folder or source.resolve().name, files, error)
        return
    for index, patch in enumerate(patches):
        name = "/".join(part for part in (folder, patch or f"{index:05d}") if part)
        read = partial(_read_conic, path, labels_path, (images, labels), index, chosen)
        group = patch.rpartition("-")[0]
        yield Original(name, read, (path, labels_path), "colon", group=group)


def _patch_names(path: Path, count: int) -> list[str]:
    """Names such as `consep_1-0003`: the fourth patch of the image `consep_1` of Lizard."""
    with reading(path), path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    names = [row[0] for row in rows[1:] if len(row) == 1 and "-" in row[0]]
    if not rows or rows[0] != ["patch_info"] or len(names) < len(rows) - 1:
        raise SourceError(f"{path}: expected a column patch_info of names such as consep_1-0003")
    if len(names) != count or len(set(names)) < count:
        raise SourceError(
            f"{path}: has {len(names)} names, {len(set(names))} of them different, expected {count}"
        )
    return names


def _read_conic(
    path: Path,
    labels_path: Path,
    arrays: tuple[np.ndarray, np.ndarray],
    index: int,
    chosen: frozenset[int],
) -> AnnotatedImage:
    images, labels = arrays
    image = _patch(path, images, index)
    values = whole_numbers(labels_path, f"patch {index}", np.asarray(labels[index]))
    ids, classes = values[..., 0], values[..., 1]
    if classes.max(initial=0) > max(CONIC):
        raise SourceError(
            f"{labels_path}: patch {index} has class {classes.max()}, expected 0 to {max(CONIC)}"
        )
    if chosen != frozenset(CONIC):
        ids = of_classes(ids, *usual_classes(ids, classes), chosen)
    return AnnotatedImage(image, ids, CONIC_MPP)


# -- arrays ----------------------------------------------------------------------------------------


def _named(source: Path, name: str) -> list[Path]:
    return [path for path in files_under(source) if path.name == name and not is_hidden(path)]


def _folder_name(source: Path, path: Path) -> str:
    """The folders from the source to an array, without those called images."""
    parts = path.parent.relative_to(source).parts
    return "/".join(part for part in parts if part.lower() != "images")


def _checked(originals: Sequence[Original]) -> list[Original]:
    return named_apart([(original, original.files[0]) for original in originals])


def _shape(path: Path) -> tuple[int, ...]:
    """Of an array, from its head alone; () where it is none."""
    try:
        return read_array(path, mapped=True).shape
    except SourceError:
        return ()


def _patches(path: Path, channels: int) -> np.ndarray:
    """A mapped array [M, H, W, channels]."""
    array = read_array(path, mapped=True)
    if array.ndim != 4 or array.shape[3] != channels or not array.size:
        raise SourceError(f"{path}: has shape {list(array.shape)}, expected [M, H, W, {channels}]")
    return array


def _same_count(path: Path, images: np.ndarray, others_path: Path, others: np.ndarray) -> None:
    if others.shape[:3] != images.shape[:3]:
        ours, theirs = (f"{len(a)} of {a.shape[2]} x {a.shape[1]}" for a in (others, images))
        raise SourceError(f"{others_path}: holds {ours} pixels, {path} holds {theirs}")


def _patch(path: Path, images: np.ndarray, index: int) -> np.ndarray:
    """One image of an array as uint8 [H, W, 3]."""
    values = np.asarray(images[index])
    if values.dtype == np.uint8:
        return values
    whole = whole_numbers(path, f"patch {index}", values)
    low, high = (int(each) for each in (whole.min(), whole.max()))
    up_to_one = values.dtype.kind in "bf" and high == 1  # would come out black
    if high > 255 or up_to_one:
        raise SourceError(
            f"{path}: patch {index} has values from {low} to {high}, expected 0 to 255"
        )
    return whole.astype(np.uint8)


LAYOUTS: dict[str, Layout] = {
    "conic": Layout(_look_conic, conic),
    "pannuke": Layout(_look_pannuke, pannuke),
}
