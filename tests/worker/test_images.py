from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image

from model.engine import Engine
from model.request import ModelInfo
from store.results import NAMES
from tests.worker.conftest import alone, ask
from worker.images import numerics


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_the_files_are_an_rgb_image_a_binary_mask_and_both_token_grids(
    engine: Engine, info: ModelInfo
) -> None:
    (files,) = alone(engine, ask())
    assert set(files) == set(NAMES)
    image, mask = opened(files["image.png"]), opened(files["mask.png"])
    size = (info.image_size, info.image_size)
    assert (image.mode, image.size) == ("RGB", size)
    assert (mask.mode, mask.size) == ("L", size)
    assert set(np.unique(np.asarray(mask))) <= {0, 255}
    tokens = json.loads(files["tokens.json"])
    for name in ("structure_tokens", "appearance_tokens"):
        grid = np.array(tokens[name])
        assert grid.shape == (info.grid_size, info.grid_size)
        assert 0 <= grid.min() <= grid.max() < info.codebook_size


def test_a_png_says_what_drew_it_and_that_it_is_synthetic(engine: Engine, info: ModelInfo) -> None:
    request = ask(seed=5)
    (files,) = alone(engine, request)
    for name in ("image.png", "mask.png"):
        notes = json.loads(opened(files[name]).text["pathar"])  # type: ignore[attr-defined]
        assert notes["generator"] == "PathAR"
        assert (notes["model"], notes["version"]) == (info.name, info.version)
        assert (notes["numerics"], notes["label"], notes["seed"]) == (
            numerics(engine),
            "histology",
            5,
        )
        assert notes["settings"]["top_k"] == request.settings.top_k
        assert notes["note"] == "synthetic, not for diagnosis"


def test_drawing_twice_gives_the_same_bytes(engine: Engine) -> None:
    assert alone(engine, ask(2)) == alone(engine, ask(2))
