"""Turns tokens and pixels into the files of an image: image, mask and instances as PNG, and tokens.

The bytes are a pure function of model version, numerics and image request. They contain no times,
job ids or worker names. Knows no Redis and no RQ: `pathar generate` uses it without a server.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from model.engine import Engine, Patch, TokenGrids
from model.request import ImageRequest, ModelInfo, resolve
from pathar.contract import IMAGE_NAME, INSTANCES_NAME, MASK_NAME, TOKENS_NAME
from worker.png import ENCODER, encode_png

PROVENANCE_KEY = "pathar"
NOTE = "synthetic, not for diagnosis"


def numerics(engine: Engine) -> str:
    """12 hex digits for everything but the model version that determines the bytes."""
    facts = {**engine.facts, "png": ENCODER}
    return hashlib.sha256(_canonical(facts).encode()).hexdigest()[:12]


def provenance(model: ModelInfo, request: ImageRequest) -> str:
    """The origin of an image as canonical JSON, stored in its PNGs."""
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
    """The files of one image by name: RGB PNG, mask PNG (8 bits, 0 and 255), PNG of the nuclei's
    ids (16 bits, 0 = ground), tokens JSON."""
    text = provenance(model, request)
    grids = {
        "structure_tokens": tokens.structure.tolist(),
        "appearance_tokens": tokens.appearance.tolist(),
    }
    said = (PROVENANCE_KEY, text, model.mpp(request.label))
    return {
        IMAGE_NAME: encode_png(patch.image, *said),
        MASK_NAME: encode_png(patch.mask, *said),
        INSTANCES_NAME: encode_png(patch.instances, *said),
        TOKENS_NAME: _canonical(grids).encode(),
    }


def check_image(request: ImageRequest, model: ModelInfo) -> None:
    """Raises RequestError unless each field has the right type and is in range for this model.

    The service has checked the request already. This check protects the engine from other writers
    to the queue. The engine checks given structure tokens.
    """
    settings = asdict(request.settings)
    resolve({"label": request.label, "seed": request.seed, **settings}, model, seed=0)


def _canonical(data: dict[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))
