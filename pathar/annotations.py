"""The formats of annotation tools: how pairs and their instances become files in a folder.

The same pairs give the same bytes. Images keep theirs, and so the record of where they came from.
Knows nothing of where pairs lie.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathar.outlines import instances_in, polygons, run_lengths

COCO = "annotations.json"
NUCLEUS = 1
"""The id of COCO's only category."""
QUPATH = {"name": "Nucleus", "color": [0, 200, 0]}
"""The class of QuPath's annotations. QuPath 0.5 reads none without a color."""


@dataclass(frozen=True)
class AnnotatedPair:
    """An image and its instances. `instances` is the PNG of `ids` [H, W], 16 bits, 0 = ground."""

    name: str
    image: bytes
    instances: bytes
    ids: NDArray[np.uint16]


Writer = Callable[[Iterable[AnnotatedPair], Path], None]
"""Writes pairs to an empty folder."""


def _write_coco(pairs: Iterable[AnnotatedPair], out: Path) -> None:
    """`NAME.png`, and one JSON of all (https://cocodataset.org/#format-data). Instances are run
    lengths, as polygons of COCO have no holes. Annotations go to the file as they come.
    """
    category = {"id": NUCLEUS, "name": "nucleus", "supercategory": "nucleus"}
    head = {"info": {"description": "synthetic, not for diagnosis"}, "licenses": []}
    images, count = [], 0
    with (out / COCO).open("w") as file:
        file.write(f'{_json({**head, "categories": [category]})[:-1]},"annotations":[')
        for number, pair in enumerate(pairs, start=1):
            (out / f"{pair.name}.png").write_bytes(pair.image)
            height, width = pair.ids.shape
            size = {"width": width, "height": height}
            images.append({"id": number, "file_name": f"{pair.name}.png", **size})
            for each in _coco_annotations(pair.ids, number):
                file.write(f"{',' if count else ''}\n{_json({'id': count + 1, **each})}")
                count += 1
        file.write(f'],"images":{_json(images)}}}\n')


def _coco_annotations(ids: NDArray[np.uint16], image: int) -> Iterable[dict[str, Any]]:
    for instance in instances_in(ids):
        yield {
            "image_id": image,
            "category_id": NUCLEUS,
            "iscrowd": 0,
            "area": instance.area,
            "bbox": list(instance.box),
            "segmentation": {
                "size": list(ids.shape),
                "counts": run_lengths(instance, *ids.shape),
            },
        }


def _write_geojson(pairs: Iterable[AnnotatedPair], out: Path) -> None:
    """`NAME.png` and `NAME.geojson`: QuPath's annotations, in pixels from the upper left corner
    (https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html). The name of
    each is its id.
    """
    for pair in pairs:
        (out / f"{pair.name}.png").write_bytes(pair.image)
        features = [
            {
                "type": "Feature",
                "geometry": _geometry(
                    [[[*ring, ring[0]] for ring in rings] for rings in polygons(instance)]
                ),
                "properties": {
                    "objectType": "annotation",
                    "name": str(instance.number),
                    "classification": QUPATH,
                },
            }
            for instance in instances_in(pair.ids)
        ]
        text = _json({"type": "FeatureCollection", "features": features})
        (out / f"{pair.name}.geojson").write_text(f"{text}\n")


def _geometry(found: list[Any]) -> dict[str, Any]:
    if len(found) == 1:
        return {"type": "Polygon", "coordinates": found[0]}
    return {"type": "MultiPolygon", "coordinates": found}


def _write_cellpose(pairs: Iterable[AnnotatedPair], out: Path) -> None:
    """`NAME_img.png` and `NAME_masks.png`, the ids (https://cellpose.readthedocs.io/en/latest/
    train.html).
    """
    for pair in pairs:
        (out / f"{pair.name}_img.png").write_bytes(pair.image)
        (out / f"{pair.name}_masks.png").write_bytes(pair.instances)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


WRITERS: Mapping[str, Writer] = {
    "coco": _write_coco,
    "geojson": _write_geojson,
    "cellpose": _write_cellpose,
}
