"""Turns tokens and pixels into the files of an image: image, mask and instances as PNG, and tokens.

The bytes are a pure function of model version, numerics and image request. They contain no times,
job ids or worker names. Knows no Redis and no RQ: `pathar generate` uses it without a server.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.engine import BUILD_SINCE, Engine, Patch, TokenGrids
from model.request import SIDES, ImageRequest, ModelInfo, RequestError, resolve
from model.segmenter import dice
from model.structure import reference
from pathar.contract import (
    IMAGE_NAME,
    INSTANCES_NAME,
    MASK_NAME,
    MAX_SIDE,
    RECORD_KEY,
    TOKENS_NAME,
    XMP,
    XMP_KEY,
    canonical_json,
    numerics_of,
    pixel_size,
    pixels_sha256,
    sha256,
)
from worker.png import ENCODER, encode_png

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
NOTE = "synthetic, not for diagnosis"
DICE_DIGITS = 4


def made_with(engine: Engine) -> dict[str, str]:
    """Everything but the model version that determines the bytes."""
    return {**engine.facts, "png": ENCODER}


def numerics(engine: Engine) -> str:
    """12 hex digits for `made_with`."""
    return numerics_of(made_with(engine))


def image_files(
    patch: Patch,
    tokens: TokenGrids,
    request: ImageRequest,
    model: ModelInfo,
    facts: Mapping[str, str],
) -> dict[str, bytes]:
    """The files of one image by name: RGB PNG, mask PNG (8 bits, 0 and 255), PNG of the nuclei's
    ids (16 bits, 0 = ground), tokens JSON.

    `facts` are `made_with` the engine that drew it.
    """
    ids = {"structure_tokens": tokens.structure, "appearance_tokens": tokens.appearance}
    listed = canonical_json({name: grid.tolist() for name, grid in ids.items()})
    record = _origin(model, request, facts) | {"tokens_sha256": sha256(listed)}
    if isinstance(request.structure, bytes):
        record["given_mask_sha256"] = reference(request.structure).sha256
        record["mask_dice"] = kept(request.structure, patch.mask)
    record |= _quality(patch, tokens)
    of_image = {name: _packed(grid) for name, grid in ids.items()}
    of_others = {"image_sha256": _digest(patch.image)}
    return {
        IMAGE_NAME: _png(patch.image, record | of_image | {"file": IMAGE_NAME}),
        MASK_NAME: _png(patch.mask, record | of_others | {"file": MASK_NAME}),
        INSTANCES_NAME: _png(patch.instances, record | of_others | {"file": INSTANCES_NAME}),
        TOKENS_NAME: listed.encode(),
    }


def kept(given: bytes, mask: NDArray[np.uint8]) -> float:
    """The Dice of a given mask, as bits, and a mask [H, W] of 0 and 255."""
    ours = np.unpackbits(np.frombuffer(given, np.uint8)).reshape(mask.shape)
    return round(dice(ours.astype(bool), mask > 0), DICE_DIGITS)


def _origin(model: ModelInfo, request: ImageRequest, facts: Mapping[str, str]) -> dict[str, Any]:
    """What the records of all files of an image say (docs/provenance.md)."""
    mpp = model.mpp(request.label)
    return {
        **({"mpp": mpp} if mpp else {}),
        **(dict(zip(SIDES, request.size, strict=True)) if request.size else {}),
        "generator": "PathAR",
        "software_version": BUILD_SINCE,
        "synthetic": True,
        "note": NOTE,
        "model": model.name,
        "model_version": model.version,
        "label": request.label,
        "settings": request.to_dict()["settings"],
        "seed": request.seed,
        "given_structure": request.structure is not None,
        "numerics": model.numerics,
        "made_with": dict(facts),
    }


def _quality(patch: Patch, tokens: TokenGrids) -> dict[str, Any]:
    """How many nuclei there are and, where they are known, agreement and log-likelihood."""
    likelihood = tokens.log_likelihood
    return {
        "nuclei": int(patch.instances.max()),
        **({} if patch.agreement is None else {"agreement": patch.agreement}),
        **({} if likelihood is None else {"log_likelihood": asdict(likelihood)}),
    }


def _png(pixels: Pixels, record: Mapping[str, Any]) -> bytes:
    """A PNG with its record, completed by the digests of its pixels and of the record itself."""
    said = {**record, "pixels_sha256": _digest(pixels)}
    said["record_sha256"] = sha256(canonical_json(said))
    return encode_png(pixels, {RECORD_KEY: canonical_json(said), XMP_KEY: XMP}, pixel_size(said))


def _digest(pixels: Pixels) -> str:
    return pixels_sha256(pixels.shape, pixels.astype(pixels.dtype.newbyteorder(">")).tobytes())


def _packed(grid: NDArray[np.int64]) -> str:
    """Token ids as base64 of 16 bits each, little endian."""
    return base64.b64encode(grid.astype("<u2").tobytes()).decode()


def check_image(request: ImageRequest, model: ModelInfo, max_side: int = MAX_SIDE) -> None:
    """Raises RequestError unless each field has the right type and is in range for this model.

    The service has checked the request already. This check protects the engine from other writers
    to the queue. The engine checks given structure.
    """
    fields = {"label": request.label, "seed": request.seed, **asdict(request.settings)}
    if request.size is not None:
        if request.structure is not None:
            raise RequestError("structure", "one", "none for an image of its own width and height")
        fields |= dict(zip(SIDES, request.size, strict=True))
    resolve(fields, model, seed=0, max_side=max_side)
