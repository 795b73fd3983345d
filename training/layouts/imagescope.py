"""Layouts of ImageScope's XML, whose regions are outlines: MoNuSeg and MoNuSAC.

Rule 1 of `outlines` says which pixels a region encloses, as in the code that the organisers of both
challenges gave out: vertices are pixels, and a pixel on the outline belongs to it. The scale is
that of the attribute MicronsPerPixel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from xml.parsers import expat

import numpy as np

from training.layouts.original import (
    Layout,
    Listing,
    Original,
    broken,
    folders_named,
    is_hidden,
    named_apart,
    pictures_in,
)
from training.layouts.outlines import (
    LIMIT,
    Annotated,
    Annotation,
    Outline,
    count_classes,
    inside_or_on,
    originals,
)
from training.pictures import Rules
from training.rasters import SourceError

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
NUCLEUS = "nucleus"
CELLS = ("Epithelial", "Lymphocyte", "Macrophage", "Neutrophil")
"""MoNuSAC's classes of nuclei."""
AMBIGUOUS = "Ambiguous"
"""MoNuSAC's class of regions whose nuclei are faint, of no clear class, or of one that it has not
(https://monusac-2020.grand-challenge.org/Data)."""
DOUBT = "ambiguous regions"
COPIES = (".tif", ".tiff", ".png", ".svs")
"""The endings of one image in MoNuSAC, that which is read first."""
GLANCE = 1 << 14
"""Bytes of a file's head that tell whose it is."""
NO_IMAGE = "annotation without an image"
_CLASS_NAME = re.compile(rf'<Attribute\s[^>]*Name="\s*({"|".join((*CELLS, AMBIGUOUS))})\s*"', re.I)


# -- MoNuSeg ---------------------------------------------------------------------------------------


def _look_monuseg(source: Path) -> str:
    found = [path for path in _annotations(source) if not _has_cells(path)]
    return f"{len(found)} annotations of ImageScope, such as {found[0].name}" if found else ""


def monuseg(source: Path, rules: Rules) -> Listing:
    """`Tissue Images/` with `Annotations/*.xml`, or images beside their XML (the test set)."""
    if rules.nuclei:
        raise SourceError(f"--nuclei: got {rules.nuclei[0]}, but MoNuSeg's regions have no classes")
    listed = _xml_files(source)
    beside = {path.parent for path in listed if path.parent.name.lower() != "annotations"}
    places = sorted({*folders_named(source, ["Tissue Images"]), *beside})
    if not places:
        raise SourceError(f"{source}: has no folder Tissue Images and no images beside *.xml")
    images = [image for place in places for image in pictures_in(place)]
    found, bad = _paired(images, listed, _read_nuclei)
    outlined = originals(found, frozenset({NUCLEUS}), rules)
    return Listing(named_apart([*outlined, *bad]), _without_image(listed, images))


def _read_nuclei(path: Path) -> Annotated:
    """Regions, all of them nuclei, whatever their Annotation is called."""
    found = _read_regions(path)
    return Annotated([Outline(NUCLEUS, each.pixels) for each in found.outlines], None, found.mpp)


# -- MoNuSAC ---------------------------------------------------------------------------------------


def _look_monusac(source: Path) -> str:
    found = [path for path in _annotations(source) if _has_cells(path)]
    return (
        f"{len(found)} annotations with classes of cells, such as {found[0].name}" if found else ""
    )


def monusac(source: Path, rules: Rules) -> Listing:
    """Folders of patients with images beside their XML, one `Annotation` a class. An image that
    comes as .tif and .svs is read once.

    Ambiguous regions hold nuclei that nobody outlined: they are not painted, and doubtful.
    """
    listed = _xml_files(source)
    if not listed:
        raise SourceError(f"{source}: has no images beside *.xml")
    pictures = [p for place in sorted({f.parent for f in listed}) for p in pictures_in(place)]
    images = _one_of_each(pictures)
    found, bad = _paired(images, listed, _read_cells)
    classes = count_classes(found)
    nuclei = classes.nuclei(source, rules, CELLS) | {AMBIGUOUS}
    copies = {p: "another copy of an image that is used" for p in pictures if p not in images}
    unused = {**copies, **_without_image(listed, images)}
    return Listing(named_apart([*originals(found, nuclei, rules), *bad]), unused)


def _one_of_each(pictures: Sequence[Path]) -> list[Path]:
    """One picture a name and folder: the first that COPIES lists."""
    chosen: dict[Path, Path] = {}
    for path in sorted(pictures, key=lambda path: (path.suffix.lower() not in COPIES, _rank(path))):
        chosen.setdefault(path.with_suffix(""), path)
    return sorted(chosen.values())


def _rank(path: Path) -> int:
    ending = path.suffix.lower()
    return COPIES.index(ending) if ending in COPIES else len(COPIES)


def _read_cells(path: Path) -> Annotated:
    """Regions with the classes of MoNuSAC, in its own spelling."""
    found = _read_regions(path)
    names = {name.lower(): name for name in (*CELLS, AMBIGUOUS)}
    outlines = []
    for outline in found.outlines:
        label = names.get(outline.label.lower(), outline.label or "unclassified")
        doubt = DOUBT if label == AMBIGUOUS else ""
        outlines.append(Outline(label, outline.pixels, doubt))
    return Annotated(outlines, None, found.mpp)


