"""Reading annotated images from files that nobody vouches for: pictures, arrays, outlines in XML.

Whatever cannot be read, or would be read wrongly, is a SourceError that names the file. Arrays are
read without pickle and XML without document types, so no file can make this process run, fetch or
swell to anything. Knows nothing of how a data set is laid out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from xml.parsers import expat

import numpy as np
from PIL import Image
from skimage.draw import polygon

from training.run import StageError

Outline = list[tuple[float, float]]
"""The vertices of a polygon as (x, y) in pixels."""


class SourceError(StageError):
    """A file of a data set that cannot be used; the sentence names it."""


# -- pictures --------------------------------------------------------------------------------------


def picture_shape(path: Path) -> tuple[int, int]:
    """Height and width, from the file's head alone."""
    with _opened(path) as picture:
        return picture.height, picture.width


def read_image(path: Path) -> np.ndarray:
    """A picture as uint8 [H, W, 3]; transparency is left out."""
    with _opened(path) as picture:
        if picture.mode[0] in "IF":
            raise SourceError(f"{path}: has mode {picture.mode}, expected 8 bits a channel")
        return np.array(picture.convert("RGB"))


def read_mask(path: Path) -> np.ndarray:
    """A painted mask as bool [H, W]: what is not 0, in any channel but transparency, is a nucleus.

    So 0 and 1, 0 and 255, and numbered nuclei of any depth all mean what they should. A palette is
    looked up first, for its index 0 can be white. A JPEG has no exact 0; there, the brighter half
    is a nucleus.
    """
    with _opened(path) as picture:
        coloured = picture.mode in ("P", "PA")
        values = np.array(picture.convert("RGBA") if coloured else picture)
        if coloured or picture.mode in ("LA", "RGBA"):
            values = values[..., :-1]
        nuclei = np.asarray(values > 127 if picture.format == "JPEG" else values != 0)
    mask = np.asarray(nuclei.any(-1)) if nuclei.ndim == 3 else nuclei
    if coloured and mask.all():
        raise SourceError(f"{path}: its palette shows no black, expected black outside nuclei")
    return mask


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            yield picture
    except SourceError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SourceError(f"{path}: cannot be read ({error})") from error


# -- arrays ----------------------------------------------------------------------------------------


def read_array(path: Path, *, mapped: bool) -> np.ndarray:
    """A .npy file, mapped or in memory. Python objects in it are pickle: they are never loaded."""
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError) as error:
        if "pickle" in str(error) or "Python objects" in str(error):
            raise SourceError(f"{path}: {_PICKLE.format(name=path.name)}") from None
        raise SourceError(f"{path}: is no .npy array ({error})") from error
    if not isinstance(array, np.ndarray):
        raise SourceError(f"{path}: is an archive, expected one .npy array")
    return array


_PICKLE = (
    "is no array of plain values but needs pickle, which runs whatever a file tells it to. Where "
    'you trust the file, write it again once: python -c "import numpy as n; '
    "n.save('{name}', n.load('{name}', allow_pickle=True).astype(str))\""
)


# -- outlines --------------------------------------------------------------------------------------


def read_outlines(path: Path) -> list[Outline]:
    """The polygons of an ImageScope annotation (MoNuSeg's): the vertices of every Region.

    A document type is refused where it begins: it is the only place where XML can define entities,
    those that swell and those that read other files, so without it there are none. Expat, the
    parser beneath the standard library's others, has no way to fetch anything by itself.
    """
    outlines: list[Outline] = []

    def begin(tag: str, attributes: dict[str, str]) -> None:
        if tag == "Region":
            outlines.append([])
        elif tag == "Vertex" and outlines:
            x, y = (_coordinate(path, name, attributes) for name in ("X", "Y"))
            outlines[-1].append((x, y))

    def refuse(*_: object) -> None:
        raise SourceError(f"{path}: declares a document type, which no annotation needs")

    parser = expat.ParserCreate()
    parser.StartElementHandler = begin
    parser.StartDoctypeDeclHandler = refuse
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        raise SourceError(f"{path}: is no XML ({error})") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    if not outlines:
        raise SourceError(f"{path}: holds no Region, as MoNuSeg's annotations do")
    return outlines


def fill(outlines: list[Outline], shape: tuple[int, int]) -> np.ndarray:
    """Bool `shape`: the pixels in any of the outlines, or on its edge; those outside are cut off.

    Fewer than three vertices, of which MoNuSeg has a few, enclose nothing.
    """
    mask = np.zeros(shape, dtype=bool)
    for outline in outlines:
        if len(outline) >= 3:
            columns, rows = np.array(outline).T
            mask[polygon(rows, columns, shape)] = True  # type: ignore[no-untyped-call]
    return mask


def _coordinate(path: Path, name: str, attributes: Mapping[str, str]) -> float:
    text = attributes.get(name)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SourceError(f"{path}: has a Vertex with {name}={text!r}, expected a number")
    return value
