"""Importing patches: each layout is drawn here and compared with what `read_dataset` reads."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.request import Label
from training.annotations import SourceError
from training.data import Dataset, read_dataset
from training.import_patches import Import, ImportRefused, import_patches, tile_places

SIZE = 64
LICENCE = "CC-BY-4.0"
PAPER, INK = (230, 190, 210), (90, 30, 120)


def patch(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose pixels all differ from their neighbours, and labelled nuclei: 0 is none.

    The red channel of a nucleus is below 128 and that of the ground above, so that the image
    tells where the mask must be.
    """
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), dtype=np.uint16)
    for number in range(1, 12):
        row, column = random.integers(0, (height, width))
        labels[(y - row) ** 2 + (x - column) ** 2 < random.integers(3, 9) ** 2] = number * 300
    image = np.where(labels[..., None] > 0, INK, PAPER) + random.integers(-20, 20, (*y.shape, 3))
    return image.clip(0, 255).astype(np.uint8), labels


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def bring_in(
    layout: str, source: Path, out: Path, organ: str = "", group_by: str = "", size: int = SIZE
) -> Dataset:
    import_patches(Import(layout, source, out, "histology", organ, LICENCE, size, group_by))
    return read_dataset(out, [LICENCE], size)


def of_group(dataset: Dataset, group: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The tiles of one original, in the manifest's order."""
    return [
        (image.numpy(), mask.numpy())
        for image, mask, sample in zip(dataset.images, dataset.masks, dataset.samples, strict=True)
        if sample.group == group
    ]


def assert_cut_from(
    tiles: list[tuple[np.ndarray, np.ndarray]], image: np.ndarray, labels: np.ndarray
) -> None:
    """The tiles are what stands in the original at their places, and cover all of it."""
    places = tile_places(labels.shape, SIZE)
    assert len(tiles) == len(places)
    seen = np.zeros(labels.shape, dtype=bool)
    for (tile, mask), (top, left) in zip(tiles, places, strict=True):
        there = np.s_[top : top + SIZE, left : left + SIZE]
        assert np.array_equal(tile, image[there])
        assert np.array_equal(mask, labels[there] > 0)
        assert np.array_equal(mask, tile[..., 0] < 128)
        seen[there] = True
    assert seen.all()


# -- how an original is cut -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "starts"), [(256, [0]), (512, [0, 256]), (257, [0, 1]), (1000, [0, 248, 496, 744])]
)
def test_tiles_cover_an_original_and_overlap_where_they_must(
    length: int, starts: list[int]
) -> None:
    assert tile_places((256, length), 256) == [(0, start) for start in starts]
    assert tile_places((length, 256), 256) == [(start, 0) for start in starts]


# -- image + mask folders -------------------------------------------------------------------------

MASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "binary.png": lambda labels: labels > 0,
    "ones.png": lambda labels: (labels > 0).astype(np.uint8),
    "white.bmp": lambda labels: (labels > 0).astype(np.uint8) * 255,
    "instances.tif": lambda labels: labels,
    "wide.tif": lambda labels: labels.astype(np.int32) * 1000,
    "coloured.png": lambda labels: np.stack([labels // 300, labels * 0, labels * 0], 2).astype(
        "u1"
    ),
    "opaque.png": lambda labels: np.stack(
        [*[(labels > 0) * 255] * 3, np.full(labels.shape, 255)], 2
    ).astype(np.uint8),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_every_kind_line_up_with_their_images(name: str, tmp_path: Path) -> None:
    image, labels = patch(1, 100, 150)
    save(tmp_path / "source/images/slide one.tif", image)
    mask = Path(name)
    save(tmp_path / f"source/masks/slide one{mask.suffix}", MASKS[name](labels))
    dataset = bring_in("folders", tmp_path / "source", tmp_path / "out", organ="Blood")
    assert_cut_from(of_group(dataset, "slide one"), image, labels)
    assert dataset.labels == (Label("histology", "modality"), Label("blood", "organ"))
    assert {sample.licence for sample in dataset.samples} == {LICENCE}


def test_masks_with_a_palette_and_with_jpegs_noise_are_read_as_meant(tmp_path: Path) -> None:
    for name in ("palette", "noise"):
        image, labels = patch(2, SIZE, SIZE)
        save(tmp_path / f"source/images/{name}.png", image)
        mask = Image.fromarray((labels // 300).astype(np.uint8))
        path = tmp_path / f"source/masks/{name}"
        path.parent.mkdir(exist_ok=True)
        if name == "palette":
            mask.putpalette([0, 0, 0, *range(3, 36)])
            mask.save(path.with_suffix(".png"))
        else:
            Image.fromarray((labels > 0).astype(np.uint8) * 255).save(path.with_suffix(".jpg"))
    dataset = bring_in("folders", tmp_path / "source", tmp_path / "out")
    [(_, palette)] = of_group(dataset, "palette")
    [(_, noise)] = of_group(dataset, "noise")
    assert np.array_equal(palette, labels > 0)
    assert (noise != (labels > 0)).mean() < 0.02


def test_a_palette_says_what_is_black_whatever_its_indices(tmp_path: Path) -> None:
    image, labels = patch(2, SIZE, SIZE)
    save(tmp_path / "source/images/1.png", image)
    mask = Image.fromarray((labels == 0).astype(np.uint8))
    mask.putpalette([255, 255, 255, 0, 0, 0])
    (tmp_path / "source/masks").mkdir()
    mask.save(tmp_path / "source/masks/1.png", transparency=bytes([255, 100]))
    dataset = bring_in("folders", tmp_path / "source", tmp_path / "out")
    assert_cut_from(of_group(dataset, "1"), image, labels)

    mask.putpalette([200, 200, 200, 255, 0, 0])
    mask.save(tmp_path / "source/masks/1.png")
    with pytest.raises(SourceError, match=r"1\.png: its palette shows no black, expected black"):
        bring_in("folders", tmp_path / "source", tmp_path / "again")


def test_folders_beneath_the_source_keep_their_names_apart(tmp_path: Path) -> None:
    pictures = {}
    for seed, name in enumerate(("a", "b")):
        pictures[name] = image, labels = patch(seed, SIZE, SIZE)
        save(tmp_path / f"source/{name}/images/1.png", image)
        save(tmp_path / f"source/{name}/masks/1.png", (labels > 0).astype(np.uint8) * 255)
    dataset = bring_in("folders", tmp_path / "source", tmp_path / "out")
    for name, (image, labels) in pictures.items():
        assert_cut_from(of_group(dataset, f"{name}/1"), image, labels)


# -- which originals belong together ---------------------------------------------------------------


def write_slides(source: Path, *names: str) -> None:
    """Originals of one tile each, by their names without the folder images."""
    for seed, name in enumerate(names):
        image, labels = patch(seed, SIZE, SIZE)
        folder, _, stem = name.rpartition("/")
        save(source / folder / f"images/{stem}.png", image)
        save(source / folder / f"masks/{stem}.png", (labels > 0).astype(np.uint8) * 255)


SLIDES = ("slide-7/p1_0", "slide-7/p1_1", "slide-8/p1_2", "slide-8/p2_3")


@pytest.mark.parametrize(
    ("group_by", "groups"),
    [
        ("(.*)/", ["slide-7", "slide-7", "slide-8", "slide-8"]),
        (r"p\d+", ["p1", "p1", "p1", "p2"]),
        ("", list(SLIDES)),
    ],
)
def test_a_pattern_finds_the_group_in_an_originals_name(
    group_by: str, groups: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path / "source", *SLIDES)
    dataset = bring_in("folders", tmp_path / "source", tmp_path / "out", group_by=group_by)
    assert [sample.group for sample in dataset.samples] == groups
    sides = [{groups[i] for i in part.tolist()} for part in (dataset.training, dataset.validation)]
    assert not sides[0] & sides[1]
    said = capsys.readouterr().out
    assert f"{len(set(groups))} groups of 4 patches" in said
    assert ("slide-7 holds 2 of them" in said) == (not group_by)


def test_an_import_given_again_with_a_pattern_keeps_its_tiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path / "source", *SLIDES)
    bring_in("folders", tmp_path / "source", tmp_path / "out")
    again = bring_in("folders", tmp_path / "source", tmp_path / "out", group_by="(.*)/")
    assert {sample.group for sample in again.samples} == {"slide-7", "slide-8"}
    assert "4 tiles, 4 of them kept" in capsys.readouterr().out


def test_an_original_that_has_changed_is_cut_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path / "source", *SLIDES)
    bring_in("folders", tmp_path / "source", tmp_path / "out")
    mask = next((tmp_path / "source").rglob("masks/*"))
    corrected = 255 - np.array(Image.open(mask).convert("L"))
    save(mask, corrected)
    again = bring_in("folders", tmp_path / "source", tmp_path / "out")
    assert "4 tiles, 3 of them kept" in capsys.readouterr().out
    whites = [int(found.sum()) for found in again.masks]
    assert int((corrected > 0).sum()) in whites


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("(.*)/p1", r"slide-8/p2_3: --group-by '\(\.\*\)/p1' finds nothing in this name"),
        ("(x)?slide", r"slide-7/p1_0: --group-by .* finds nothing"),
        ("x*", r"slide-7/p1_0: --group-by .* finds nothing"),
        ("(.*", r"--group-by: got '\(\.\*', expected a regular expression \("),
    ],
)
def test_a_pattern_that_finds_no_group_is_refused_before_anything_is_written(
    group_by: str, message: str, tmp_path: Path
) -> None:
    write_slides(tmp_path / "source", *SLIDES)
    with pytest.raises(ImportRefused, match=message):
        bring_in("folders", tmp_path / "source", tmp_path / "out", group_by=group_by)
    assert not (tmp_path / "out").exists()


