"""MoNuSeg and MoNuSAC: regions of ImageScope's XML."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.layouts.outlined import (
    BOXES,
    SHAPE,
    Point,
    assert_pair,
    layouts_of,
    listed,
    pairs,
    pixels,
    refusal,
    save_image,
    truth,
)
from training.layouts import list_originals
from training.pictures import UNRULED

Class = tuple[str, list[list[Point]]]
BREAST = "TCGA-A7-A13E-01Z-00-DX1"
UNKNOWN = "TCGA-XX-0001-01Z-00-DX1"
NUCLEI: list[Class] = [("Description", [pixels(box) for box in BOXES])]


def annotation(classes: list[Class], head: str = "", scale: str = "0.25") -> str:
    """An ImageScope file with one Annotation a class."""
    parts = []
    for number, (name, regions) in enumerate(classes, start=1):
        drawn = "".join(
            f'<Region Id="{i}" NegativeROA="0"><Attributes/><Vertices>'
            + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in region)
            + "</Vertices></Region>"
            for i, region in enumerate(regions, start=1)
        )
        parts.append(
            f'<Annotation Id="{number}" Name="" LineColor="65280"><Attributes>'
            f'<Attribute Name="{name}" Id="0" Value=""/></Attributes><Regions>'
            "<RegionAttributeHeaders><AttributeHeader Id='9999' Name='Region'/>"
            f"</RegionAttributeHeaders>{drawn}</Regions><Plots/></Annotation>"
        )
    return (
        f'<?xml version="1.0"?>{head}<Annotations MicronsPerPixel="{scale}">'
        f"{''.join(parts)}</Annotations>"
    )


def write_monuseg(source: Path, name: str, text: str, where: str = "train") -> np.ndarray:
    """A tissue image and its annotation as in the training or the test archive; the image."""
    folders = ("Tissue Images", "Annotations") if where == "train" else ("", "")
    image = save_image(source / folders[0] / f"{name}.tif")
    (source / folders[1]).mkdir(parents=True, exist_ok=True)
    (source / folders[1] / f"{name}.xml").write_text(text)
    return image


# -- MoNuSeg ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["train", "test"])
def test_monuseg_regions_become_ids_and_barcodes_organs(where: str, tmp_path: Path) -> None:
    for name in (BREAST, UNKNOWN):
        image = write_monuseg(tmp_path, name, annotation(NUCLEI), where)
        if where == "train":  # a preview that somebody left beside the XML is no tissue image
            save_image(tmp_path / f"Annotations/{name}.png", 1)
    found = pairs("monuseg", tmp_path)
    assert list(found) == [BREAST, UNKNOWN]
    for pair in found.values():
        assert_pair(pair, image, truth())
        assert pair.mpp == 0.25
    originals = listed("monuseg", tmp_path)
    assert [original.organ for original in originals] == ["breast", ""]
    assert [original.group for original in originals] == ["TCGA-A7-A13E", "TCGA-XX-0001"]
    assert layouts_of(tmp_path) == {"monuseg"}


def test_regions_of_two_points_are_counted_and_what_lies_outside_is_cut_off(tmp_path: Path) -> None:
    regions = [pixels((-20, 70, 31, 400)), [(5.0, 5.0), (9.0, 9.0)], pixels((900, 0, 950, 20))]
    image = write_monuseg(tmp_path, "one", annotation([("", regions)], scale=""))
    pair = pairs("monuseg", tmp_path)["one"]
    assert_pair(pair, image, truth(((0, 70, 31, 80),)))
    assert pair.left_out == {"annotations without a pixel": 2}
    assert pair.mpp == 0


BOMB = (
    '<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
)
FILE_READER = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
GOOD = annotation(NUCLEI)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (annotation(NUCLEI, BOMB), "declares a document type"),
        (annotation(NUCLEI, FILE_READER), "declares a document type"),
        (annotation(NUCLEI, '<!DOCTYPE a SYSTEM "http://x/y.dtd">'), "declares a document type"),
        (GOOD[:-20], "is not XML"),
        ("", "is not XML"),
        ("<a>" * 100_000, "is not XML"),
        ("<Annotations/>", "holds no Region"),
        (GOOD.replace('X="5"', 'X="five"'), "X='five', expected a number"),
        (GOOD.replace('X="5"', 'X="nan"'), "X='nan', expected a number"),
        (GOOD.replace('X="5"', 'X="1e300"'), "X='1e300', expected a number"),
        (GOOD.replace('X="5" ', ""), "X=None, expected a number"),
        (GOOD.replace('NegativeROA="0"', 'NegativeROA="1"'), "has a negative Region"),
        (annotation(NUCLEI, scale="-1"), "MicronsPerPixel='-1', expected a number"),
        (annotation(NUCLEI, scale="inf"), "MicronsPerPixel='inf', expected a number"),
    ],
)
def test_an_annotation_that_cannot_be_trusted_or_read_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    write_monuseg(tmp_path, "one", text)
    write_monuseg(tmp_path, "two", GOOD)
    refused = refusal("monuseg", tmp_path)
    assert refused.startswith(f"{tmp_path}/Annotations/one.xml: ")
    assert message in refused
    assert listed("monuseg", tmp_path)[1].read()


def test_images_and_annotations_without_each_other_are_named(tmp_path: Path) -> None:
    write_monuseg(tmp_path, "one", GOOD)
    alone = save_image(tmp_path / "Tissue Images/two.tif")
    (tmp_path / "Annotations/three.xml").write_text(GOOD)
    assert alone.size
    listing = list_originals("monuseg", tmp_path, UNRULED)
    assert refusal("monuseg", tmp_path).endswith("two.tif: has no annotation *.xml with its name")
    assert {path.name for path in listing.unused} == {"three.xml"}
    (tmp_path / "more").mkdir()
    (tmp_path / "more/one.xml").write_text(GOOD)
    assert "one.tif: has two annotations: " in refusal("monuseg", tmp_path)


def test_monuseg_has_no_classes_to_choose(tmp_path: Path) -> None:
    write_monuseg(tmp_path, "one", GOOD)
    assert refusal("monuseg", tmp_path, "Epithelial").startswith("--nuclei: got Epithelial")


# -- MoNuSAC ---------------------------------------------------------------------------------------

CELLS: list[Class] = [
    ("Epithelial", [pixels(BOXES[0])]),
    ("Lymphocyte", [pixels(BOXES[1])]),
    ("Neutrophil", [pixels(BOXES[2])]),
]
AMBIGUOUS: Class = ("Ambiguous", [pixels((30, 10, 50, 30))])


def write_monusac(source: Path, text: str, *endings: str, name: str = "_1") -> np.ndarray:
    """An image of a patient, as .svs and .tif, and its annotation; the .tif's pixels."""
    folder = source / "MoNuSAC_images_and_annotations" / BREAST
    image = save_image(folder / f"{BREAST}{name}.tif")
    for ending in endings:
        save_image(folder / f"{BREAST}{name}{ending}", 1)
    (folder / f"{BREAST}{name}.xml").write_text(text)
    return image


