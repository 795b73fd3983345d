"""What an import does with names and sizes, what it says, and how it goes on after a stop."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

from tests.training.import_sources import (
    LICENCE,
    SIZE,
    SLIDES,
    assert_cut_from,
    bring_in,
    of_group,
    patch,
    save,
    write_slides,
)
from training import import_patches as import_patches_command
from training.data import read_dataset
from training.importing import Import, ImportRefused, import_patches
from training.layouts import look
from training.pictures import Rules
from training.samples import COLUMNS

# -- names, sizes, and what was not used -----------------------------------------------------------


def test_names_keep_their_letters_and_never_meet(tmp_path: Path) -> None:
    names = ("样本一", "样本二", "a+1", "a 1", "Zelle Ä", "B", "b", "x" * 180)
    pictures = {}
    for seed, name in enumerate(names):
        pictures[name] = image, labels = patch(seed, SIZE, SIZE)
        save(tmp_path / f"source/images/{name}.png", image)
        save(tmp_path / f"source/masks/{name}.png", (labels > 0).astype(np.uint8))
    dataset = bring_in("folders", tmp_path / "source", tmp_path / "out")
    for name, (image, labels) in pictures.items():
        assert_cut_from(of_group(dataset, name), image, labels)
    files = {path.stem for path in (tmp_path / "out/images").iterdir()}
    assert {"样本一_0000_0000", "样本二_0000_0000", "Zelle-Ä_0000_0000"} <= files
    assert len({file.casefold() for file in files}) == len(names)


@pytest.mark.parametrize(
    ("images", "masks", "name"),
    [
        ("Images/1.png", "Masks/1.png", "1"),
        ("images/train/1.png", "masks/train/1.png", "train/1"),
        ("train/original/1.jp2", "train/mask/1.png", "train/1"),
        ("images/1.png", "labels/1_mask.png", "1"),
        ("deep/IMAGES/a/b/1.png", "deep/masks/a/b/1.tif", "deep/a/b/1"),
    ],
)
def test_folders_are_found_in_any_case_and_side_by_side_or_below(
    images: str, masks: str, name: str, tmp_path: Path
) -> None:
    image, labels = patch(3, SIZE, SIZE)
    lossless = {"irreversible": False} if images.endswith("jp2") else {}
    (tmp_path / "source" / images).parent.mkdir(parents=True)
    Image.fromarray(image).save(tmp_path / "source" / images, **lossless)
    save(tmp_path / "source" / masks, (labels > 0).astype(np.uint8))
    (tmp_path / "source" / images).with_name("._1.png").write_bytes(b"Mac OS X")
    dataset = bring_in("folders", tmp_path / "source", tmp_path / "out")
    assert_cut_from(of_group(dataset, name), image, labels)
    assert "folders" in look(tmp_path / "source")


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("x.tif", "x_masks.tif"),
        ("x_img.png", "x_masks.png"),
        ("x.bmp", "x_anno.bmp"),
        ("x.bmp", "x.png"),
        ("x.png", "x_instances.npy"),
    ],
)
def test_one_folder_with_suffixes(image: str, mask: str, tmp_path: Path) -> None:
    pixels, labels = patch(4, SIZE, SIZE)
    save(tmp_path / "source/a" / image, pixels)
    save(tmp_path / "source/a" / mask, (labels > 0).astype(np.uint8) * 255)
    dataset = bring_in("suffixes", tmp_path / "source", tmp_path / "out")
    assert_cut_from(of_group(dataset, "a/x"), pixels, labels)
    assert list(look(tmp_path / "source")) == ["suffixes"]


def test_what_was_not_used_is_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path / "source", "1")
    for name in ("masks/2.png", "masks/3.png", "preview.png", "readme.txt", "images/._1.png"):
        save(tmp_path / "source/masks/2.png", np.zeros((SIZE, SIZE), dtype=np.uint8))
        (tmp_path / "source" / name).write_bytes((tmp_path / "source/masks/2.png").read_bytes())
    bring_in("folders", tmp_path / "source", tmp_path / "out")
    said = capsys.readouterr().out
    assert "not used, mask without an image: 2 (masks/2.png, masks/3.png)" in said
    assert "not used, image that the layout has no place for: 1 (preview.png)" in said
    assert "not used, file with the ending .txt: 1 (readme.txt)" in said
    assert "not used, left by the operating system: 1 (images/._1.png)" in said


def test_only_the_originals_that_a_file_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path / "source", *SLIDES)
    only = tmp_path / "only.txt"
    only.write_text(f"{SLIDES[0]}\n{SLIDES[3]}\n\n")
    dataset = bring_in("folders", tmp_path / "source", tmp_path / "out", only=only)
    assert {sample.group for sample in dataset.samples} == {SLIDES[0], SLIDES[3]}
    assert "not used, not named in --only: 4 (slide-7/images/p1_1.png" in capsys.readouterr().out
    only.write_text("slide-9/p1_0")
    with pytest.raises(ImportRefused, match="names 'slide-9/p1_0' and 0 more that are not in"):
        bring_in("folders", tmp_path / "source", tmp_path / "again", only=only)


@pytest.mark.parametrize("small", ["skip", "pad", "scale"])
@pytest.mark.parametrize("ids", [False, True])
def test_an_original_smaller_than_a_tile_is_left_out_continued_or_enlarged(
    small: str, ids: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path / "source", "large")
    image, labels = patch(5, 48, 32)
    save(tmp_path / "source/images/small.png", image)
    mask = labels if ids else (labels > 0).astype(np.uint8) * 255
    rules = Rules(nuclei=("ids",) if ids else ())
    save(tmp_path / "source/masks/small.png", mask)
    dataset = bring_in(
        "folders", tmp_path / "source", tmp_path / "out", small=small, rules=rules, mpp=0.5
    )
    assert f"1 original smaller than a tile: {small}" in capsys.readouterr().out
    tiles = of_group(dataset, "small")
    if small == "skip":
        assert not tiles
        return
    tile, found = tiles[0]
    [sample] = [sample for sample in dataset.samples[-1:] if sample.group == "small"]
    if small == "pad":
        assert sample.mpp == 0.5
        assert np.array_equal(tile[:48, :32], image)
        assert np.array_equal(tile[:48, 32:], image[:, ::-1])
        assert np.array_equal(found[:48, :32], labels > 0)
        assert np.array_equal(found[:48, 32:], (labels > 0)[:, ::-1])
    else:
        assert sample.mpp == 0.25
        assert np.array_equal(found[::2, ::2], (labels > 0)[:32])
    if ids:
        written = np.array(Image.open(sample.instances or ""))
        pieces = [ndimage.label(written == number)[1] for number in np.unique(written[written > 0])]
        assert set(pieces) == {1} or small == "scale"


def test_a_mask_that_was_corrected_counts_whatever_its_time_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`cp -p` and archives keep old times."""
    write_slides(tmp_path / "source", *SLIDES)
    bring_in("folders", tmp_path / "source", tmp_path / "out")
    mask = sorted((tmp_path / "source").rglob("masks/*"))[0]
    corrected = np.array(Image.open(mask)) > 0
    corrected[:20] = True
    save(mask, corrected.astype(np.uint8) * 255)
    os.utime(mask, (1, 1))
    capsys.readouterr()
    again = bring_in("folders", tmp_path / "source", tmp_path / "out")
    assert "4 tiles, 3 of them kept" in capsys.readouterr().out
    assert int(corrected.sum()) in [int(found.sum()) for found in again.masks]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"modality": ""}, "--modality: got '', expected a name such as histology"),
        ({"modality": "histology "}, "--modality: got 'histology ', expected a name"),
        ({"licence": " "}, "--licence: got ' ', expected a name such as CC-BY-4.0"),
        ({"size": 0}, "--size: got 0"),
        ({"mpp": -1.0}, "--mpp: got -1"),
        ({"layout": "pannuke", "rules": Rules(threshold=9)}, "--threshold: pannuke has no painted"),
    ],
)
def test_settings_that_mean_nothing_are_told_by_their_names(
    words: dict[str, Any], says: str, tmp_path: Path
) -> None:
    write_slides(tmp_path / "source", "1")
    settings = {"layout": "folders", "modality": "histology", "organ": "", "licence": "MIT"}
    with pytest.raises(ImportRefused, match=re.escape(says)):
        import_patches(
            Import(source=tmp_path / "source", out=tmp_path / "out", **{**settings, **words})
        )
    assert not (tmp_path / "out").exists()


