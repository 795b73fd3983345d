from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.checkpoint import load_checkpoint
from model.engine import Engine, Patch, TokenGrids, load_engine
from model.request import ModelInfo
from pathar.contract import FILE_NAMES, MAX_SEED, numerics_of
from store.results import room
from tests.worker.conftest import THREADS, alone, ask
from worker.images import image_files, numerics
from worker.png import ENCODER

FACTS = {
    "decoder": "of a long name, as processors have them",
    "torch": "2.13.0+cpu",
    "tried": "0" * 12,
}
PROCESSORS = ("ALL", "AVX2", "SSE41")
"""What oneDNN may take this processor for: with each it chooses other kernels."""
DRAWING = """
import hashlib, sys
import numpy as np
from model.engine import TokenGrids, load_engine
from worker.images import image_files, numerics

slots, threads = map(int, sys.argv[2:])
engine = load_engine(sys.argv[1], device="cpu", slots=slots, threads=threads)
size, chance = engine.config.tokenizer.codebook_size, np.random.default_rng(1)
drawn = hashlib.sha256()
for _ in range(4):
    grids = chance.integers(0, size, (2, engine.layout.grid_size, engine.layout.grid_size))
    patch = engine.render(TokenGrids(*grids))
    drawn.update(patch.image.tobytes() + patch.mask.tobytes())
print(numerics(engine), drawn.hexdigest())
"""


def drawn_on(processor: str, checkpoint: Path, *, slots: int = 1) -> list[str]:
    """The numerics of an engine in a process of its own, and the hash of pixels that it draws."""
    words = [str(checkpoint), str(slots), str(THREADS)]
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": processor}
    command = [sys.executable, "-c", DRAWING, *words]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_the_files_are_an_rgb_image_a_binary_mask_ids_of_nuclei_and_both_token_grids(
    engine: Engine, info: ModelInfo
) -> None:
    (files,) = alone(engine, ask())
    assert set(files) == set(FILE_NAMES)
    image, mask = opened(files["image.png"]), opened(files["mask.png"])
    size = (info.image_size, info.image_size)
    assert (image.mode, image.size) == ("RGB", size)
    assert (mask.mode, mask.size) == ("L", size)
    assert set(np.unique(np.asarray(mask))) <= {0, 255}
    ids = opened(files["instances.png"])
    assert (ids.mode, ids.size) == ("I;16", size)
    assert np.array_equal(np.asarray(ids) > 0, np.asarray(mask) > 0)
    tokens = json.loads(files["tokens.json"])
    for name in ("structure_tokens", "appearance_tokens"):
        grid = np.array(tokens[name])
        assert grid.shape == (info.grid_size, info.grid_size)
        assert 0 <= grid.min() <= grid.max() < info.codebook_size


def record(data: bytes) -> dict[str, Any]:
    """What a PNG says of its origin."""
    said: dict[str, Any] = json.loads(opened(data).text["pathar"])  # type: ignore[attr-defined]
    return said


def test_a_png_says_what_drew_it_and_that_it_is_synthetic(engine: Engine, info: ModelInfo) -> None:
    request = ask(seed=5)
    (files,) = alone(engine, request)
    for name in ("image.png", "mask.png", "instances.png"):
        said = record(files[name])
        assert (said["generator"], said["synthetic"], said["file"]) == ("PathAR", True, name)
        assert (said["model"], said["model_version"]) == (info.name, info.version)
        assert (said["label"], said["seed"], said["given_structure"]) == ("histology", 5, False)
        assert said["settings"] == asdict(request.settings[0])
        assert said["note"] == "synthetic, not for diagnosis"


def test_a_png_spells_out_the_numerics(engine: Engine) -> None:
    (files,) = alone(engine, ask())
    said = record(files["mask.png"])
    assert said["numerics"] == numerics(engine) == numerics_of(said["made_with"])
    assert said["made_with"] == {**engine.facts, "png": ENCODER}


def test_a_mask_points_at_its_image_and_both_at_their_tokens(engine: Engine) -> None:
    (files,) = alone(engine, ask())
    image, mask = record(files["image.png"]), record(files["mask.png"])
    assert mask["image_sha256"] == image["pixels_sha256"]
    of_tokens = hashlib.sha256(files["tokens.json"]).hexdigest()
    assert image["tokens_sha256"] == mask["tokens_sha256"] == of_tokens
    for name, grid in json.loads(files["tokens.json"]).items():
        ids = np.frombuffer(base64.b64decode(image[name]), "<u2")
        assert ids.tolist() == np.array(grid).flatten().tolist()


