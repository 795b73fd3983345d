"""From tokens and pixels to the three files of an image: image.png, mask.png, tokens.json.

The bytes are a pure function of model version, numerics and image request: no times, no job ids,
no worker names. Knows no Redis and no RQ, so that `pathar generate` uses it without a server.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, features
from PIL import __version__ as PILLOW_VERSION

from model.contract import IMAGE_NAME, MASK_NAME, TOKENS_NAME
from model.engine import Engine, Patch, TokenGrids
from model.request import ImageRequest, ModelInfo, resolve

PROVENANCE_KEY = "pathar"
NOTE = "synthetic, not for diagnosis"
COMPRESS_LEVEL = 1
"""Of zlib: level 6 takes about eight times as long for files 15% smaller."""


def numerics(engine: Engine) -> str:
    """12 hex digits for what decides the bytes beside the model's version."""
    encoder = {"pillow": PILLOW_VERSION, "zlib": str(features.version("zlib"))}
    return hashlib.sha256(_canonical({**engine.facts, **encoder}).encode()).hexdigest()[:12]


def provenance(model: ModelInfo, request: ImageRequest) -> str:
    """What a PNG says of its own origin, as canonical JSON."""
    return _canonical(
        {
            "generator": "PathAR",
            "model": model.name,
            "version": model.version,
            "numerics": model.numerics,
            "label": request.label,
            "seed": request.seed,
            "settings": request.to_dict()["settings"],
            "given_structure": request.structure is not None,
            "note": NOTE,
        }
    )


def image_files(
    patch: Patch, tokens: TokenGrids, request: ImageRequest, model: ModelInfo
) -> dict[str, bytes]:
    """The files of one image by name: PNG in RGB, PNG in mode L with 0 and 255, JSON."""
    text = provenance(model, request)
    grids = {
        "structure_tokens": tokens.structure.tolist(),
        "appearance_tokens": tokens.appearance.tolist(),
    }
    return {
        IMAGE_NAME: _png(patch.image, text),
        MASK_NAME: _png(patch.mask, text),
        TOKENS_NAME: _canonical(grids).encode(),
    }


def check_image(request: ImageRequest, model: ModelInfo) -> None:
    """RequestError unless every field is of the right type and in range for this model.

    The service has checked it before; this guards the engine against whoever else can write to
    the queue. Given structure tokens are checked by the engine.
    """
    settings = asdict(request.settings)
    resolve({"label": request.label, "seed": request.seed, **settings}, model, seed=0)


def _png(pixels: NDArray[np.uint8], text: str) -> bytes:
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt(PROVENANCE_KEY, text)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=notes, compress_level=COMPRESS_LEVEL)
    return buffer.getvalue()


def _canonical(data: dict[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))
