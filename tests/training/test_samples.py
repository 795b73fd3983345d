"""What is listed in a folder: manifests as people's tools save them, labels, copies of pictures."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.phantoms import write_phantoms
from training.data import read_dataset
from training.rasters import SourceError
from training.samples import DataError, read_patch, read_samples
from training.selection import select


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_phantoms(tmp_path / "patches")


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write(root: Path, changed: list[dict[str, str]]) -> None:
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(changed[0]))
        writer.writeheader()
        writer.writerows(changed)


# -- manifests -------------------------------------------------------------------------------------


def test_a_manifest_that_a_spreadsheet_saved_is_read(root: Path) -> None:
    before = read_samples(root, [])
    text = (root / "manifest.csv").read_text()
    (root / "manifest.csv").write_bytes(b"\xef\xbb\xbf" + text.encode() + b",,,,,\r\n\r\n")
    assert read_samples(root, []) == before


DIALECTS: dict[str, tuple[Callable[[str], bytes], str]] = {
    "semicolons": (
        lambda text: text.replace(",", ";").encode(),
        r"manifest\.csv line 1: has no column 'image'; found \['image;mask;modality;organ;group;",
    ),
    "tabs": (lambda text: text.replace(",", "\t").encode(), "line 1: has no column 'image'"),
    "UTF-16": (lambda text: text.encode("utf-16"), r"manifest\.csv: is not UTF-8 text"),
    "a field too many": (
        lambda text: text.replace("CC0-1.0", "CC0-1.0,x", 1).encode(),
        r"manifest\.csv line 2: has 7 fields, expected 6",
    ),
    "an open quote": (
        lambda text: text.replace("histology", '"histology', 1).encode(),
        r"manifest\.csv: is not a table of comma-separated values",
    ),
    "no rows": (lambda text: b"", r"line 1: has no column 'image'; found \[\]"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_another_dialect_is_one_line_with_columns_found_and_expected(
    dialect: str, root: Path
) -> None:
    change, says = DIALECTS[dialect]
    path = root / "manifest.csv"
    path.write_bytes(change(path.read_text()))
    with pytest.raises(DataError, match=says) as refused:
        read_samples(root, [])
    assert len(str(refused.value).splitlines()) == 1


def test_instances_microns_and_captions_come_along(root: Path) -> None:
    changed = rows(root)
    for row in changed:
        row |= {"instances": "", "mpp": "", "text": ""}
    first = read_samples(root, [])[0]
    mask = read_patch(first).mask
    ids = np.where(mask, np.where(np.arange(64) < 32, 7, 900), 0).astype(np.uint16)
    Image.fromarray(ids).save(root / "ids.png")
    changed[0] |= {"instances": "ids.png", "mpp": "0.25", "text": "two nuclei, one of them cut"}
    write(root, changed)
    sample = read_samples(root, [])[0]
    assert (sample.mpp, sample.text) == (0.25, "two nuclei, one of them cut")
    found = read_patch(sample).ids
    assert found is not None
    assert np.array_equal(found, np.searchsorted([0, 7, 900], ids))

    Image.fromarray(np.where(ids == 7, 0, ids)).save(root / "ids.png")
    with pytest.raises(SourceError, match=r"ids\.png: does not mark the pixels of its mask"):
        read_patch(sample)
    changed[0]["mpp"] = "0,25"
    write(root, changed)
    with pytest.raises(DataError, match="line 2: mpp is '0,25', expected microns per pixel"):
        read_samples(root, [])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ("Cytology", "cytology"),
            "'Cytology' and 'cytology': two labels that differ only by case",
        ),
        (("cytology ", "cytology"), "'cytology ': a label with spaces around it"),
        (("cyto  logy", "cytology"), "'cyto  logy': a label with spaces around it"),
    ],
)
def test_labels_that_differ_by_case_or_blanks_are_refused(
    names: tuple[str, str], says: str, root: Path
) -> None:
    changed = rows(root)
    for number, row in enumerate(changed):
        if row["modality"] == "cytology":
            row["modality"] = names[number % 2]
    write(root, changed)
    for read in (lambda: select([root], [], 2), lambda: read_dataset(root, [], 64)):
        with pytest.raises(DataError, match=says):
            read()


# -- plain folders ---------------------------------------------------------------------------------


def test_plain_folders_are_read_in_any_case_and_format_without_what_a_mac_left(
    tmp_path: Path,
) -> None:
    drawn = write_phantoms(tmp_path / "drawn", each=4)
    home = tmp_path / "plain/histology"
    (home / "Images").mkdir(parents=True)
    (home / "Masks").mkdir()
    for number in range(4):
        image = drawn / f"histology/images/{number:03}.png"
        with Image.open(image) as picture:
            picture.save(home / f"Images/{number}.TIF")
        shutil.copy(drawn / f"histology/masks/{number:03}.png", home / f"Masks/{number}.png")
        (home / f"Images/._{number}.TIF").write_bytes(b"Mac OS X")
    dataset = read_dataset(tmp_path / "plain", [], 64)
    assert len(dataset.samples) == 4
    assert {label.name for label in dataset.labels} == {"histology"}
    shutil.copy(home / "Masks/0.png", home / "Masks/9.png")
    with pytest.raises(DataError, match=r"Masks/9\.png: mask without an image"):
        read_dataset(tmp_path / "plain", [], 64)


# -- copies ----------------------------------------------------------------------------------------


def turned(path: Path, copy: Path) -> None:
    with Image.open(path) as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(copy)


@pytest.mark.parametrize("how", [shutil.copy, turned], ids=["byte for byte", "turned"])
def test_copies_of_a_picture_are_never_on_both_sides_and_are_said(
    how: Callable[[Path, Path], object], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture under two names, in the group that is held out and in one that is trained on."""
    dataset = read_dataset(root, [], 64)
    held_out = [dataset.samples[i] for i in dataset.validation.tolist()]
    sample = next(s for s in held_out if s.labels[0].name == "histology")
    changed = rows(root)
    for kind in ("image", "mask"):
        how(getattr(sample, kind), root / f"copy_{kind}.png")
    changed.append(changed[-1] | {"image": "copy_image.png", "mask": "copy_mask.png"})
    trained_on = {s.group for s in dataset.samples if s.labels == sample.labels} - {sample.group}
    changed[-1]["group"] = min(trained_on)
    write(root, changed)
    capsys.readouterr()

    again = read_dataset(root, [], 64)
    assert "1 patches are copies of others" in capsys.readouterr().out
    sides = [
        {again.samples[i].group for i in part.tolist()}
        for part in (again.training, again.validation)
    ]
    assert not sides[0] & sides[1]
    chosen = select([root], [], 2)
    assert len(chosen.copies) == 1
    twins = [s for s in chosen.samples if s.image in (sample.image, root / "copy_image.png")]
    assert len({s.group for s in twins}) == 1


def test_two_folders_are_selected_from_together(tmp_path: Path) -> None:
    one, other = (write_phantoms(tmp_path / name, each=each) for name, each in (("a", 6), ("b", 8)))
    changed = rows(other)
    for row in changed:
        row["group"] = f"b-{row['group']}"
    write(other, changed)
    chosen = select([one, other], [], 2)
    assert len(chosen.samples) == 18 + 24
    write(other, [row | {"organ": "histology"} for row in changed])
    with pytest.raises(DataError, match="is both a modality and an organ"):
        select([one, other], [], 2)