def test_a_png_says_how_good_the_pair_is_and_says_the_same_in_a_batch(
    engine: Engine, slow_checkpoint: Path
) -> None:
    (files,) = alone(engine, ask(seed=3))
    said = record(files["image.png"])
    ids = np.asarray(opened(files["instances.png"]))
    assert said["nuclei"] == ids.max() > 0
    assert 0 < said["agreement"] < 1
    assert set(said["log_likelihood"]) == {"structure", "appearance"}
    assert all(value < 0 for value in said["log_likelihood"].values())
    batch = load_engine(slow_checkpoint, device="cpu", slots=4, threads=THREADS)
    together = alone(batch, ask(n=4, seed=3))
    assert together[0] == files
    assert len({record(each["mask.png"])["agreement"] for each in together}) > 1


def test_without_a_segmenter_a_png_says_no_agreement(test_checkpoint: Path) -> None:
    checkpoint = replace(load_checkpoint(test_checkpoint), segmenter=None)
    engine = Engine(checkpoint, device="cpu", slots=1, threads=THREADS)
    (files,) = alone(engine, ask())
    assert "agreement" not in record(files["image.png"])
    assert record(files["image.png"])["log_likelihood"]


@pytest.mark.parametrize("name", ["image.png", "mask.png"])
def test_other_software_reads_that_a_trained_model_made_it(engine: Engine, name: str) -> None:
    (files,) = alone(engine, ask())
    read = opened(files[name]).getxmp()  # type: ignore[no-untyped-call]
    source = read["xmpmeta"]["RDF"]["Description"]["DigitalSourceType"]
    assert source == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_a_png_says_how_large_a_pixel_is_where_the_training_data_say_it(engine: Engine) -> None:
    files = {label: alone(engine, ask(label=label))[0] for label in ("histology", "blood")}
    for name in ("image.png", "mask.png", "instances.png"):
        dots = opened(files["histology"][name]).info["dpi"]
        assert dots == pytest.approx((25400 / 0.25, 25400 / 0.25))
        assert "dpi" not in opened(files["blood"][name]).info


def test_drawing_twice_gives_the_same_bytes(engine: Engine) -> None:
    assert alone(engine, ask(2)) == alone(engine, ask(2))


@pytest.mark.processes
def test_processors_that_draw_other_bits_have_other_numerics(slow_checkpoint: Path) -> None:
    seen = [drawn_on(processor, slow_checkpoint) for processor in PROCESSORS]
    kinds = {pixels: number for number, pixels in seen}
    if len(kinds) == 1:
        pytest.skip("oneDNN draws the same with each of them here")
    assert len(set(kinds.values())) == len(kinds)


@pytest.mark.processes
def test_every_start_on_one_machine_has_the_same_numerics(
    slow_checkpoint: Path, engine: Engine
) -> None:
    usual = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL")
    assert drawn_on(usual, slow_checkpoint, slots=5)[0] == numerics(engine)


@pytest.mark.parametrize(
    ("image_size", "grid_size", "codebook_size"), [(16, 2, 16), (256, 16, 4096)]
)
def test_no_image_takes_more_bytes_than_are_kept_for_it(
    image_size: int, grid_size: int, codebook_size: int, info: ModelInfo
) -> None:
    """Noise is what an encoder makes largest."""
    model = replace(info, image_size=image_size, grid_size=grid_size, codebook_size=codebook_size)
    chance = np.random.default_rng(1)
    noise = chance.integers(0, 256, (image_size, image_size, 4), dtype=np.uint8)
    ids = chance.integers(0, 2**16, (image_size, image_size), dtype=np.uint16)
    grid = np.full((grid_size, grid_size), codebook_size - 1)
    (request,) = ask(seed=MAX_SEED).images()
    patch = Patch(noise[..., :3], noise[..., 3], ids)
    files = image_files(patch, TokenGrids(grid, grid), request, model, FACTS)
    taken = sum(len(data) for data in files.values())
    assert taken <= room(model)
