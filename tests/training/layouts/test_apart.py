"""The 2018 Data Science Bowl: one mask file a nucleus."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.training.layouts.drawing import (
    HEIGHT,
    WIDTH,
    assert_only,
    assert_pair,
    draw,
    listed,
    read_all,
    refusal,
    save,
)
from training.rasters import SourceError

OPAQUE = np.full((HEIGHT, WIDTH, 1), 255, dtype=np.uint8)
A, B = "a" * 64, "b" * 64


def write(source: Path, name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image as published: RGBA, and a folder of masks, 0 and 255, named by digests."""
    image, ids = draw(seed)
    save(source / name / f"images/{name}.png", np.concatenate([image, OPAQUE], 2))
    for number in range(1, ids.max() + 1):
        mask = (ids == number).astype(np.uint8) * 255
        save(source / name / f"masks/{number:02d}{'f' * 62}.png", mask)
    return image, ids


def test_every_mask_file_is_a_nucleus(tmp_path: Path) -> None:
    drawn = {name: write(tmp_path / "stage1_train", name, 3) for name in (A, B)}
    pairs = read_all("dsb2018", tmp_path)
    assert list(pairs) == sorted(drawn)
    for name, pair in pairs.items():
        assert_pair(pair, *drawn[name])
        assert pair.mpp == 0
    assert_only("dsb2018", tmp_path)
    original = listed("dsb2018", tmp_path).originals[0]
    assert len(original.files) == 7
    assert original.organ == original.group == ""


def test_the_folder_of_one_image_can_be_the_source(tmp_path: Path) -> None:
    drawn = write(tmp_path, A, 3)
    pairs = read_all("dsb2018", tmp_path / A)
    assert list(pairs) == [A]
    assert_pair(pairs[A], *drawn)


def test_two_of_one_id_are_called_by_their_paths(tmp_path: Path) -> None:
    write(tmp_path / "one", A, 3)
    drawn = write(tmp_path / "two", A, 4)
    pairs = read_all("dsb2018", tmp_path)
    assert list(pairs) == [f"one/{A}", f"two/{A}"]
    assert_pair(pairs[f"two/{A}"], *drawn)


def test_pixels_of_two_masks_stay_with_the_first(tmp_path: Path) -> None:
    image, ids = write(tmp_path, A, 3)
    over = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    over[:, 10:12] = 255
    save(tmp_path / A / f"masks/99{'f' * 62}.png", over)
    assert_pair(read_all("dsb2018", tmp_path)[A], image, np.where((over > 0) & (ids == 0), 7, ids))


def test_images_of_the_test_set_are_named_as_unused(tmp_path: Path) -> None:
    write(tmp_path / "stage1_train", A, 3)
    write(tmp_path / "stage1_test", B, 4)
    shutil.rmtree(tmp_path / "stage1_test" / B / "masks")
    found = listed("dsb2018", tmp_path)
    assert [original.name for original in found.originals] == [A]
    test = tmp_path / f"stage1_test/{B}/images/{B}.png"
    assert found.unused == {test: "image without a folder masks"}
    assert_only("dsb2018", tmp_path)
    with pytest.raises(SourceError, match="has no folders ID with folders images and masks"):
        listed("dsb2018", tmp_path / "stage1_test")


def empty_masks(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        path.unlink()


def second_image(folder: Path) -> None:
    save(folder / "images/other.png", draw(0)[0])


def no_image(folder: Path) -> None:
    next((folder / "images").iterdir()).unlink()


def clear_image(folder: Path) -> None:
    save(next((folder / "images").iterdir()), np.concatenate([draw(0)[0], OPAQUE // 2], 2))


def wrong_size(folder: Path) -> None:
    save(folder / "masks/x.png", np.eye(HEIGHT, dtype=np.uint8) * 255)


def two_nuclei(folder: Path) -> None:
    save(folder / "masks/x.png", draw(0)[1].astype(np.uint8))


def all_white(folder: Path) -> None:
    save(folder / "masks/x.png", np.full((HEIGHT, WIDTH), 255, dtype=np.uint8))


def truncated(folder: Path) -> None:
    path = next((folder / "masks").iterdir())
    path.write_bytes(path.read_bytes()[:60])


def a_page(folder: Path) -> None:
    (folder / "masks/x.png").write_text("<html>not found</html>")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty_masks, r"has no mask in its folder masks, expected one file per nucleus"),
        (second_image, r"its folder images holds 2 images, expected one"),
        (no_image, r"its folder images holds 0 images, expected one"),
        (clear_image, r"images/a+\.png: has transparent pixels"),
        (wrong_size, r"masks/x\.png: is 48 x 48 pixels, its image .* is 64 x 48"),
        (two_nuclei, r"masks/x\.png: has the values 1, 2, 3, 4, 5, 6 outside its ground"),
        (all_white, r"masks/x\.png: has no background"),
        (truncated, r"masks/.*\.png: cannot be read"),
        (a_page, r"masks/x\.png: is not an image"),
    ],
)
def test_a_broken_image_is_named_and_the_others_are_read(
    spoil: object, message: str, tmp_path: Path
) -> None:
    write(tmp_path, A, 3)
    write(tmp_path, B, 4)
    assert callable(spoil)
    spoil(tmp_path / A)
    refusal("dsb2018", tmp_path, message)


def test_there_are_no_classes_to_choose(tmp_path: Path) -> None:
    image, ids = write(tmp_path, A, 3)
    assert_pair(read_all("dsb2018", tmp_path, ("ids",))[A], image, ids)
    with pytest.raises(SourceError, match="--nuclei: got '1', but this layout has no classes"):
        listed("dsb2018", tmp_path, ("1",))