def test_monusac_classes_are_all_nuclei_and_images_are_read_once(tmp_path: Path) -> None:
    image = write_monusac(tmp_path, annotation(CELLS), ".svs")
    pair = pairs("monusac", tmp_path)[f"{BREAST}_1"]
    assert_pair(pair, image, truth())
    assert pair.mpp == 0.25
    assert pair.doubtful is None
    listing = list_originals("monusac", tmp_path, UNRULED)
    assert [original.organ for original in listing.originals] == ["breast"]
    assert [original.group for original in listing.originals] == ["TCGA-A7-A13E"]
    assert {path.suffix: why for path, why in listing.unused.items()} == {
        ".svs": "another copy of an image that is used"
    }
    assert layouts_of(tmp_path) == {"monusac"}


def test_an_image_that_comes_as_svs_alone_is_read(tmp_path: Path) -> None:
    write_monusac(tmp_path, annotation(CELLS), ".svs")
    next(tmp_path.rglob("*.tif")).unlink()
    assert_pair(
        pairs("monusac", tmp_path)[f"{BREAST}_1"], save_image(tmp_path / "x.png", 1), truth()
    )


def test_ambiguous_regions_are_doubtful_and_not_painted(tmp_path: Path) -> None:
    image = write_monusac(tmp_path, annotation([*CELLS, AMBIGUOUS]))
    pair = pairs("monusac", tmp_path)[f"{BREAST}_1"]
    assert_pair(pair, image, truth())
    expected = np.zeros(SHAPE, dtype=bool)
    expected[30:50, 10:30] = True
    assert pair.doubtful is not None
    assert np.array_equal(pair.doubtful, expected)
    assert pair.left_out == {"ambiguous regions": 1}


def test_monusac_classes_can_be_chosen_and_others_are_not_guessed(tmp_path: Path) -> None:
    write_monusac(tmp_path, annotation([*CELLS, AMBIGUOUS]))
    pair = pairs("monusac", tmp_path, "Lymphocyte")[f"{BREAST}_1"]
    assert isinstance(pair.nuclei, np.ndarray)
    assert np.array_equal(pair.nuclei > 0, truth() == 2)
    assert pair.left_out["annotations of class Epithelial"] == 1
    write_monusac(tmp_path, annotation([*CELLS, ("Gland", [pixels(BOXES[0])])]), name="_2")
    refused = refusal("monusac", tmp_path)
    assert "annotations of 4 classes" in refused
    assert "Gland (1); --nuclei says which" in refused
    assert "got Ambiguous, but the annotations have classes" in refusal(
        "monusac", tmp_path, "Ambiguous"
    )
