"""Images beyond one patch through the front door: command, client, service, worker, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.checkpoint import load_checkpoint
from pathar import Client, errors
from pathar.contract import FILE_NAMES, record_of
from pathar.ome_tiff import pyramid, write_ome_tiff
from tests.pathar.test_cli import called
from tests.pathar.test_generate import contents
from tests.pathar.test_paint import MASK, _here, _planes
from tests.running import Up

WIDE = np.tile(MASK, (1, 2))
WORDS = ("generate", "--label", "blood", "--seed", "9", "--width", "160", "--height", "112")


@pytest.mark.processes
def test_a_large_image_is_drawn_here_and_by_a_service_into_the_same_files(
    stack: Up, test_checkpoint: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    settings = _here(test_checkpoint)
    local = called(*WORDS, "--out", str(here), "--ome-tiff", **settings)
    remote = called(*WORDS, "--out", str(there), "--url", stack.run()["url"])
    assert (local.returncode, remote.returncode) == (0, 0), local.stderr + remote.stderr
    [tiff] = here.glob("*.ome.tif")
    assert {tiff.name} | set(contents(there)) == set(contents(here))
    assert contents(there).items() <= contents(here).items()
    [image] = here.glob("*_image.png")
    with Image.open(image) as opened:
        assert opened.size == (160, 112)
    assert _of_tiff(tiff)[0].shape == (112, 160, 3)
    for url in ((), ("--url", stack.run()["url"])):
        told = called("verify", str(here), "--regenerate", *url, **settings)
        assert "drawn again bit for bit" in told.stdout, told.stdout
    again = called(*WORDS, "--out", str(here), "--ome-tiff", **settings)
    assert again.returncode == 0
    other = called(*WORDS[:5], "--width", "160", "--out", str(there), **settings)
    assert other.returncode == 0
    assert len(contents(there)) == 2 * len(FILE_NAMES), "another size has another name"


@pytest.mark.processes
def test_the_client_and_the_api_know_the_size(stack: Up) -> None:
    with Client(stack.run()["url"]) as client:
        job = client.submit("histology", seed=3, width=72, height=128)
        [pair] = client.pairs(job.id)
        assert pair.image.size == pair.mask.size == pair.instances.size == (72, 128)
        assert pair.structure_tokens.shape == pair.appearance_tokens.shape == (16, 9)
        assert record_of(pair.image_png)["width"] == 72
        assert pair.nuclei == np.asarray(pair.instances).max()
        assert client.job(job.id).settings["height"] == 128
        patch = client.submit("histology", seed=3, width=64, height=64)
        assert "width" not in patch.settings, "the size of the model's patches is none of its own"


@pytest.mark.processes
def test_a_large_mask_is_painted_here_and_by_a_service_and_its_pair_gives_its_structure(
    stack: Up, test_checkpoint: Path, tmp_path: Path
) -> None:
    mask = np.tile(MASK, (2, 3))[:112, 17:177]
    Image.fromarray(mask).save(tmp_path / "mask.png")
    here, there = tmp_path / "here", tmp_path / "there"
    words = ("paint", str(tmp_path / "mask.png"), *WORDS[1:], "--out")
    settings, url = _here(test_checkpoint), stack.run()["url"]
    local = called(*words, str(here), **settings)
    remote = called(*words, str(there), "--url", url)
    assert (local.returncode, remote.returncode) == (0, 0), local.stderr + remote.stderr
    assert contents(here) == contents(there)
    assert "Dice of" in remote.stderr
    for more in ((), ("--url", url)):
        told = called("verify", str(here), "--regenerate", *more, **settings)
        assert "drawn again bit for bit" in told.stdout, told.stdout

    size: dict[str, Any] = {"width": 160, "height": 112}
    with Client(url) as client:
        [pair] = client.generate("blood", seed=9, structure=tmp_path / "mask.png", **size)
        assert pair.files()["image.png"] in contents(here).values()
        for form in (pair, {"tokens": pair.structure_tokens.tolist()}):
            other, same = client.generate(["cervix", "blood"], seed=9, structure=form, **size)
            assert other.structure == same.structure == pair.structure
            assert (same.appearance == pair.appearance, other.appearance == pair.appearance) == (
                True,
                False,
            )
    tokenizer = load_checkpoint(test_checkpoint).tokenizer.double()
    ids = pair.structure_tokens
    for rows, columns, top, left in (
        (slice(0, 8), slice(0, 8), 0, 0),
        (slice(0, 8), slice(16, 20), 0, 12),
        (slice(8, 14), slice(8, 16), 6, 8),
        (slice(8, 14), slice(16, 20), 6, 12),
    ):
        patch = mask[8 * top : 8 * top + 64, 8 * left : 8 * left + 64]
        encoded = tokenizer.encode_structure(_planes(patch).double())[0].numpy()
        inside = encoded[rows.start - top : rows.stop - top, columns.start - left :]
        assert np.array_equal(ids[rows, columns], inside[:, : columns.stop - columns.start])


@pytest.mark.processes
@pytest.mark.parametrize(
    ("fields", "named", "expected"),
    [
        ({"width": 100}, "width", "a multiple of 8 from 64 to 2048"),
        ({"height": 56}, "height", "a multiple of 8 from 64 to 2048"),
        ({"width": 4096}, "width", "up to 2048"),
        ({"width": 2048, "height": 2048}, "width", "a smaller image"),
        ({"width": 512, "height": 512, "n": 9}, "n", "at most"),
        ({"width": 128, "structure": Image.fromarray(MASK)}, "structure.mask_png", "128 x 64"),
        ({"width": 128, "appearance": {"tokens": [[0] * 16] * 8}}, "appearance", "none"),
        ({"width": 128, "structure": {"tokens": [[0] * 8] * 8}}, "structure.tokens", "rows of 16"),
        (
            {"width": 128, "structure": {"tokens": [[None] * 16] * 7 + [[0] * 16]}},
            "structure.tokens",
            "the whole structure",
        ),
        (
            {"width": 128, "structure": Image.fromarray(WIDE), "keep": Image.fromarray(WIDE)},
            "structure.keep_png",
            "none",
        ),
        ({"structure": {"job_id": "of-112"}}, "structure.job_id", "of 64 x 64 pixels"),
    ],
)
def test_a_size_that_the_model_cannot_draw_is_refused(
    stack: Up, fields: dict[str, Any], named: str, expected: str
) -> None:
    with Client(stack.run()["url"]) as client:
        client.submit("histology", width=112, job_id="of-112", seed=1)
        with pytest.raises(errors.InvalidRequest) as refused:
            client.submit("histology", **fields)
    [error] = refused.value.errors
    assert error["field"] == named
    assert expected in error["expected"]


def test_an_ome_tiff_has_the_pixels_their_halves_and_their_size(tmp_path: Path) -> None:
    from worker.png import encode_png

    pixels = np.random.default_rng(0).integers(0, 256, (600, 1030, 3), np.uint8)
    path = tmp_path / "image.ome.tif"
    write_ome_tiff(path, encode_png(pixels, {"pathar": '{"mpp":0.25,"label":"blood"}'}))
    levels = _of_tiff(path)
    assert [level.shape[:2] for level in levels] == [(600, 1030), (300, 515), (150, 257), (75, 128)]
    assert all(np.array_equal(a, b) for a, b in zip(levels, pyramid(pixels), strict=True))
    assert np.abs(levels[1][0, 0].astype(int) - pixels[:2, :2].mean((0, 1))).max() <= 0.5
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        told = tiff.ome_metadata
    assert told is not None
    assert 'PhysicalSizeX="0.25"' in told
    assert "blood" in told


def _of_tiff(path: Path) -> list[np.ndarray]:
    """The levels of an OME-TIFF."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        [series] = tiff.series
        assert all(page.is_tiled for level in series.levels for page in level.pages)
        return [level.asarray() for level in series.levels]
