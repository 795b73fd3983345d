"""Images beyond one patch through the front door: command, client, service, worker, verify."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.checkpoint import load_checkpoint
from pathar import Client, errors
from pathar.contract import FILE_NAMES, record_of
from pathar.ome_tiff import pyramid, write_ome_tiff
from pathar.records import read_png
from tests.pathar.test_cli import called
from tests.pathar.test_generate import contents
from tests.pathar.test_paint import MASK, _here, _planes
from tests.running import Up

WIDE = np.tile(MASK, (1, 2))
TALL = np.tile(MASK, (3, 2))[:136, 20:92]
TALL_PIXELS = np.stack([TALL, TALL // 2 + 40, 255 - TALL], 2)
TALL_REGION = np.full(TALL.shape, 255, np.uint8)
TALL_REGION[114:130, 10:30] = 0
"""A hole at the bottom, which the windows at the top do not see."""
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
        assert client.job(job.id).settings["histology"]["height"] == 128
        patch = client.submit("histology", seed=3, width=64, height=64)
        assert "width" not in patch.settings["histology"], (
            "the size of the model's patches is none of its own"
        )


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
def test_a_hole_in_a_large_image_is_filled_here_and_by_a_service_and_all_else_stays(
    stack: Up, test_checkpoint: Path, tmp_path: Path
) -> None:
    files = {"mask": TALL, "image": TALL_PIXELS, "keep": TALL_REGION}
    for name, pixels in files.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    here, there, whole = (tmp_path / name for name in ("here", "there", "whole"))
    size, settings, url = ("--width", "72", "--height", "136"), _here(test_checkpoint), stack.run()
    words = ("paint", str(tmp_path / "mask.png"), "--image", str(tmp_path / "image.png"), "--keep")
    words += (str(tmp_path / "keep.png"), "--best-of", "2", "--label", "blood", "--seed", "9")
    encode = ("encode", "--image", words[3], "--mask", words[1], "--label", "blood")
    for command in (
        (*words, *size, "--out", str(here)),
        (*words, *size, "--out", str(there), "--url", url["url"]),
        (*encode, *size, "--out", str(whole)),
    ):
        done = called(*command, **settings)
        assert done.returncode == 0, done.stderr
    assert contents(here) == contents(there)
    for more in ((), ("--url", url["url"])):
        told = called("verify", str(here), "--regenerate", *more, **settings)
        assert "drawn again bit for bit" in told.stdout, told.stdout

    filled, encoded = (
        read_png("image.png", next(folder.glob("*_image.png")).read_bytes())
        for folder in (here, whole)
    )
    assert filled.tokens is not None
    assert encoded.tokens is not None
    kept = TALL_REGION.reshape(17, 8, 9, 8).all((1, 3))
    assert np.array_equal(filled.tokens[:, kept], encoded.tokens[:, kept])
    assert (filled.tokens[:, ~kept] != encoded.tokens[:, ~kept]).any()
    tokenizer = load_checkpoint(test_checkpoint).tokenizer.double()
    for rows, top in ((slice(0, 8), 0), (slice(8, 16), 8), (slice(16, 17), 9)):
        patch = slice(8 * top, 8 * top + 64)
        pixels = torch.from_numpy(TALL_PIXELS[patch, :64]).permute(2, 0, 1)[None]
        ids = tokenizer.encode(pixels.double() / 127.5 - 1, _planes(TALL[patch, :64]).double())
        for ours, theirs in zip(encoded.tokens, ids, strict=True):
            inside = theirs[0, rows.start - top : rows.stop - top].numpy()
            assert np.array_equal(ours[rows, :8], inside)
    assert "log_likelihood" not in filled.record, "the prior saw no window that was kept whole"
    shape = hashlib.sha256(b"136 72 3\n" + TALL_PIXELS.tobytes()).hexdigest()
    assert filled.record["given_image_sha256"] == shape


@pytest.mark.processes
def test_either_stream_of_a_large_image_is_given_by_pairs_tokens_and_pictures(stack: Up) -> None:
    size: dict[str, Any] = {"width": 72, "height": 136}
    mask, image, keep = map(Image.fromarray, (TALL, TALL_PIXELS, TALL_REGION))
    with Client(stack.run()["url"]) as client:
        whole = client.encode("blood", image, mask, **size)
        found = client.encode("blood", image, **size)
        again = client.decode("blood", whole.structure_tokens, whole.appearance_tokens, **size)
        assert again.files()["tokens.json"] == whole.files()["tokens.json"]
        assert np.array_equal(np.asarray(again.image), np.asarray(whole.image))
        assert (whole.log_likelihood, found.appearance) == (None, whole.appearance)
        assert found.structure != whole.structure, "what the segmenter finds"
        many = client.generate("blood", n=4, seed=9, structure=whole, appearance=whole, keep=keep,
                               **size)  # fmt: skip
        [best] = client.generate("blood", seed=9, best_of=4, structure=mask, appearance=image,
                                 keep=keep, **size)  # fmt: skip
        fits = [sum(pair.kept_log_likelihood or ()) for pair in many]
        assert best.seed == many[fits.index(max(fits))].seed
        assert best.structure == many[fits.index(max(fits))].structure
        assert best.kept_log_likelihood == many[fits.index(max(fits))].kept_log_likelihood
        [free] = client.generate("blood", seed=9, appearance=whole, **size)
        assert (free.appearance, free.structure == whole.structure) == (whole.appearance, False)

        [patch] = client.generate("blood", seed=3)
        grids = []
        for ids in (patch.structure_tokens, patch.appearance_tokens):
            grid = np.full((17, 9), None, object)
            grid[5:13, :8] = ids
            grids.append({"tokens": grid.tolist()})
        [grown] = client.generate("blood", seed=4, structure=grids[0], appearance=grids[1], **size)
        for ours, theirs in ((grown.structure_tokens, patch.structure_tokens),
                             (grown.appearance_tokens, patch.appearance_tokens)):  # fmt: skip
            assert np.array_equal(ours[5:13, :8], theirs)
        assert grown.kept_log_likelihood is not None


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
        ({"width": 128, "structure": {"tokens": [[0] * 8] * 8}}, "structure.tokens", "rows of 16"),
        (
            {"width": 128, "structure": Image.fromarray(WIDE), "keep": Image.fromarray(MASK)},
            "structure.keep_png",
            "128 x 64",
        ),
        (
            {"width": 1032, "height": 1024, "appearance": Image.new("RGB", (1032, 1024))},
            "appearance.image_png",
            "up to 1048576 pixels",
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
