"""Labels at another scale: from originals through all stages to a request."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.checkpoint import load_checkpoint
from pathar.contract import record_of
from tests.pathar.test_cli import called
from tests.training.commands import run
from tests.training.import_sources import patch, save
from training.tiles import shrunk

SIDE, SMALL = 128, 96
"""Of originals: of two tiles a side, and of one that is too small for half the scale."""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = (tmp_path_factory.mktemp("scale") / name for name in ("source", "out"))
    for seed, side in enumerate((SIDE, SIDE, SMALL)):
        image, labels = patch(seed, side, side)
        save(source / f"images/slide{seed}.png", image)
        save(source / f"masks/slide{seed}.png", labels)
    words = ("--out", out, "--licence", "CC0-1.0", "--modality", "histology", "--size", 64)
    words += ("--nuclei", "ids", "--organ", "colon", "--mpp", 0.25, "--scales", "0.5")
    said = run("import_patches", "folders", source, *words)
    assert "at scale 0.5: 2 originals, 2 tiles" in said
    assert "3 originals, 14 tiles, 0 of them kept" in said
    assert "14 of them kept" in run("import_patches", "folders", source, *words)
    said = run("import_patches", "folders", source, *words[:-1], "0.25", code=1)
    assert "use another --out" in said
    words = ("--out", source / "other", *words[2:-1])
    assert "no original has 256 pixels" in run(
        "import_patches", "folders", source, *words, "0.25", code=1
    )
    assert "got '0.3'" in run("import_patches", "folders", source, *words, "0.3", code=2)
    return out


def test_tiles_at_half_the_magnification_show_four_times_as_much(imported: Path) -> None:
    with (imported / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["modality"] == "histology@0.5"]
    assert [row["organ"] for row in rows] == ["colon@0.5"] * 2
    assert [(row["mpp"], row["group"]) for row in rows] == [("0.5", "slide0"), ("0.5", "slide1")]
    for seed, row in enumerate(rows):
        image, labels = patch(seed, SIDE, SIDE)
        tile, mask, ids = (
            np.array(Image.open(imported / row[kind])) for kind in ("image", "mask", "instances")
        )
        mean = image.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(tile - mean).max() <= 0.5
        assert np.array_equal(ids, shrunk(labels, 2))
        assert np.array_equal(mask, (ids > 0) * np.uint8(255))
        assert np.array_equal(np.unique(ids), np.unique(labels))


def test_a_smaller_map_has_the_nucleus_that_most_pixels_have() -> None:
    ids = np.array([[1, 1, 0, 2], [3, 1, 0, 0], [0, 4, 5, 5], [0, 4, 6, 6]])
    assert shrunk(ids, 2).tolist() == [[1, 0], [4, 5]]
    assert shrunk(ids > 0, 2).tolist() == [[True, False], [True, True]]


@pytest.mark.processes
def test_a_prior_that_learned_two_scales_is_asked_for_either(
    imported: Path, tmp_path: Path
) -> None:
    folder, checkpoint, out = (tmp_path / name for name in ("run", "checkpoint", "out"))
    data = ("--data", imported, "--workdir", folder)
    run("tokenizer", "--size", "test", "--batch", "2", "--every", "2", "--steps", 2, *data)
    run("tokens", *data)
    run("prior", "--batch", "2", "--every", "2", "--steps", 2, "--workdir", folder)
    run("export", "--workdir", folder, "--out", checkpoint, "--name", "two-scales")
    labels = load_checkpoint(checkpoint).config.labels
    assert [(label.name, label.mpp) for label in labels] == [
        *(("histology", 0.25), ("histology@0.5", 0.5)),
        *(("colon", 0.25), ("colon@0.5", 0.5)),
    ]
    words = ("generate", "--label", "histology", "--seed", "3", "--out", str(out))
    for scale in ((), ("--scale", "1"), ("--scale", "0.5")):
        done = called(*words, *scale, checkpoint=checkpoint, PATHAR_THREADS="1")
        assert done.returncode == 0, done.stderr
    images = {path.name.partition("_")[0]: path for path in out.glob("*_image.png")}
    assert set(images) == {"histology", "histology@0.5"}
    records = [record_of(images[name].read_bytes()) for name in sorted(images)]
    assert [record["label"] for record in records] == ["histology", "histology@0.5"]
    assert [record["mpp"] for record in records] == [0.25, 0.5]
    assert records[0]["tokens_sha256"] != records[1]["tokens_sha256"]
    told = called("verify", str(out), "--regenerate", checkpoint=checkpoint, PATHAR_THREADS="1")
    assert told.stdout.count("drawn again bit for bit") == 2, told.stdout
    refused = called(*words, "--scale", "0.25", checkpoint=checkpoint)
    assert refused.returncode == 2
    assert "scale: got 0.25, expected one of 1, 0.5: the scales of histology" in refused.stderr
