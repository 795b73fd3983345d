"""Arrays of many patches: PanNuke and CoNIC; and .npy files in the layout `folders`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.layouts.drawing import (
    HEIGHT,
    WIDTH,
    assert_only,
    assert_pair,
    assert_refused,
    draw,
    listed,
    read_all,
)
from training.meaning import evidence, meaning
from training.pictures import Painting, Rules
from training.rasters import SourceError

# -- PanNuke ---------------------------------------------------------------------------------------

ORGANS = np.array(["Adrenal_gland", "HeadNeck", "Breast"])
CHANNELS = (0, 1, 2, 3, 4, 0)
"""The class of the nuclei 1 to 6."""


def write_fold(folder: Path, where: str = "flat", organs: np.ndarray = ORGANS) -> None:
    """A fold as it is published, floats all of it, or with its files in one folder."""
    drawn = [draw(seed) for seed in range(len(ORGANS))]
    masks = np.zeros((len(drawn), HEIGHT, WIDTH, 6))
    for index, (_, ids) in enumerate(drawn):
        for number, channel in enumerate(CHANNELS, start=1):
            masks[index, ..., channel] += (ids == number) * (number * 10)
        masks[index, ..., 5] = ids == 0
    images = folder / "images/fold1" if where == "published" else folder
    others = folder / "masks/fold1" if where == "published" else folder
    for place in (images, others):
        place.mkdir(parents=True, exist_ok=True)
    np.save(images / "images.npy", np.stack([image for image, _ in drawn]).astype(np.float64))
    np.save(images / "types.npy", organs)
    np.save(others / "masks.npy", masks)


@pytest.mark.parametrize("where", ["published", "flat"])
def test_pannuke_folds_keep_ids_and_organs(where: str, tmp_path: Path) -> None:
    for fold in ("Fold 1", "Fold 2"):
        write_fold(tmp_path / fold, where)
    pairs = read_all("pannuke", tmp_path)
    inner = "/fold1" if where == "published" else ""
    assert list(pairs) == [f"Fold {n}{inner}/{i:05d}" for n in (1, 2) for i in range(3)]
    for number, pair in enumerate(pairs.values()):
        image, ids = draw(number % 3)
        assert_pair(pair, image, ids * 10)
        assert pair.mpp == 0.25
    listing = listed("pannuke", tmp_path)
    assert [o.organ for o in listing.originals] == ["adrenal-gland", "head-neck", "breast"] * 2
    assert [path.name for path in listing.read] == ["types.npy"] * 2
    assert_only("pannuke", tmp_path)


def test_a_fold_can_be_the_source(tmp_path: Path) -> None:
    write_fold(tmp_path / "Fold 1")
    assert next(iter(read_all("pannuke", tmp_path / "Fold 1"))) == "Fold 1/00000"


def test_ids_that_two_channels_share_are_made_different(tmp_path: Path) -> None:
    write_fold(tmp_path)
    masks = np.load(tmp_path / "masks.npy")
    masks[0, ..., 3][masks[0, ..., 3] > 0] = 10
    np.save(tmp_path / "masks.npy", masks)
    image, ids = draw(0)
    places = {1: 1, 6: 2, 2: 3, 3: 4, 4: 5, 5: 6}  # by channel, then by id
    expected = sum((ids == number) * new for number, new in places.items())
    assert_pair(read_all("pannuke", tmp_path)[f"{tmp_path.name}/00000"], image, expected)


def test_pixels_of_two_channels_stay_with_the_first(tmp_path: Path) -> None:
    write_fold(tmp_path)
    masks = np.load(tmp_path / "masks.npy")
    masks[0, :, :32, 4] = 50
    np.save(tmp_path / "masks.npy", masks)
    image, ids = draw(0)
    expected = np.where((ids == 0) & (np.arange(WIDTH) < 32), 50, ids * 10)
    assert_pair(read_all("pannuke", tmp_path)[f"{tmp_path.name}/00000"], image, expected)


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (("neoplastic",), (1, 6)),
        (("0", "Dead"), (1, 4, 6)),
        (("ids",), (1, 2, 3, 4, 5, 6)),
    ],
)
def test_classes_of_pannuke_are_chosen_by_name_or_number(
    words: tuple[str, ...], numbers: tuple[int, ...], tmp_path: Path
) -> None:
    write_fold(tmp_path)
    image, ids = draw(0)
    pair = read_all("pannuke", tmp_path, words)[f"{tmp_path.name}/00000"]
    assert_pair(pair, image, np.where(np.isin(ids, numbers), ids * 10, 0))


def test_an_unknown_class_is_refused_with_the_names(tmp_path: Path) -> None:
    write_fold(tmp_path)
    with pytest.raises(SourceError, match=r"got 'tumour', expected some of neoplastic \(0\), infl"):
        listed("pannuke", tmp_path, ("neoplastic", "tumour"))


WHOLE = np.zeros((3, HEIGHT, WIDTH, 3))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("images.npy", WHOLE[..., 0], r"images\.npy: has shape \[3, 48, 64\], expected \[M, H, W"),
        ("images.npy", WHOLE[:0], r"images\.npy: has shape \[0, 48, 64, 3\], expected \[M, H, W"),
        ("images.npy", WHOLE + 300, "patch 0 has values from 300 to 300, expected 0 to 255"),
        ("images.npy", WHOLE + 1, "patch 0 has values from 1 to 1, expected 0 to 255"),
        ("images.npy", WHOLE + 0.5, "patch 0 has values from 0.5 to 0.5, expected whole numbers"),
        ("images.npy", WHOLE * np.nan, "patch 0 has values from nan to nan, expected whole"),
        ("images.npy", WHOLE - 1, "patch 0 has values from -1 to -1, expected whole numbers"),
        ("masks.npy", np.zeros((3, HEIGHT, WIDTH, 5)), r"expected \[M, H, W, 6\]"),
        ("masks.npy", np.zeros((2, HEIGHT, WIDTH, 6)), r"2 of 64 x 48 pixels, .*npy holds 3 of"),
        ("masks.npy", np.full((3, HEIGHT, WIDTH, 6), 0.5), r"masks\.npy: patch 0 has values from"),
        ("types.npy", np.array(["Lung"]), r"types\.npy: has shape \[1\], expected \[3\]"),
        ("types.npy", np.array([1, 2, 3]), "expected names of organs"),
        ("types.npy", ORGANS.astype(object), r"types\.npy: .*pickle.*astype\(str\)"),
    ],
)
def test_a_fold_that_does_not_fit_together_is_named(
    name: str, array: np.ndarray, message: str, tmp_path: Path
) -> None:
    write_fold(tmp_path / "Fold 1")
    write_fold(tmp_path / "Fold 2")
    np.save(tmp_path / "Fold 1" / name, array)
    originals = listed("pannuke", tmp_path).originals
    assert_refused(originals[0], message)
    assert_pair(originals[-1].read(), draw(2)[0], draw(2)[1] * 10)


def test_a_fold_without_masks_or_cut_short_is_named(tmp_path: Path) -> None:
    write_fold(tmp_path / "Fold 1")
    write_fold(tmp_path / "Fold 2")
    write_fold(tmp_path / "Fold 3")
    (tmp_path / "Fold 1/masks.npy").unlink()
    (tmp_path / "Fold 2/images.npy").write_bytes((tmp_path / "Fold 2/images.npy").read_bytes()[:-9])
    (tmp_path / "Fold 3/images.npy").unlink()
    first, second = (listing := listed("pannuke", tmp_path)).originals
    assert_refused(first, r"Fold 1/images\.npy: has no masks\.npy beside it or under masks/")
    assert_refused(second, r"Fold 2/images\.npy: is not a \.npy array")
    assert listing.unused == {tmp_path / "Fold 3/masks.npy": "masks without images.npy"}


# -- CoNIC -----------------------------------------------------------------------------------------

PATCHES = ("consep_1-0000", "consep_1-0001", "glas_10-0000")


def write_conic(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [draw(seed) for seed in range(len(PATCHES))]
    labels = np.stack([np.stack([ids, (ids + 5) % 7], 2) for _, ids in drawn])
    labels[..., 1][labels[..., 0] == 0] = 0
    np.save(folder / "images.npy", np.stack([image for image, _ in drawn]))
    np.save(folder / "labels.npy", labels.astype(np.uint16))
    (folder / "patch_info.csv").write_text("\n".join(["patch_info", *PATCHES, ""]))


def test_conic_patches_are_grouped_by_the_image_that_they_were_cut_from(tmp_path: Path) -> None:
    write_conic(tmp_path)
    pairs = read_all("conic", tmp_path)
    assert tuple(pairs) == PATCHES
    for seed, pair in enumerate(pairs.values()):
        assert_pair(pair, *draw(seed))
        assert pair.mpp == 0.5
    listing = listed("conic", tmp_path)
    assert [each.group for each in listing.originals] == ["consep_1", "consep_1", "glas_10"]
    assert {each.organ for each in listing.originals} == {"colon"}
    assert listing.read == [tmp_path / "patch_info.csv"]
    assert_only("conic", tmp_path)


def test_conic_needs_no_names(tmp_path: Path) -> None:
    write_conic(tmp_path / "data")
    (tmp_path / "data/patch_info.csv").unlink()
    assert list(read_all("conic", tmp_path)) == [f"data/{index:05d}" for index in range(3)]
    assert_only("conic", tmp_path)


def test_classes_of_conic_are_chosen_by_the_class_of_most_pixels(tmp_path: Path) -> None:
    write_conic(tmp_path)
    labels = np.load(tmp_path / "labels.npy")
    inside = np.argwhere(labels[0, ..., 0] == 1)
    for row, column in inside[:3]:
        labels[0, row, column, 1] = 1
    np.save(tmp_path / "labels.npy", labels)
    image, ids = draw(0)
    # Nuclei 1 to 6 are of the classes 6, 0, 1, 2, 3, 4.
    pair = read_all("conic", tmp_path, ("connective", "1"))[PATCHES[0]]
    assert_pair(pair, image, np.where(np.isin(ids, (1, 3)), ids, 0))
    with pytest.raises(SourceError, match=r"got '7', expected some of neutrophil \(1\), epith"):
        listed("conic", tmp_path, ("7",))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("labels.npy", np.zeros((3, HEIGHT, WIDTH)), r"labels\.npy: has shape .*\[M, H, W, 2\]"),
        ("labels.npy", np.zeros((3, HEIGHT, 9, 2)), r"holds 3 of 9 x 48 pixels, .* 3 of 64 x 48"),
        ("labels.npy", np.full((3, HEIGHT, WIDTH, 2), 7), "patch 0 has class 7, expected 0 to 6"),
        ("labels.npy", np.full((3, HEIGHT, WIDTH, 2), -1), "values from -1 to -1, expected whole"),
        ("images.npy", np.zeros((3, HEIGHT, WIDTH, 4)), r"expected \[M, H, W, 3\]"),
    ],
)
def test_conic_that_does_not_fit_together_is_named(
    name: str, array: np.ndarray, message: str, tmp_path: Path
) -> None:
    write_conic(tmp_path)
    np.save(tmp_path / name, array)
    assert_refused(listed("conic", tmp_path).originals[0], message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "patch_info\na-0\nb-0\n",
            r"patch_info\.csv: has 2 names, 2 of them different, expected 3",
        ),
        ("patch_info\na-0\na-0\nb-0\n", "has 3 names, 2 of them different, expected 3"),
        ("name\na-0\nb-0\nc-0\n", "expected a column patch_info of names such as consep_1-0003"),
        ("patch_info\na\nb\nc\n", "expected a column patch_info of names such as"),
        ("", "expected a column patch_info"),
    ],
)
def test_names_of_patches_that_do_not_fit_are_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    write_conic(tmp_path)
    (tmp_path / "patch_info.csv").write_text(text)
    assert_refused(listed("conic", tmp_path).originals[0], message)


def test_names_as_spreadsheets_save_them_are_read(tmp_path: Path) -> None:
    write_conic(tmp_path)
    text = "\r\n".join(["patch_info", *PATCHES])
    (tmp_path / "patch_info.csv").write_text(text, encoding="utf-8-sig")
    assert tuple(read_all("conic", tmp_path)) == PATCHES


# -- arrays as pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.int64, np.float64])
def test_folders_take_images_and_ids_as_npy(kind: type, tmp_path: Path) -> None:
    image, ids = draw(0)
    for name, array in (("images", image), ("masks", (ids * 300).astype(kind))):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", array)
    assert_only("folders", tmp_path)
    [original] = listed("folders", tmp_path).originals
    pair = original.read()
    assert np.array_equal(pair.image, image)
    assert isinstance(pair.nuclei, Painting)
    meant = meaning([evidence(pair.nuclei)], Rules(nuclei=("ids",)))
    assert np.array_equal(meant.nuclei(pair.nuclei), ids * 300)


def test_one_folder_with_suffixes_takes_npy(tmp_path: Path) -> None:
    image, ids = draw(0)
    np.save(tmp_path / "a.npy", image)
    np.save(tmp_path / "a_masks.npy", (ids > 0))
    assert_only("suffixes", tmp_path)
    [original] = listed("suffixes", tmp_path).originals
    pair = original.read()
    assert np.array_equal(pair.image, image)
    assert isinstance(pair.nuclei, Painting)
    assert np.array_equal(meaning([evidence(pair.nuclei)], Rules()).nuclei(pair.nuclei), ids > 0)


def test_an_npy_that_needs_pickle_or_is_cut_short_is_refused(tmp_path: Path) -> None:
    image, ids = draw(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for stem in "ab":
            np.save(tmp_path / name / f"{stem}.npy", image if name == "images" else ids)
    np.save(tmp_path / "masks/a.npy", np.array([{}]))
    cut = tmp_path / "masks/b.npy"
    cut.write_bytes(cut.read_bytes()[:-5])
    first, second = listed("folders", tmp_path).originals
    assert_refused(first, r"masks/a\.npy: .*needs pickle")
    assert_refused(second, r"masks/b\.npy: is not a \.npy array")
