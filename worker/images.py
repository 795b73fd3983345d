"""Turns tokens and pixels into the files of an image: image, mask and instances as PNG, and tokens.

The bytes are a pure function of model version, numerics and image request. They contain no times,
job ids or worker names. Knows no Redis and no RQ: `pathar generate` uses it without a server.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.engine import BUILD_SINCE, Engine, Patch, TokenGrids
from model.given import Given, Size, Stream, reference
from model.request import SIDES, ImageRequest, ModelInfo, resolve
from model.segmenter import dice
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
    if isinstance(request.given, Given):
        record |= _of_given(request.given, request.size, tokens, patch)
    record |= _quality(patch, tokens)
    of_image = {name: _packed(grid) for name, grid in ids.items()}
    of_others = {"image_sha256": _digest(patch.image)}
    return {
        IMAGE_NAME: _png(patch.image, record | of_image | {"file": IMAGE_NAME}),
        MASK_NAME: _png(patch.mask, record | of_others | {"file": MASK_NAME}),
        INSTANCES_NAME: _png(patch.instances, record | of_others | {"file": INSTANCES_NAME}),
        TOKENS_NAME: listed.encode(),
    }


def kept_dice(mask: Stream, drawn: NDArray[np.uint8], grid: tuple[int, ...]) -> float:
    """The Dice of a given mask and a drawn one [H, W] of 0 and 255, in the locations kept of a grid
    of [rows, columns]."""
    assert isinstance(mask.content, bytes)
    wanted = np.unpackbits(np.frombuffer(mask.content, np.uint8)).reshape(drawn.shape).astype(bool)
    kept = np.array(mask.kept(math.prod(grid))).reshape(grid)
    cell = [side // count for side, count in zip(drawn.shape, grid, strict=True)]
    inside = np.kron(kept, np.ones(cell, bool))
    return round(dice(wanted & inside, (drawn > 0) & inside), DICE_DIGITS)


def _of_given(given: Given, size: Size | None, tokens: TokenGrids, patch: Patch) -> dict[str, Any]:
    """What the records say of what was given, beside `given_structure`."""
    told: dict[str, Any] = {} if given.appearance is None else {"given_appearance": True}
    for name, stream in (("structure", given.structure), ("appearance", given.appearance)):
        if stream is not None and stream.keep is not None:
            told[f"kept_{name}"] = base64.b64encode(stream.keep).decode()
    refs = reference(given, size)
    if given.structure is not None and given.structure.kind == "mask":
        assert refs.structure is not None
        told["given_mask_sha256"] = refs.structure.sha256
        told["mask_dice"] = kept_dice(given.structure, patch.mask, tokens.structure.shape)
    if given.structure is not None and given.structure.kind == "segmented":
        told["segmented"] = True
    if given.appearance is not None and given.appearance.kind == "image":
        assert refs.appearance is not None
        told["given_image_sha256"] = refs.appearance.sha256
    return told


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
        "given_structure": request.given is not None and request.given.structure is not None,
        "numerics": model.numerics,
        "made_with": dict(facts),
    }


def _quality(patch: Patch, tokens: TokenGrids) -> dict[str, Any]:
    """How many nuclei there are and, where they are known, agreement and log-likelihood."""
    likelihood, of_kept = tokens.log_likelihood, tokens.kept_log_likelihood
    return {
        "nuclei": int(patch.instances.max()),
        **({} if patch.agreement is None else {"agreement": patch.agreement}),
        **({} if likelihood is None else {"log_likelihood": asdict(likelihood)}),
        **({} if of_kept is None else {"kept_log_likelihood": asdict(of_kept)}),
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
    to the queue. The engine checks what is given.
    """
    fields = {"label": request.label, "seed": request.seed, **asdict(request.settings)}
    fields["best_of"] = 1 + len(request.rivals)
    for seed in request.rivals:
        resolve({"label": request.label, "seed": seed}, model, seed=0)
    if request.size is not None:
        fields |= dict(zip(SIDES, request.size, strict=True))
    resolve(fields, model, seed=0, max_side=max_side)
