"""Import: `python -m training.import_patches LAYOUT SOURCE --out D --licence L --modality M`.

Cuts the annotated images of a data set into square tiles, and writes them as the other stages read
them: `images/*.png`, `masks/*.png` (0 and 255), `instances/*.png` (ids, where they are known) and
`manifest.csv`. A tile's group is its original, or what `--group-by` finds in the original's name.
Training and validation never share a group. Tiles cover an original completely. They overlap if
their size does not divide the original's. `--look SOURCE` tells which layout a folder has.

`importing.py` has the steps of an import, `layouts/` reads each layout.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from training.importing import Import, import_patches
from training.layouts import LAYOUTS, look
from training.pictures import Rules
from training.rasters import SourceError
from training.run import stage
from training.samples import MANIFEST
from training.tiles import Small

SHRUNK = (2, 4, 8)
"""How many times smaller than its original a tile may be."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.import_patches", description=__doc__)
    parser.add_argument("layout", choices=sorted(LAYOUTS), help="how the source is laid out")
    parser.add_argument("source", type=Path, help="folder of the unpacked data set")
    parser.add_argument("--out", type=Path, required=True, help="folder to write patches to")
    parser.add_argument("--licence", required=True, help="of the data, e.g. CC-BY-4.0")
    parser.add_argument("--modality", required=True, help="of the data, e.g. histology")
    parser.add_argument("--organ", default="", help="of the images whose layout names none")
    parser.add_argument("--size", type=int, default=256, help="pixels of a tile's side")
    parser.add_argument(
        "--mpp", type=float, default=0.0, help="microns per pixel, where no file states them"
    )
    parser.add_argument(
        "--scales",
        type=_shrinks,
        default=(),
        dest="shrinks",
        help="cut the originals at these scales, too, such as 0.5,0.25: each tile shows so much "
        "more, and has labels such as histology@0.5",
    )
    parser.add_argument(
        "--group-by",
        default="",
        metavar="PATTERN",
        help="regular expression whose first group, or all it matches, is the slide or patient in "
        "an original's name; '(.*)/' is the folder (default: each original by itself)",
    )
    parser.add_argument(
        "--only", type=Path, help="file with the names of the originals to import, one per line"
    )
    parser.add_argument(
        "--small",
        choices=get_args(Small),
        default="refuse",
        help="originals smaller than a tile: leave them out, mirror them at their edges, "
        "or enlarge them",
    )
    parser.add_argument("--skip-broken", action="store_true", help="skip files that cannot be read")
    _add_rules(parser)
    return parser


def _shrinks(text: str) -> tuple[int, ...]:
    """How many times smaller than their originals tiles are, from a list of scales."""
    by_name = {f"{1 / by:g}": by for by in SHRUNK}
    words = [word.strip() for word in text.split(",")]
    if len(set(words)) < len(words) or not set(words) <= set(by_name):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected some of {', '.join(by_name)}, with commas between them"
        )
    return tuple(by_name[word] for word in words)


def _add_rules(parser: argparse.ArgumentParser) -> None:
    """What the user can say of files that do not speak for themselves."""
    group = parser.add_argument_group("what files mean, if they do not tell")
    group.add_argument(
        "--nuclei",
        default="",
        metavar="VALUES",
        help="the values, colours or classes of nuclei, with commas between them, or 'ids' if "
        "each nucleus has a value of its own",
    )
    group.add_argument("--background", default="", metavar="VALUE", help="value of the background")
    group.add_argument(
        "--threshold", type=float, help="least brightness of a nucleus in grey or lossy masks"
    )
    group.add_argument(
        "--white", type=float, help="value that becomes 255 in images of more than 8 bits"
    )
    group.add_argument("--image-page", default="", help="page of an image's file, from 0, or max")
    group.add_argument("--mask-page", default="", help="page of a mask's file, from 0, or union")
    group.add_argument("--max-megapixels", type=float, default=1000.0, help="largest image to read")


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line and import, or look."""
    given = list(sys.argv[1:] if words is None else words)
    if "--look" in given:
        _look(given)
        return
    values = vars(_parser().parse_args(given))
    rules = {name: values.pop(name) for name in Rules.__dataclass_fields__}
    chosen = tuple(word.strip() for word in rules.pop("nuclei").split(",") if word.strip())
    with stage("import_patches"):
        import_patches(Import(**values, rules=Rules(nuclei=chosen, **rules)))


def _look(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.import_patches")
    parser.add_argument("--look", type=Path, required=True, help="tell which layout a folder has")
    source = parser.parse_args(words).look
    with stage("import_patches"):
        found = look(source)
        if (source / MANIFEST).exists():
            print(f"{MANIFEST}: lists patches that training reads as they are; import nothing")
        elif not found:
            raise SourceError(f"{source}: has none of the layouts {', '.join(LAYOUTS)}")
        for name, why in found.items():
            print(f"{name}: {why}")


if __name__ == "__main__":
    main()
