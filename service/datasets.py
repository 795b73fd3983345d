"""Accepts recipes for data sets: picks the models, checks the limits, makes the data set.

Knows no routes and no Redis keys.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from itertools import count

from model.request import Learned, ModelInfo, RequestError, resolve
from pathar.contract import SETTINGS, NoModel, NotFound, OtherJob, StoreDisk, TooMuchStored
from pathar.recipe import MOST_PAIRS, ModelRef, Plan, Recipe, of_settings
from service.context import Context
from service.models import choose
from store.access import Owner
from store.datasets import MOST_DATASETS, Dataset, TooMany
from store.jobs import NotKept, OtherBody, most_images

MOST_SHARDS = 1000
FULL_S = 60
"""Retry-After of a key that has as many data sets as it may."""

log = logging.getLogger("pathar.service")


def make_dataset(
    context: Context, owner: Owner, recipe: Recipe, dataset_id: str | None
) -> tuple[Dataset, bool]:
    """Accept a recipe: the data set, and whether it is new. Without an id, the same recipe finds
    the data set that the same models draw, unless that was canceled.

    Raises the ServiceError of the limit or rule that rejects it; RequestError for a field.
    """
    models = _models(context, recipe)
    _check(owner, recipe, models, context.settings.max_n)
    refs = {label: _ref(info, label) for label, info in models.items()}
    own = Plan(recipe, refs).dataset_id
    for attempt in count():
        name = dataset_id or (f"{own}-{attempt}" if attempt else own)
        found, new = _made(context, owner, recipe, refs, name)
        if dataset_id is not None or found.status != "canceled":
            break
    if new:
        context.metrics.accepted(owner.name, recipe.pairs)
    about = {"dataset": found.id, "key": owner.name, "pairs": recipe.pairs}
    log.info("data set accepted" if new else "data set found again", extra=about)
    return found, new


def find_dataset(context: Context, owner: Owner, dataset_id: str) -> Dataset:
    """The owner's data set. NotFound, even if another owner has one with this id."""
    found = context.datasets.get(dataset_id, owner=owner)
    if found is None:
        raise NotFound(f"there is no data set {dataset_id}")
    return found


def _models(context: Context, recipe: Recipe) -> dict[str, ModelInfo]:
    models = context.registry.models()
    if not models:
        raise NoModel("no worker has reported a model lately")
    try:
        return {label: choose(models, [label], recipe.model) for label in recipe.labels}
    except RequestError as error:
        field = "labels" if error.field == "label" else error.field
        raise RequestError(field, error.value, error.expected) from None


def _ref(info: ModelInfo, label: str) -> ModelRef:
    learned = asdict(info.learned.get(label, Learned()))
    return ModelRef(info.name, info.version, info.numerics, info.mpp(label) or None, learned)


def _check(owner: Owner, recipe: Recipe, models: dict[str, ModelInfo], max_n: int) -> None:
    """RequestError where the models do not take the settings, or a limit does not allow it."""
    if recipe.pairs > MOST_PAIRS:
        raise RequestError("labels", recipe.pairs, f"up to {MOST_PAIRS} pairs in all")
    size = recipe.shard_size
    if recipe.pairs > MOST_SHARDS * size:
        least = -(-recipe.pairs // MOST_SHARDS)
        raise RequestError("shard_size", size, f"at least {least}: up to {MOST_SHARDS} shards")
    ends = of_settings(
        lambda _, value: value[1] if isinstance(value, tuple) else value, recipe.settings
    )
    for label, info in models.items():
        try:
            request = resolve({"label": label, **ends, **recipe.sides}, info, seed=0)
        except RequestError as error:
            of_settings_too = error.field.partition(".")[0] in SETTINGS
            field = f"settings.{error.field}" if of_settings_too else error.field
            raise RequestError(field, error.value, error.expected) from None
        job_pairs, cost = recipe.job_pairs, info.cost(request.size)
        if cost > 1 and job_pairs * cost > max_n:
            told = f"as {job_pairs} of this size, a job, cost as much as {job_pairs * cost} patches"
            expected = f"a smaller image, {told}, of which a job may have {max_n}"
            raise RequestError("width", (request.size or (0,))[0], expected)
        if recipe.filtered and not info.segments:
            raise _filter_error(recipe, f"the model {info.name!r} tells no agreement")
        most = most_images(owner, info, size=request.size)
        if most is None:
            continue
        limit = f"the {owner.limits.stored_bytes} bytes that this key may store"
        if recipe.filtered and most < job_pairs:
            told = f"a job of {job_pairs} images must fit into {limit}, which hold {most}"
            raise _filter_error(recipe, told)
        if not recipe.filtered and min(recipe.pairs, size + 2 * job_pairs) > most:
            fits = max(0, most - 2 * job_pairs)
            expected = f"at most {fits}, as the jobs of a shard must fit into {limit}"
            raise RequestError("shard_size", size, expected)


def _filter_error(recipe: Recipe, why: str) -> RequestError:
    field = "best_of" if recipe.min_agreement is None else "min_agreement"
    return RequestError(field, getattr(recipe, field), f"none, as {why}")


def _made(
    context: Context, owner: Owner, recipe: Recipe, refs: dict[str, ModelRef], dataset_id: str
) -> tuple[Dataset, bool]:
    most = context.settings.max_waiting
    try:
        return context.datasets.make(dataset_id, recipe, refs, owner=owner, max_waiting=most)
    except OtherBody:
        taken = f"data set {dataset_id} was made of another recipe; take another id"
        raise OtherJob(taken) from None
    except TooMany:
        detail = f"this key has {MOST_DATASETS} data sets, as many as it may; delete some"
        raise TooMuchStored(detail, retry_after=FULL_S) from None
    except NotKept:
        raise StoreDisk("Redis cannot write to its disk; the data set may be lost") from None
