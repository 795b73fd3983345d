"""Accepts requests for pairs: picks the model, fills in the settings and submits the job.

Knows no routes and no Redis keys.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from typing import Any

from model.given import Given
from model.request import (
    GenerationRequest,
    ModelInfo,
    RequestError,
    check_best_of,
    labels_of,
    resolve,
)
from pathar.contract import (
    DEFAULT_PRIORITY,
    MAX_SEED,
    Gone,
    NoModel,
    OtherJob,
    StoreDisk,
    TooManyRequests,
    TooMuchStored,
)
from runtime.telemetry import trace_id
from service.context import Context
from service.given import given_of
from service.models import choose
from service.request_schemas import GenerateBody
from store.access import Owner
from store.job import Job
from store.jobs import NO_ROOM, Expired, NotKept, OtherBody, TooMuch, most_images

SAME_AS_NOTHING: dict[str, Any] = {
    "n": 1,
    "scale": 1.0,
    "best_of": 1,
    "priority": DEFAULT_PRIORITY,
}
"""Defaults that do not depend on the model."""

log = logging.getLogger("pathar.service")


def _named(body: GenerateBody) -> str:
    return ", ".join(body.labels or [str(body.label)])


def digest_of(body: GenerateBody) -> str:
    """A digest that is the same for all bodies with the same meaning: null equals a missing field,
    and so does a default that does not depend on the model; one label may be alone or in a list.
    """
    asked = SAME_AS_NOTHING | body.model_dump(exclude_none=True)
    asked["labels"] = labels_of(asked)
    asked.pop("label", None)
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def submit(
    context: Context, owner: Owner, body: GenerateBody, job_id: str | None, parent: str | None
) -> tuple[Job, bool]:
    """Accept a request: the job, and whether it is new. `parent` is the client's traceparent.

    Raises the ServiceError of the limit or rule that rejects it; RequestError for a field.
    """
    with context.traces.span("submit", parent) as trace:
        about = {"key": owner.name, "trace_id": trace_id(trace)}
        try:
            job, new = _accepted(context, owner, body, job_id, trace)
        except TooManyRequests as refused:
            log.info("refused: %s", refused.detail, extra={**about, "label": _named(body)})
            raise
        if new:
            context.metrics.accepted(owner.name, job.request.total)
        what = {"job": job.id, "label": _named(body), "n": job.request.total}
        log.info("accepted" if new else "found again", extra={**about, **what})
        return job, new


def _accepted(
    context: Context, owner: Owner, body: GenerateBody, job_id: str | None, trace: str
) -> tuple[Job, bool]:
    digest = digest_of(body)
    if body.notify and body.notify.startswith("http:") and not context.settings.notify_networks:
        raise RequestError("notify", body.notify, "an https URL")
    try:
        if job_id is not None:  # a known job needs no model
            known = context.jobs.find(job_id, owner=owner, digest=digest)
            if known is not None:
                return known, False
        models = context.registry.models()
        if not models:
            raise NoModel("no worker has reported a model lately")
        model = choose(models, labels_of(body.model_dump()), body.model, body.scale or 1.0)
        fields = body.model_dump(exclude={"priority", "notify", "structure", "appearance"})
        seed = secrets.randbelow(MAX_SEED + 1)
        request = resolve(fields, model, seed=seed, max_n=context.settings.max_n)
        given = given_of(context, owner, body, model, request.size)
        check_best_of(request.best_of, given)
        _check_cost(request, model, given, context.settings.max_n)
        most = most_images(owner, model, given, request.size)
        if most is not None and request.total > most:
            limit, most = f"{owner.limits.stored_bytes} bytes", most // len(request.labels)
            raise RequestError("n", request.n, f"at most {most}, as this key may store {limit}")
        return context.jobs.submit(
            request,
            model,
            owner=owner,
            priority=body.priority or DEFAULT_PRIORITY,
            job_id=job_id,
            digest=digest,
            trace=trace,
            notify=body.notify,
            given=given,
        )
    except OtherBody:
        raise OtherJob(f"job {job_id} was made with another body; take another id") from None
    except Expired:
        raise Gone(f"job {job_id} has expired; take another id to draw it again") from None
    except NotKept:
        raise StoreDisk("Redis cannot write to its disk; the job may be drawn or lost") from None
    except TooMuch as over:
        seconds = f"{over.retry_after:.0f} seconds"
        detail = f"{NO_ROOM[over.limit]}; there is room for this request in {seconds}"
        kind = TooMuchStored if over.limit == "stored" else TooManyRequests
        raise kind(detail, retry_after=over.retry_after) from None


def _check_cost(
    request: GenerationRequest, model: ModelInfo, given: Given | None, most: int
) -> None:
    """RequestError where images cost more patches than a request may have."""
    cost = request.cost(model, given)
    if request.total * cost <= most:
        return
    fits = most // cost // len(request.labels)
    if request.size is None:
        expected = f"at most {fits}, each of {cost} draws, of which a request may have {most}"
        raise RequestError("n", request.n, expected)
    width, height = request.size
    draws = f", drawn {request.best_of} times," * (request.best_of > 1)
    told = f"as {width} x {height} pixels{draws} cost as much as {cost} patches, of which a request"
    if cost > most:
        fewer = "a smaller image" + " or fewer draws" * bool(draws)
        raise RequestError("width", width, f"{fewer}, {told} may have {most}")
    raise RequestError("n", request.n, f"at most {fits}, {told} may have {most}")