# -- files -----------------------------------------------------------------------------------------


def _xml_files(source: Path) -> list[Path]:
    return sorted(path for path in source.rglob("*.[xX][mM][lL]") if not is_hidden(path))


def _annotations(source: Path) -> list[Path]:
    """The XML files that begin as ImageScope's do."""
    heads = {path: _head(path) for path in _xml_files(source)}
    return [
        p
        for p, head in heads.items()
        if re.search(r"<Annotations[\s>]", head) and "<Region" in head
    ]


def _has_cells(path: Path) -> bool:
    return _CLASS_NAME.search(_head(path)) is not None


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(GLANCE).decode("utf-8", "replace")
    except OSError:
        return ""


def _paired(
    images: Sequence[Path], listed: Sequence[Path], read: Callable[[Path], Annotated]
) -> tuple[list[Annotation], list[tuple[Original, Path]]]:
    """Images with the one annotation of their name, and those that have none or several."""
    of_stem: dict[str, list[Path]] = {}
    for path in listed:
        of_stem.setdefault(path.stem, []).append(path)
    found, bad = [], []
    for image in images:
        files = of_stem.get(image.stem, [])
        beside = [path for path in files if path.parent == image.parent]
        files = beside or files
        if len(files) == 1:
            organ, patient = _of_barcode(image.stem)
            reader = partial(read, files[0])
            found.append(Annotation(image.stem, image, files[0], reader, organ, patient))
            continue
        names = " and ".join(map(str, files[:2]))
        message = (
            f"has two annotations: {names}" if files else "has no annotation *.xml with its name"
        )
        bad.append((broken(image.stem, (image, *files), message), image))
    return found, bad


def _without_image(listed: Sequence[Path], images: Sequence[Path]) -> dict[Path, str]:
    stems = {image.stem for image in images}
    return {path: NO_IMAGE for path in listed if path.stem not in stems}


def _of_barcode(name: str) -> tuple[str, str]:
    """Organ and patient of a TCGA barcode, such as TCGA-A7-A13E-01Z-00-DX1; empty for others."""
    found = re.match(r"TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}(?![A-Z0-9])", name)
    return (_ORGANS.get(found[1], ""), found[0]) if found else ("", "")


# -- XML -------------------------------------------------------------------------------------------


class _Regions:
    """What a parser has met so far: the vertices of each Region, with the class of its Annotation
    (the name of its first Attribute), and the scale.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[tuple[str, list[tuple[float, float]]]] = []
        self.label, self.mpp, self.in_region = "", 0.0, False

    def begin(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        if tag == "Annotations":
            self.mpp = self._scale(attributes.get("MicronsPerPixel"))
        elif tag == "Annotation":
            self.label = ""
        elif tag == "Attribute" and not self.in_region and not self.label:
            self.label = attributes.get("Name", "").strip()
        elif tag == "Region":
            if attributes.get("NegativeROA") == "1":
                raise SourceError(
                    f"{self.path}: has a negative Region, expected outlines of nuclei"
                )
            self.in_region = True
            self.found.append((self.label, []))
        elif tag == "Vertex" and self.found:
            x, y = (self._coordinate(name, attributes) for name in ("X", "Y"))
            self.found[-1][1].append((x, y))

    def end(self, tag: str) -> None:
        """An element ends."""
        self.in_region = self.in_region and tag != "Region"

    def refuse(self, *_: object) -> None:
        """A document type begins."""
        raise SourceError(f"{self.path}: declares a document type, which no annotation needs")

    def _coordinate(self, name: str, attributes: Mapping[str, str]) -> float:
        text = attributes.get(name)
        value = _number(text)
        if not abs(value) <= LIMIT:
            raise SourceError(
                f"{self.path}: has a Vertex with {name}={text!r}, expected a number of pixels"
            )
        return value

    def _scale(self, text: str | None) -> float:
        value = _number(text) if text else 0.0
        if not 0 <= value < math.inf:
            raise SourceError(
                f"{self.path}: has MicronsPerPixel={text!r}, expected a number such as 0.25"
            )
        return value


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def _read_regions(path: Path) -> Annotated:
    """The regions of an ImageScope annotation, in order, as outlines of their Annotation's class.

    A document type is refused where it begins: it is the only place where XML can define entities,
    those that swell and those that read other files, so without it there are none. Expat, the
    parser beneath the standard library's others, has no way to fetch anything by itself.
    """
    regions = _Regions(path)
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = regions.begin, regions.end
    parser.StartDoctypeDeclHandler = regions.refuse
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except (expat.ExpatError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: is not XML ({error})") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    if not regions.found:
        raise SourceError(f"{path}: holds no Region, as ImageScope's annotations do")
    outlines = [
        Outline(label, partial(inside_or_on, np.array(vertices).reshape(-1, 2)))
        for label, vertices in regions.found
    ]
    return Annotated(outlines, None, regions.mpp)


LAYOUTS: dict[str, Layout] = {
    "monusac": Layout(_look_monusac, monusac),
    "monuseg": Layout(_look_monuseg, monuseg),
}
