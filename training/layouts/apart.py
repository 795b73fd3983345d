"""Layouts with a mask file for each nucleus: the 2018 Data Science Bowl (BBBC038).

Caicedo et al., "Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl",
Nature Methods 16, 2019. Published by the Broad Bioimage Benchmark Collection as BBBC038v1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from training import scratch
from training.layouts.instances import chosen_classes, laid_over, one_nucleus
from training.layouts.original import (
    Layout,
    Listing,
    Original,
    Pair,
    broken,
    folders_named,
    named_apart,
    pictures_in,
    same_shape,
)
from training.pictures import Rules, read_image, read_painting
from training.rasters import SourceError


def _look(source: Path) -> str:
    found = [images for images in folders_named(source, ["images"]) if _is_published(images)]
    return f"{len(found)} folders ID with images/ID.png and masks/*.png" if found else ""


def _is_published(images: Path) -> bool:
    """Whether a folder holds the one image of its parent's name, and masks beside it do not."""
    stems = [path.stem for path in pictures_in(images)]
    masks = images.with_name("masks")
    if stems != [images.parent.name] or not masks.is_dir():
        return False
    of_masks = [path.stem for path in pictures_in(masks)]
    return bool(of_masks) and stems[0] not in of_masks


def dsb2018(source: Path, rules: Rules) -> Listing:
    """`<id>/images/<id>.png` with `<id>/masks/*.png`, one file per nucleus. Ids are 1 to n in the
    order of the masks' names. Images of the test set, without a folder `masks`, are not used.
    An original is called by its id, or by the path to it where two have one.
    """
    chosen_classes(rules.nuclei, {})
    found = folders_named(source, ["images"])
    annotated = [images for images in found if images.with_name("masks").is_dir()]
    if not annotated:
        raise SourceError(f"{source}: has no folders ID with folders images and masks in each")
    held = Counter(_id(images) for images in annotated)
    originals = [
        pair
        for images in annotated
        for pair in _annotated(_name(source, images, held), images, rules)
    ]
    rest = [images for images in found if images not in annotated]
    unused = {
        path: "image without a folder masks" for images in rest for path in pictures_in(images)
    }
    return Listing(named_apart(originals), unused)


def _id(images: Path) -> str:
    return images.resolve().parent.name


def _name(source: Path, images: Path, held: Counter[str]) -> str:
    if held[_id(images)] == 1:
        return _id(images)
    return images.parent.relative_to(source).as_posix()


def _annotated(name: str, images: Path, rules: Rules) -> Iterator[tuple[Original, Path]]:
    """The original of a folder; nothing where it holds neither an image nor masks."""
    pictures, masks = pictures_in(images), pictures_in(images.with_name("masks"))
    if not pictures and not masks:
        return
    if len(pictures) != 1:
        message = f"its folder images holds {len(pictures)} images, expected one"
        yield broken(name, (*pictures, *masks), message), images
    elif not masks:
        message = "has no mask in its folder masks, expected one file per nucleus"
        yield broken(name, (pictures[0],), message), pictures[0]
    else:
        read = partial(_read, pictures[0], masks, rules)
        yield Original(name, read, (pictures[0], *masks)), pictures[0]


def _read(image: Path, masks: Sequence[Path], rules: Rules) -> Pair:
    """Where two masks overlap, the pixels are the first one's."""
    pixels = read_image(image, rules)
    ids = scratch.zeros(pixels.shape[:2], np.int32)
    for number, path in enumerate(masks, start=1):
        painting = read_painting(path, rules)
        same_shape((image, path), pixels, painting.values)
        laid_over(ids, one_nucleus(painting), number)
    return Pair(pixels, ids)


LAYOUTS: dict[str, Layout] = {"dsb2018": Layout(_look, dsb2018, painted=True)}