def test_large_originals_and_one_in_each_folder_are_not_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path / "apart", "a/1", "b/1")
    bring_in("folders", tmp_path / "apart", tmp_path / "of apart")
    for name in ("1", "2"):
        image, labels = patch(0, 2 * SIZE, SIZE)
        save(tmp_path / f"large/images/{name}.png", image)
        save(tmp_path / f"large/masks/{name}.png", (labels > 0).astype(np.uint8))
    bring_in("folders", tmp_path / "large", tmp_path / "of large")
    assert "warning" not in capsys.readouterr().out


def test_a_modality_with_the_name_of_an_organ_is_refused(tmp_path: Path) -> None:
    write_slides(tmp_path / "source", "1")
    with pytest.raises(ImportRefused, match="--modality: histology is an organ's name too"):
        bring_in("folders", tmp_path / "source", tmp_path / "out", organ="Histology")
    assert not (tmp_path / "out").exists()


# -- PanNuke --------------------------------------------------------------------------------------


def write_fold(folder: Path, seed: int, organs: np.ndarray, where: str) -> list[np.ndarray]:
    """A fold as it is published, or with all files in one folder; the labels of its patches."""
    pairs = [patch(seed + index, SIZE, SIZE) for index in range(len(organs))]
    masks = np.zeros((len(organs), SIZE, SIZE, 6))
    for index, (_, labels) in enumerate(pairs):
        for channel in range(5):  # a kind of nucleus each; the sixth is the ground
            masks[index, ..., channel] = np.where(labels // 300 % 5 == channel, labels, 0)
        masks[index, ..., 5] = labels == 0
    images, others = folder, folder
    if where == "published":
        images, others = folder / "images/fold1", folder / "masks/fold1"
    for place in (images, others):
        place.mkdir(parents=True, exist_ok=True)
    np.save(images / "images.npy", np.stack([image for image, _ in pairs]).astype(np.float64))
    np.save(images / "types.npy", organs)
    np.save(others / "masks.npy", masks)
    return [labels for _, labels in pairs]


@pytest.mark.parametrize("where", ["published", "flat"])
def test_pannuke_folds_come_with_their_organs(where: str, tmp_path: Path) -> None:
    organs = np.array(["Breast", "Adrenal_gland", "Bile-duct"])
    for seed, fold in ((0, "Fold 1"), (50, "Fold 2")):
        write_fold(tmp_path / "source" / fold, seed, organs, where)
    dataset = bring_in("pannuke", tmp_path / "source", tmp_path / "out")
    assert len(dataset.samples) == 6
    assert [label.name for label in dataset.labels[1:]] == ["adrenal-gland", "bile-duct", "breast"]
    groups = sorted(sample.group for sample in dataset.samples)
    assert len(set(groups)) == 6
    for index, group in enumerate(groups):
        image, labels = patch((index // 3) * 50 + index % 3, SIZE, SIZE)
        assert_cut_from(of_group(dataset, group), image, labels)


def test_organs_that_only_pickle_could_read_are_refused_with_a_way_out(tmp_path: Path) -> None:
    write_fold(tmp_path / "source", 0, np.array(["Breast"], dtype=object), "flat")
    with pytest.raises(SourceError, match=r"types\.npy: .*pickle.*astype\(str\)"):
        bring_in("pannuke", tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (
            "images.npy",
            np.zeros((2, SIZE, SIZE)),
            r"has shape \[2, 64, 64\], expected \[M, H, W, 3\]",
        ),
        ("masks.npy", np.zeros((2, SIZE, SIZE, 5)), r"expected \[M, H, W, 6\]"),
        ("masks.npy", np.zeros((1, SIZE, SIZE, 6)), r"1 of 64 x 64, .*images\.npy holds 2"),
        ("types.npy", np.array(["Lung"]), r"has shape \[1\], expected \[2\]"),
        ("types.npy", np.array([1, 2]), "expected names of organs"),
        ("images.npy", np.full((2, SIZE, SIZE, 3), 300.0), "from 300 to 300, expected 0 to 255"),
        ("images.npy", np.full((2, SIZE, SIZE, 3), 0.5), "from 0.5 to 0.5, expected 0 to 255"),
        ("images.npy", np.full((2, SIZE, SIZE, 3), np.nan), "from nan to nan, expected 0 to 255"),
    ],
)
def test_a_fold_that_does_not_fit_together_is_named(
    name: str, array: np.ndarray, message: str, tmp_path: Path
) -> None:
    write_fold(tmp_path / "source", 0, np.array(["Lung", "Skin"]), "flat")
    np.save(tmp_path / "source" / name, array)
    with pytest.raises(SourceError, match=message):
        bring_in("pannuke", tmp_path / "source", tmp_path / "out")


# -- NuInsSeg -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "suffix"),
    [("mask binary", ".png"), ("label masks modify", ".tif"), ("label masks", ".tif")],
)
def test_nuinsseg_organ_folders(folder: str, suffix: str, tmp_path: Path) -> None:
    pictures = {}
    for seed, organ in enumerate(("human bladder", "mouse fat (white and brown)")):
        stem = organ.replace(" ", "_") + "_01"
        pictures[stem] = image, labels = patch(seed, 128, 128)
        home = tmp_path / "source/NuInsSeg" / organ
        save(home / "tissue images" / f"{stem}.png", image)
        written = labels if suffix == ".tif" else (labels > 0).astype(np.uint8)
        save(home / folder / f"{stem}{suffix}", written)
        save(home / "overlay" / f"{stem}.png", image)
    dataset = bring_in("nuinsseg", tmp_path / "source", tmp_path / "out")
    assert [label.name for label in dataset.labels] == [
        "histology",
        "bladder",
        "mouse-fat-white-and-brown",
    ]
    for stem, (image, labels) in pictures.items():
        assert_cut_from(of_group(dataset, stem), image, labels)


# -- MoNuSeg --------------------------------------------------------------------------------------

SQUARES = [(3, 5, 20, 30), (70, 40, 99, 60), (10, 110, 40, 140)]
"""First row, first column, last row, last column of each nucleus."""


def annotation(squares: list[tuple[int, int, int, int]], head: str = "") -> str:
    regions = "".join(
        f'<Region Id="{number}" NegativeROA="0"><Attributes/><Vertices>'
        + "".join(
            f'<Vertex X="{column}" Y="{row}" Z="0"/>'
            for row, column in ((top, left), (top, right), (bottom, right), (bottom, left))
        )
        + "</Vertices></Region>"
        for number, (top, left, bottom, right) in enumerate(squares)
    )
    return (
        f'<?xml version="1.0"?>{head}<Annotations MicronsPerPixel="0.25"><Annotation Id="1">'
        f"<Attributes/><Regions><RegionAttributeHeaders/>{regions}</Regions></Annotation>"
        "</Annotations>"
    )


def write_monuseg(source: Path, name: str, text: str, where: str = "train") -> np.ndarray:
    """A tissue image and its annotation as in the training or the test archive; the mask."""
    labels = np.zeros((150, 150), dtype=np.uint16)
    for number, (top, left, bottom, right) in enumerate(SQUARES, start=1):
        labels[top : bottom + 1, left : right + 1] = number
    image = np.where(labels[..., None] > 0, INK, PAPER).astype(np.uint8)
    image[..., 1] += np.random.default_rng(0).integers(0, 60, labels.shape).astype(np.uint8)
    folders = ("Tissue Images", "Annotations") if where == "train" else ("", "")
    save(source / folders[0] / f"{name}.tif", image)
    (source / folders[1]).mkdir(parents=True, exist_ok=True)
    (source / folders[1] / f"{name}.xml").write_text(text)
    return image


@pytest.mark.parametrize("where", ["train", "test"])
def test_monuseg_polygons_become_masks_and_barcodes_organs(where: str, tmp_path: Path) -> None:
    degenerate = annotation(SQUARES).replace(
        "</Regions>",
        '<Region Id="9"><Vertices><Vertex X="80" Y="80"/><Vertex X="90" Y="90"/></Vertices>'
        "</Region></Regions>",
    )
    names = ["TCGA-A7-A13E-01Z-00-DX1", "TCGA-XX-0001-01Z-00-DX1"]
    for name in names:
        image = write_monuseg(tmp_path / "source", name, degenerate, where)
        if where == "train":  # a preview that somebody left beside the XML is no tissue image
            save(tmp_path / f"source/Annotations/{name}.png", image // 2)
    dataset = bring_in("monuseg", tmp_path / "source", tmp_path / "out")
    labels = (image[..., 0] < 128).astype(np.uint16)
    for name in names:
        assert_cut_from(of_group(dataset, name), image, labels)
    assert dataset.labels == (Label("histology", "modality"), Label("breast", "organ"))
    assert {len(s.labels) for s in dataset.samples if s.group == names[1]} == {1}


def test_an_organ_that_the_user_states_holds_where_the_layout_knows_none(tmp_path: Path) -> None:
    for name in ("TCGA-A7-A13E-01Z-00-DX1", "TCGA-XX-0001-01Z-00-DX1"):
        write_monuseg(tmp_path / "source", name, annotation(SQUARES))
    dataset = bring_in("monuseg", tmp_path / "source", tmp_path / "out", organ="thymus")
    assert [label.name for label in dataset.labels] == ["histology", "breast", "thymus"]


def test_an_outline_that_leaves_the_image_is_cut_at_its_edge(tmp_path: Path) -> None:
    write_monuseg(tmp_path / "source", "one", annotation([(-20, 140, 30, 400)]))
    dataset = bring_in("monuseg", tmp_path / "source", tmp_path / "out")
    masks = [mask for _, mask in of_group(dataset, "one")]
    places = tile_places((150, 150), SIZE)
    assert masks[places.index((0, 86))][:31, 54:].all()
    assert sum(mask.sum() for mask in masks) == 31 * 10


BOMB = (
    '<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
)
FILE_READER = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (annotation(SQUARES, BOMB), "declares a document type"),
        (annotation(SQUARES, FILE_READER), "declares a document type"),
        (annotation(SQUARES, '<!DOCTYPE Annotations SYSTEM "http://x/y.dtd">'), "document type"),
        (annotation(SQUARES)[:-20], "is no XML"),
        ("", "is no XML"),
        ("<Annotations/>", "holds no Region"),
        (annotation(SQUARES).replace('X="5"', 'X="five"'), "X='five', expected a number"),
        (annotation(SQUARES).replace('X="5"', 'X="nan"'), "X='nan', expected a number"),
        (annotation(SQUARES).replace('X="5" ', ""), "X=None, expected a number"),
    ],
)
def test_an_annotation_that_cannot_be_trusted_or_read_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    write_monuseg(tmp_path / "source", "one", text)
    with pytest.raises(SourceError, match=rf"one\.xml: .*{message}"):
        bring_in("monuseg", tmp_path / "source", tmp_path / "out")


