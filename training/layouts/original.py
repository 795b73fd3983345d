"""What every layout gives: originals, the files that they are made of, and how they are read.

A layout is a function that lists the originals of a folder, and another that says whether a folder
looks like it. Neither reads pixels: that is done when an original is asked for its pair, so that
an import can survey hundreds of originals one by one. Knows no layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.pictures import Painting, Rules
from training.rasters import ENDINGS, SourceError


@dataclass(frozen=True)
class Pair:
    """An image, uint8 [H, W, 3], and its nuclei: ids, int32 [H, W] with 0 outside, where they are
    known one by one; a mask, bool [H, W], where they are not; or a painting, whose values only all
    masks of a source together explain. `mpp`: microns a pixel, 0 where unknown.

    `doubtful`, bool [H, W], is where the annotation says that nuclei are not outlined one by one:
    nothing is painted there, and no mask of it is right. None where there is no such place.
    `left_out` counts the annotations that are not among the nuclei, by reason.
    """

    image: np.ndarray
    nuclei: np.ndarray | Painting
    mpp: float = 0.0
    doubtful: np.ndarray | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Original:
    """One annotated image. `organ` and `text`, a caption, are empty where unknown. `group` is the
    slide or larger image that it was cut from, where the source tells; else empty.

    `read` gives the pair from `files`, and raises SourceError where one of them cannot be used.
    """

    name: str
    read: Callable[[], Pair]
    files: tuple[Path, ...]
    organ: str = ""
    text: str = ""
    group: str = ""


@dataclass(frozen=True)
class Listing:
    """The originals of a folder in a fixed order; `unused` gives a reason for pictures and
    annotations that no original is made of, and `read` the files that say how (names of classes).
    """

    originals: Sequence[Original]
    unused: Mapping[Path, str] = field(default_factory=dict)
    read: Sequence[Path] = ()


@dataclass(frozen=True)
class Layout:
    """`look` says in a few words what in a folder is of this layout, or nothing. `listed` is given
    the folder and the user's rules, and raises SourceError where something is missing. `painted`
    says that its masks are pictures, of which rules can say what they mean.
    """

    look: Callable[[Path], str]
    listed: Callable[[Path, Rules], Listing]
    painted: bool = False


def broken(name: str, files: tuple[Path, ...], message: str) -> Original:
    """An original that cannot be read, for a reason that its files' names tell already. An import
    names it with all others that are broken, or goes on without it where the user says so.
    """

    def refuse() -> Pair:
        raise SourceError(f"{files[0]}: {message}")

    return Original(name, refuse, files)


def refused(name: str, files: tuple[Path, ...], error: SourceError) -> Original:
    """Files of many images that cannot be used at all, in place of their originals."""

    def refuse() -> Pair:
        raise error

    return Original(name, refuse, files)


def organ_name(text: str) -> str:
    """An organ as a label: `Adrenal_gland` is `adrenal-gland`, `human liver` is `liver`."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower())).removeprefix("human-")


def files_under(source: Path) -> list[Path]:
    """Every file at any depth, in a fixed order."""
    return sorted(path for path in source.rglob("*") if path.is_file())


def is_hidden(path: Path) -> bool:
    """Whether a file is one that systems leave behind: `.DS_Store`, `._a.png`, `Thumbs.db`."""
    return path.name.startswith(".") or path.name == "Thumbs.db" or "__MACOSX" in path.parts


def is_picture(path: Path) -> bool:
    """By the ending of its name, hidden files left out."""
    return path.suffix.lower() in ENDINGS and not is_hidden(path)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures right in a folder, in a fixed order."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_picture(path))


def folders_named(source: Path, names: Iterable[str]) -> list[Path]:
    """The folders of one of these names, in any case: `source` itself, or at any depth in it."""
    wanted = {name.lower() for name in names}
    found = [source, *source.rglob("*")]
    return sorted(path for path in found if path.name.lower() in wanted and path.is_dir())


def named_apart(originals: Sequence[tuple[Original, Path]]) -> list[Original]:
    """The originals. SourceError where two images, given with each, have one name."""
    seen: dict[str, Path] = {}
    for original, image in originals:
        if original.name in seen:
            raise SourceError(
                f"{seen[original.name]} and {image}: have one name, expected one image per name"
            )
        seen[original.name] = image
    return [original for original, _ in originals]


def same_shape(files: Sequence[Path], image: np.ndarray, nuclei: np.ndarray) -> None:
    """SourceError where an annotation is not of its image's size."""
    if image.shape[:2] != nuclei.shape[:2]:
        ours, theirs = (f"{p.shape[1]} x {p.shape[0]}" for p in (nuclei, image))
        raise SourceError(f"{files[-1]}: is {ours} pixels, its image {files[0]} is {theirs}")
