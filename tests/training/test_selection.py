"""Labels with too few groups are no labels, and what is left can be trained and validated on."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.phantoms import COLUMNS, write_phantoms
from training import data as patches
from training.samples import DataError, read_samples, validation_groups
from training.selection import listed_groups, select

Change = Callable[[int, dict[str, str]], object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six groups a modality; blood in all groups of cytology."""
    return write_phantoms(tmp_path)


def rewrite(root: Path, change: Change) -> None:
    """Change the manifest's rows, each by its number within its modality and its fields."""
    with (root / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        change(number % 12, row)
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


TAKEN = "histology-5"
"""The group of histology that is held out."""


def organs(number: int, row: dict[str, str]) -> None:
    """Four groups of breast and two of colon in histology."""
    if row["modality"] == "histology":
        row["organ"] = "breast" if number < 8 else "colon"


def test_an_organ_with_too_few_groups_is_left_out_and_its_patches_stay(root: Path) -> None:
    rewrite(root, organs)
    chosen = select([root], [], 4)
    assert listed_groups(chosen.kept) == (
        "cytology (6), fluorescence (6), histology (6), blood (6), breast (4)"
    )
    assert listed_groups(chosen.left_out) == "colon (2)"
    assert len(chosen.samples) == 36


def test_a_modality_with_too_few_groups_takes_its_patches_and_organs_along(root: Path) -> None:
    rewrite(root, organs)
    rewrite(root, lambda n, row: row["modality"] == "cytology" and row.update(group=f"c{n % 3}"))
    chosen = select([root], [], 4)
    assert listed_groups(chosen.left_out) == "cytology (3), colon (2)"
    assert listed_groups(chosen.kept) == "fluorescence (6), histology (6), breast (4)"
    assert len(chosen.samples) == 24


def held_out_of(root: Path, modality: str) -> str:
    """The one group of a modality of six that is held out."""
    samples = [s for s in read_samples(root, []) if s.labels[0].name == modality]
    [group] = validation_groups(samples)
    return group


@pytest.mark.parametrize("side", ["held out", "trained on"])
def test_an_organ_on_one_side_of_the_split_alone_is_left_out(side: str, root: Path) -> None:
    """Two groups in two modalities: no set of labels has two, of which to hold out one."""
    groups = {name: held_out_of(root, name) for name in ("fluorescence", "histology")}
    if side == "trained on":
        groups = {name: f"{name}-x" for name in groups}
        rewrite(root, lambda n, row: n < 2 and row.update(group=f"{row['modality']}-x"))

    def colon(number: int, row: dict[str, str]) -> None:
        """Where it is held out, that is for a patch of the same group that has no organ."""
        if row["group"] == groups.get(row["modality"]) and (side == "trained on" or number % 2):
            row["organ"] = "colon"

    rewrite(root, colon)
    chosen = select([root], [], 2)
    assert listed_groups(chosen.one_sided) == "colon (2)"
    assert listed_groups(chosen.kept) == "cytology (6), fluorescence (6), histology (6), blood (6)"
    assert len(chosen.samples) == 36
    assert not chosen.left_out


def test_what_is_kept_is_on_both_sides_after_others_are_left_out(root: Path) -> None:
    """Leaving out an organ changes the sets of labels by which groups are held out."""
    for draw in range(40):
        names = [f"organ{n * n % (draw + 2)}" for n in range(12)]
        rewrite(root, lambda n, row, names=names: row.update(organ=names[n]))  # type: ignore[misc]
        chosen = select([root], [], 1 + draw % 2)
        held_out = validation_groups(chosen.samples)
        for label in chosen.kept:
            sides = {s.group in held_out for s in chosen.samples if label in s.labels}
            assert sides == {True, False}, (draw, label)
        assert not chosen.kept.keys() & chosen.one_sided.keys()


def test_every_stage_reads_the_same_from_what_it_writes(root: Path, tmp_path: Path) -> None:
    rewrite(root, organs)
    chosen = select([root], ["CC0-1.0"], 4)
    folder = tmp_path / "chosen"
    folder.mkdir()
    (folder / "manifest.csv").write_text(chosen.manifest())
    dataset = patches.read_dataset(folder, [], 64)
    assert dataset.samples == chosen.samples
    assert list(dataset.labels) == list(chosen.kept)
    assert chosen.licences() == ["CC0-1.0"]


def test_plain_folders_are_a_selection_too(root: Path) -> None:
    (root / "manifest.csv").unlink()
    chosen = select([root], [], 2)
    assert listed_groups(chosen.kept) == "cytology (12), fluorescence (12), histology (12)"
    assert chosen.licences() == []


@pytest.mark.parametrize(
    ("change", "fewest", "says"),
    [
        (lambda n, row: None, 7, r"no label has 7 groups; there are cytology \(6\), fluor"),
        (lambda n, row: n == 3 and row.update(modality=""), 2, r"003\.png: has no modality"),
        (lambda n, row: row.update(group=row["modality"]), 1, "cytology: no group can be held out"),
        (
            lambda n, row: n > 7 and row.update(organ=row["modality"]),
            2,
            "cytology: is both a modality and an organ, expected two names",
        ),
        (
            lambda n, row: row["modality"] == "cytology" and row.update(group=TAKEN),
            1,
            "cytology: every group is held out",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    root: Path, change: Change, fewest: int, says: str
) -> None:
    rewrite(root, change)
    with pytest.raises(DataError, match=says):
        select([root], [], fewest)
