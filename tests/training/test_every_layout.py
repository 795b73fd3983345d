"""A made folder of every layout: looked at, imported, trained on, served, and drawn from.

The commands are those of docs/training.md, at the smallest size and with as few steps as there can
be. Each layout is a modality of its own, so that one training takes all.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.running import Up
from tests.training.commands import run
from tests.training.layouts import (
    test_apart,
    test_arrays,
    test_coco,
    test_geojson,
    test_imagescope,
    test_labelme,
    test_matlab,
    test_tables,
    test_yolo,
)
from tests.training.layouts.drawing import draw, save
from tests.training.layouts.outlined import BOXES, pixels, save_image, save_json
from training import import_patches
from training.layouts import LAYOUTS
from training.samples import read_patch, read_samples

pytestmark = pytest.mark.processes

Write = Callable[[Path], object]


def folders(source: Path) -> None:
    for seed in range(2):
        image, ids = draw(seed)
        save(source / f"images/{seed}.png", image)
        save(source / f"masks/{seed}.png", (ids > 0).astype(np.uint8) * 255)


def suffixes(source: Path) -> None:
    for seed in range(2):
        image, ids = draw(seed)
        save(source / f"{seed}_img.png", image)
        save(source / f"{seed}_masks.png", (ids > 0).astype(np.uint8) * 255)


def nuinsseg(source: Path) -> None:
    for seed in range(2):
        image, ids = draw(seed)
        save(source / f"human spleen/tissue images/{seed}.png", image)
        save(source / f"human spleen/mask binary/{seed}.png", (ids > 0).astype(np.uint8) * 255)
        save(source / f"human spleen/label masks/{seed}.tif", ids.astype(np.uint16))


def dsb2018(source: Path) -> None:
    for seed, name in enumerate("ab"):
        test_apart.write(source, name, seed)


def tables(source: Path) -> None:
    test_tables.write(source / "a.parquet", [test_tables.row(seed) for seed in range(2)])


def matlab(source: Path) -> None:
    for seed in range(2):
        image, ids = draw(seed)
        save(source / f"{seed}.png", image)
        test_matlab.write_mat(source / f"{seed}.mat", {"inst_map": ids.astype(float)})


def monuseg(source: Path) -> None:
    for seed in range(2):
        save_image(source / f"Tissue Images/{seed}.tif", seed)
        (source / "Annotations").mkdir(exist_ok=True)
        text = test_imagescope.annotation(test_imagescope.NUCLEI)
        (source / f"Annotations/{seed}.xml").write_text(text)


def monusac(source: Path) -> None:
    for seed, patient in enumerate((test_imagescope.BREAST, test_imagescope.UNKNOWN)):
        save_image(source / patient / f"{patient}_1.tif", seed)
        text = test_imagescope.annotation(test_imagescope.CELLS)
        (source / patient / f"{patient}_1.xml").write_text(text)


def coco(source: Path) -> None:
    for seed in range(2):
        save_image(source / f"{seed}.png", seed)
        save_json(source / f"{seed}.json", test_coco.document(test_coco.FORMS, f"{seed}.png"))


def geojson(source: Path) -> None:
    for seed in range(2):
        save_image(source / f"{seed}.tif", seed)
        save_json(source / f"{seed}.geojson", test_geojson.collection(test_geojson.NUCLEI))


def labelme(source: Path) -> None:
    shapes = [test_labelme.shape(pixels(box)) for box in BOXES]
    for seed in range(2):
        save_image(source / f"{seed}.png", seed)
        save_json(source / f"{seed}.json", test_labelme.document(shapes, f"{seed}.png"))


def yolo(source: Path) -> None:
    for seed in range(2):
        save_image(source / f"images/train/{seed}.png", seed)
        label = source / f"labels/train/{seed}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(test_yolo.LINES)
    (source / "data.yaml").write_text("path: .\ntrain: images/train\nnames:\n  0: nucleus\n")


WRITTEN: dict[str, Write] = {
    "coco": coco,
    "conic": test_arrays.write_conic,
    "consep": test_matlab.write_consep,
    "dsb2018": dsb2018,
    "folders": folders,
    "geojson": geojson,
    "labelme": labelme,
    "lizard": test_matlab.write_lizard,
    "matlab": matlab,
    "monusac": monusac,
    "monuseg": monuseg,
    "nuinsseg": nuinsseg,
    "pannuke": test_arrays.write_fold,
    "pannuke-parquet": tables,
    "suffixes": suffixes,
    "yolo": yolo,
}
PAINTED = {"folders", "suffixes"}
"""Where nuclei are not known one by one, as these are written here."""


def write_apart(layout: str, source: Path) -> None:
    """The folder of a layout, with pictures that no other has: copies would share their groups."""
    source.mkdir(parents=True)
    real = np.random.default_rng
    place = sorted(WRITTEN).index(layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "default_rng", lambda seed: real((place, seed)))
        WRITTEN[layout](source)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The imported folder of every layout."""
    root = tmp_path_factory.mktemp("layouts")
    found = {}
    for layout in LAYOUTS:
        write_apart(layout, root / "source" / layout)
        out = found[layout] = root / "patches" / layout
        words = ("--out", out, "--size", 64, "--small", "scale", "--licence", "CC0-1.0")
        words = (*words, "--modality", f"as-{layout}")
        import_patches.main([str(w) for w in (layout, root / "source" / layout, *words)])
    return found


def test_every_layout_is_made_here() -> None:
    assert sorted(WRITTEN) == sorted(LAYOUTS)


@pytest.mark.parametrize("layout", sorted(WRITTEN))
def test_look_names_the_layout_and_no_other(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_apart(layout, tmp_path / "source")
    import_patches.main(["--look", str(tmp_path / "source")])
    said = capsys.readouterr().out
    assert [line.partition(":")[0] for line in said.splitlines()] == [layout]


@pytest.mark.parametrize("layout", sorted(WRITTEN))
def test_an_import_gives_patches_with_masks_and_ids(layout: str, patches: dict[str, Path]) -> None:
    samples = read_samples(patches[layout], [])
    assert len({sample.group for sample in samples}) > 1
    for sample in samples:
        patch = read_patch(sample)
        assert patch.mask.any()
        assert (patch.ids is None) == (layout in PAINTED)
    with (patches[layout] / "manifest.csv").open(newline="") as file:
        assert {row["modality"] for row in csv.DictReader(file)} == {f"as-{layout}"}
    with Image.open(patches[layout] / "overview.png") as sheet:
        assert sheet.width == 4 * 64


@pytest.fixture(scope="module")
def served(patches: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A service with a checkpoint that was trained on all of them."""
    root = tmp_path_factory.mktemp("trained")
    data = [word for folder in patches.values() for word in ("--data", folder)]
    steps = [
        word for name in ("tokenizer", "prior", "segmenter") for word in (f"--{name}-steps", 2)
    ]
    places = ("--workdir", root / "run", "--out", root / "checkpoint")
    run("train", *data, *places, "--size", "test", *steps)
    up = Up(root / "checkpoint").ready()
    try:
        yield up
    finally:
        up.close()


def test_what_was_trained_on_every_layout_draws_each(served: Up) -> None:
    labels = {label["name"] for label in served.http.get("/labels").json()["labels"]}
    assert {f"as-{layout}" for layout in LAYOUTS} <= labels
    for layout in LAYOUTS:
        answer = served.http.post("/generate?wait=60", json={"label": f"as-{layout}", "seed": 1})
        assert answer.status_code == 200, answer.text
        assert answer.json()["images"][0]["mask_png"]
