"""What a request's `structure` stands for: the mask or the tokens that its job keeps.

Knows no routes and no Redis keys.
"""

from __future__ import annotations

import base64
import binascii
import json

from model.mask_png import FIELD, read_mask_png
from model.request import ModelInfo, RequestError, check_structure
from model.structure import Structure
from pathar.contract import TOKENS_NAME
from service.context import Context
from service.request_schemas import EarlierPair, GivenMask, GivenTokens
from store.access import Owner

SHOWN = 20
"""Characters of a text that is no base64 which an error shows."""


def given_structure(
    context: Context,
    owner: Owner,
    given: GivenMask | GivenTokens | EarlierPair | None,
    model: ModelInfo,
) -> Structure | None:
    """The structure that a request gives, checked against its model. RequestError, ObjectsAway."""
    structure: Structure
    match given:
        case None:
            return None
        case GivenMask():
            structure = read_mask_png(_decoded(given.mask_png), model.image_size)
        case GivenTokens():
            structure = _flat(given.tokens, model)
        case EarlierPair():
            structure = _of_pair(context, owner, given, model)
    check_structure(structure, model)
    return structure


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(
            FIELD, text[:SHOWN], "base64 with its padding, and nothing else"
        ) from None


def _flat(rows: list[list[int]], model: ModelInfo) -> tuple[int, ...]:
    side = model.grid_size
    if [len(row) for row in rows] != [side] * side:
        found = " and ".join(sorted({str(len(row)) for row in rows})[:3])
        expected = f"{side} rows of {side} ids from 0 to {model.codebook_size - 1}"
        raise RequestError("structure.tokens", f"{len(rows)} rows of {found} ids", expected)
    return tuple(token for row in rows for token in row)


def _of_pair(
    context: Context, owner: Owner, given: EarlierPair, model: ModelInfo
) -> tuple[int, ...]:
    """The structure tokens of one of the owner's finished pairs, of this model version."""
    job = context.jobs.get(given.job_id, owner=owner)
    if job is None:
        raise RequestError("structure.job_id", given.job_id, "the id of a job of yours")
    if job.model.version != model.version:
        drawn = f"{job.model.name} {job.model.version[:12]}"
        expected = (
            f"a job of {model.name} {model.version[:12]}: tokens of another model mean others"
        )
        raise RequestError("structure.job_id", f"{given.job_id}, of {drawn}", expected)
    if given.index >= job.request.n:
        raise RequestError(
            "structure.index", given.index, f"an image of that job, 0 to {job.request.n - 1}"
        )
    tokens = context.results.get(owner.id, given.job_id, given.index, TOKENS_NAME)
    if tokens is None:
        raise RequestError("structure.index", given.index, "an image that is finished, with files")
    return _flat(json.loads(tokens)["structure_tokens"], model)
