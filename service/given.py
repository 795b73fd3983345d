"""What a request's `structure` and `appearance` stand for: what its job keeps of them.

Turns an earlier pair into its tokens; `model/given_forms.py` reads all other forms. Knows no routes
and no Redis keys.
"""

from __future__ import annotations

import json
import math
from typing import Any

from model.given import Given, Size
from model.given_forms import Form, read_given
from model.request import ModelInfo, RequestError
from pathar.contract import MOST_IMAGE_PIXELS, TOKENS_NAME
from service.context import Context
from service.request_schemas import EarlierPair, GenerateBody, GivenImage, Strict
from store.access import Owner


def given_of(
    context: Context, owner: Owner, body: GenerateBody, model: ModelInfo, size: Size | None
) -> Given | None:
    """What a request gives of its images, which have this size, checked against its model.
    RequestError, ObjectsAway."""
    pixels = math.prod(size or ())
    if isinstance(body.appearance, GivenImage) and pixels > MOST_IMAGE_PIXELS:
        expected = f"up to {MOST_IMAGE_PIXELS} pixels; of a larger image give tokens or a pair"
        raise RequestError("appearance.image_png", f"{pixels} pixels", expected)
    structure, appearance = (
        _form(context, owner, name, getattr(body, name), model, size)
        for name in ("structure", "appearance")
    )
    return read_given(structure, appearance, model, size)


def _form(
    context: Context,
    owner: Owner,
    name: str,
    given: Strict | None,
    model: ModelInfo,
    size: Size | None,
) -> Form | None:
    if given is None:
        return None
    form: dict[str, Any] = given.model_dump(exclude_none=True)
    if isinstance(given, EarlierPair):
        form["tokens"] = _of_pair(context, owner, name, given, model, size)
    return form


def _of_pair(
    context: Context,
    owner: Owner,
    name: str,
    given: EarlierPair,
    model: ModelInfo,
    size: Size | None,
) -> list[list[int]]:
    """The tokens of one of the owner's finished pairs, of this model version and this size."""
    job = context.jobs.get(given.job_id, owner=owner)
    if job is None:
        raise RequestError(f"{name}.job_id", given.job_id, "the id of a job of yours")
    if job.model.version != model.version:
        drawn = f"{job.model.name} {job.model.version[:12]}"
        expected = (
            f"a job of {model.name} {model.version[:12]}: tokens of another model mean others"
        )
        raise RequestError(f"{name}.job_id", f"{given.job_id}, of {drawn}", expected)
    if job.request.size != size:
        patch = (model.image_size, model.image_size)
        wanted, its = (" x ".join(map(str, each or patch)) for each in (size, job.request.size))
        expected = f"a job of images of {wanted} pixels: width and height must be those of the pair"
        raise RequestError(f"{name}.job_id", f"{given.job_id}, of {its} pixels", expected)
    if given.index >= job.request.total:
        raise RequestError(
            f"{name}.index", given.index, f"an image of that job, 0 to {job.request.total - 1}"
        )
    tokens = context.results.get(owner.id, given.job_id, given.index, TOKENS_NAME)
    if tokens is None:
        raise RequestError(f"{name}.index", given.index, "an image that is finished, with files")
    rows: list[list[int]] = json.loads(tokens)[f"{name}_tokens"]
    return rows
