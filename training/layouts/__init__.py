"""The layouts that annotated patches come in: which originals a data set's folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from training.layouts import (
    apart,
    arrays,
    coco,
    geojson,
    imagescope,
    labelme,
    matlab,
    painted,
    tables,
    yolo,
)
from training.layouts.original import Layout, Listing
from training.pictures import Rules
from training.rasters import SourceError

FAMILIES = (apart, arrays, coco, geojson, imagescope, labelme, matlab, painted, tables, yolo)
LAYOUTS: Mapping[str, Layout] = dict(
    sorted(layout for family in FAMILIES for layout in family.LAYOUTS.items())
)


def list_originals(layout: str, source: Path, rules: Rules) -> Listing:
    """The originals of `source`, laid out as one of LAYOUTS, in a fixed order. SourceError."""
    if not source.is_dir():
        raise SourceError(f"{source}: is not a folder")
    listing = LAYOUTS[layout].listed(source, rules)
    if not listing.originals:
        raise SourceError(f"{source}: has the folders of the layout {layout}, but no images")
    return listing


def look(source: Path) -> dict[str, str]:
    """The layouts that a folder looks like, each with what was found of it."""
    if not source.is_dir():
        raise SourceError(f"{source}: is not a folder")
    found = {name: layout.look(source) for name, layout in LAYOUTS.items()}
    return {name: why for name, why in found.items() if why}