def test_an_import_says_what_it_holds_and_draws_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path / "source", *SLIDES)
    dataset = bring_in("folders", tmp_path / "source", tmp_path / "out")
    share = float(dataset.masks.float().mean())
    said = capsys.readouterr().out
    assert f"histology: 4 patches in 4 groups, nuclei on {share:.1%} of their pixels" in said
    assert "0 empty masks" in said
    with Image.open(tmp_path / "out/overview.png") as sheet:
        assert sheet.size == (4 * SIZE, SIZE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda mask: 255 - mask, "of histology; are its masks inverted?"),
        (lambda mask: mask * 0, "warning: every mask of histology is empty"),
    ],
)
def test_inverted_and_empty_masks_are_warned_of(
    change: Callable[[np.ndarray], np.ndarray],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_slides(tmp_path / "source", *SLIDES)
    for mask in (tmp_path / "source").rglob("masks/*"):
        save(mask, change(np.array(Image.open(mask))))
    bring_in("folders", tmp_path / "source", tmp_path / "out")
    assert says in capsys.readouterr().out


def test_200_originals_of_which_three_are_broken(tmp_path: Path) -> None:
    """Each in a line, all in one run; the rest is imported where that is asked for."""
    source, out = tmp_path / "source", tmp_path / "out"
    write_slides(source, *(f"{number:03d}" for number in range(200)))
    whole = (source / "images/050.png").read_bytes()
    (source / "images/050.png").write_bytes(whole[: len(whole) // 2])
    (source / "masks/100.png").write_bytes(b"<!DOCTYPE html><html><body>Not found</body></html>")
    (source / "images/150.png").write_bytes(b"")
    words = ("folders", source, "--out", out, "--size", SIZE)
    words = (*words, "--licence", LICENCE, "--modality", "histology")
    refused = run(*words)
    assert refused.returncode == 1
    lines = refused.stderr.splitlines()
    assert len(lines) == 4, refused.stderr
    for line, name in zip(lines, ("images/050", "masks/100", "images/150"), strict=False):
        assert f"{name}.png: " in line
    assert "3 originals cannot be used" in lines[3]
    assert not out.exists()
    done = run(*words, "--skip-broken")
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 3
    assert len(read_dataset(out, [], SIZE).samples) == 197
    assert len(list((out / "masks").iterdir())) == 197


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """What the command does, in this process, where its libraries are loaded."""
    said, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        try:
            import_patches_command.main(list(map(str, words)))
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return subprocess.CompletedProcess(words, code, said.getvalue(), errors.getvalue())


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
    assert (broken.returncode, len(broken.stderr.splitlines())) == (1, 2), broken.stderr
    assert "2.png: cannot be read" in broken.stderr
    assert not out.exists(), "nothing is written where something cannot be read"
    others = run(*words, "--skip-broken")
    assert others.returncode == 0, others.stderr
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*s/*.png")}
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
    assert tuple(rows[0]) == COLUMNS
    assert not list(out.rglob("*.partial"))

    other = run(*words[:4], "--size", 32, *words[6:])
    assert other.returncode == 1
    assert "holds an import of" in other.stderr
    assert len(list(out.glob("*s/*.png"))) == 8


def test_a_command_without_a_licence_is_no_command(tmp_path: Path) -> None:
    done = run("folders", tmp_path, "--out", tmp_path / "out", "--modality", "histology")
    assert done.returncode == 2
    assert "--licence" in done.stderr