# -- what is missing, and what is interrupted -----------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("folders", "images with a folder masks beside it"),
        ("pannuke", r"images\.npy"),
        ("nuinsseg", "tissue images"),
        ("monuseg", "Tissue Images"),
    ],
)
def test_a_source_of_another_layout_is_told_what_was_looked_for(
    layout: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(SourceError, match=expected):
        bring_in(layout, tmp_path / "source", tmp_path / "out")
    with pytest.raises(SourceError, match="is no folder"):
        bring_in(layout, tmp_path / "elsewhere", tmp_path / "out")


def test_a_missing_mask_is_named_before_anything_is_written(tmp_path: Path) -> None:
    image, labels = patch(0, SIZE, SIZE)
    for name in ("1", "2"):
        save(tmp_path / f"folders/images/{name}.png", image)
        save(tmp_path / f"nuinsseg/human liver/tissue images/{name}.png", image)
    save(tmp_path / "folders/masks/1.png", (labels > 0).astype(np.uint8))
    save(tmp_path / "nuinsseg/human liver/mask binary/1.png", (labels > 0).astype(np.uint8))
    write_monuseg(tmp_path / "monuseg", "1", annotation(SQUARES))
    save(tmp_path / "monuseg/Tissue Images/2.tif", image)
    write_fold(tmp_path / "pannuke", 0, np.array(["Lung"]), "flat")
    (tmp_path / "pannuke/masks.npy").unlink()
    names = {"folders": "2.png", "nuinsseg": "2.png", "monuseg": "2.tif", "pannuke": "images.npy"}
    for layout, name in names.items():
        with pytest.raises(SourceError, match=rf"{name}: has no (mask|annotation)"):
            bring_in(layout, tmp_path / layout, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        ((SIZE, SIZE), (SIZE, SIZE + 1), r"masks/1\.png: is 65 x 64 pixels, its image is 64 x 64"),
        ((SIZE, 63), (SIZE, 63), "is 63 x 64 pixels, smaller than a tile of 64 x 64"),
    ],
)
def test_a_wrong_size_is_named(
    image: tuple[int, int], mask: tuple[int, int], message: str, tmp_path: Path
) -> None:
    save(tmp_path / "source/images/1.png", patch(0, *image)[0])
    save(tmp_path / "source/masks/1.png", np.zeros(mask, dtype=np.uint8))
    with pytest.raises(SourceError, match=message):
        bring_in("folders", tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((SIZE, SIZE), dtype=np.uint16), "mode I;16, expected 8 bits a channel"),
        (np.zeros((SIZE, SIZE), dtype=np.float32), "mode F, expected 8 bits a channel"),
    ],
)
def test_an_image_that_would_lose_its_depth_is_refused(
    pixels: np.ndarray, message: str, tmp_path: Path
) -> None:
    save(tmp_path / "source/images/1.tif", pixels)
    save(tmp_path / "source/masks/1.png", np.zeros((SIZE, SIZE), dtype=np.uint8))
    with pytest.raises(SourceError, match=message):
        bring_in("folders", tmp_path / "source", tmp_path / "out")


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    image, labels = patch(0, SIZE, SIZE)
    for place in ("images/1.png", "images/1.tif", "masks/1.png"):
        save(tmp_path / "source" / place, image if "images" in place else (labels > 0))
    with pytest.raises(SourceError, match="'1' and '1': these two originals"):
        bring_in("folders", tmp_path / "source", tmp_path / "out")


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "training.import_patches", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_an_import_that_broke_off_goes_on_and_keeps_what_it_has(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    pictures = {}
    for name in ("1", "2"):
        pictures[name] = image, labels = patch(int(name), 128, SIZE)
        save(source / f"images/{name}.png", image)
        save(source / f"masks/{name}.png", (labels > 0).astype(np.uint8))
    whole = (source / "images/2.png").read_bytes()
    (source / "images/2.png").write_bytes(whole[: len(whole) // 2])
    words = ("folders", source, "--out", out, "--size", SIZE)
    words = (*words, "--licence", LICENCE, "--modality", "histology")

    broken = run(*words)
    assert (broken.returncode, len(broken.stderr.splitlines())) == (1, 1), broken.stderr
    assert "training.import_patches: " in broken.stderr
    assert "2.png: cannot be read" in broken.stderr
    assert not (out / "manifest.csv").exists(), "half an import must not look like a whole one"
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert len(kept) == 4

    (source / "images/2.png").write_bytes(whole)
    (next(iter(kept)).parent / "1_0000_0000.partial").write_bytes(b"half a file")
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert "2 originals, 4 tiles, 2 of them kept" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    dataset = read_dataset(out, [LICENCE], SIZE)
    for name, (image, labels) in pictures.items():
        assert_cut_from(of_group(dataset, name), image, labels)
    with (out / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "mask", "modality", "organ", "group", "licence"]
    assert not list(out.rglob("*.partial"))

    other = run(*words[:4], "--size", 32, *words[6:])
    assert other.returncode == 1
    assert "holds an import of" in other.stderr
    assert len(list(out.rglob("*.png"))) == 8


def test_a_command_without_a_licence_is_no_command(tmp_path: Path) -> None:
    done = run("folders", tmp_path, "--out", tmp_path / "out", "--modality", "histology")
    assert done.returncode == 2
    assert "--licence" in done.stderr
