"""A job as its client sees it, and how to read it from its record in Redis.

A job's status is derived from its parts and not stored. Knows no Redis.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from model.request import GenerationRequest
from pathar.contract import END_STATES, PRIORITIES, Priority, Status
from store import keys
from store.registry import Speed


@dataclass(frozen=True)
class ModelRef:
    """The model that draws a job: the checkpoint's SHA-256 and the numerics of its workers."""

    name: str
    version: str
    numerics: str


@dataclass(frozen=True)
class Part:
    """One image of a job. Times in seconds: `queue_s` waiting, `decode_s` drawing, `total_s` from
    submission to the end.

    `step` is the number of decode steps done, as its worker last reported.
    """

    index: int
    label: str
    seed: int
    status: Status
    step: int
    queue_s: float | None
    decode_s: float | None
    total_s: float | None


@dataclass(frozen=True)
class Summary:
    """A job as lists show it. Times are seconds since 1970 on the clock of Redis.

    While images of the job wait, `ahead` is the number of images, of all owners, that are drawn
    before the next of them. `seconds_left` is an estimate from measured rates, None without a
    measurement or worker. `steps` of `steps_total` decode steps are done.
    """

    id: str
    owner: str
    status: Status
    priority: Priority
    request: GenerationRequest
    model: ModelRef
    created_at: float
    started_at: float | None
    ended_at: float | None
    error: str | None
    ahead: int | None
    seconds_left: float | None
    steps: int
    steps_total: int


@dataclass(frozen=True)
class Notification:
    """The webhook of a job: URL, tries so far, when it was received, why the last try failed."""

    url: str
    tries: int
    delivered_at: float | None
    error: str | None


@dataclass(frozen=True)
class Job(Summary):
    """A summary with the images of the job and its webhook."""

    parts: tuple[Part, ...]
    notify: Notification | None


@dataclass(frozen=True)
class Event:
    """An event of a job. `id` orders the events of one job."""

    id: str
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """Jobs, newest first, and the cursor of the next page if there may be one."""

    jobs: tuple[Summary, ...]
    next: str | None


def derive_status(states: Collection[Status]) -> Status:
    """A job's status from the set of its parts' states; their counts do not matter."""
    if "failed" in states:
        return "failed"
    if "canceled" in states:
        return "canceled"
    everywhere: tuple[Status, ...] = ("finished", "queued")
    for status in everywhere:
        if all(state == status for state in states):
            return status
    return "started"


def seconds_left(
    slowest: int | None, steps_an_image: int, places: list[int], speed: Speed | None, cost: int = 1
) -> float | None:
    """Estimates the seconds until the last image is done; None without a measured speed.

    While images wait: the time to draw those before the last one, plus its own time in a slot.
    Otherwise the rest of the drawn image with the fewest steps, `slowest`. Large images, which cost
    several patches, are taken to be drawn one by one, and those of other jobs to be patches.
    """
    if speed is None:
        return None
    if places:
        return (places[-1] + cost) / speed.images_per_s + speed.image_s
    if slowest is None:
        return 0.0
    own = speed.image_s if cost == 1 else cost / speed.images_per_s
    return (1 - slowest / steps_an_image) * own


def read_job(
    job: str,
    fields: Mapping[str, str],
    states: list[Status],
    places: list[int],
    speed: Speed | None,
) -> Job:
    """A job from its record's `fields`, the states of its parts, the number of images before its
    first and last waiting part (`places`), and the measured speed of its workers."""
    request = GenerationRequest.from_dict(json.loads(fields["request"]))
    steps = int(fields["steps"])
    parts = tuple(
        read_part_state(request, fields, index, state, steps) for index, state in enumerate(states)
    )
    slowest = min((part.step for part in parts if part.status == "started"), default=None)
    done = sum(part.step for part in parts)
    summary = read_summary(job, fields, states, done, slowest, places, speed)
    return Job(**vars(summary), parts=parts, notify=_notification(fields))


SUMMED_UP = (
    *(
        "request",
        "steps",
        "cost",
        "priority",
        "created_at",
        "started_at",
        "ended_at",
        "error",
        "queue",
    ),
    *("model_name", "model_version", "model_numerics"),
)
"""The fields of a record that `read_summary` needs, and the queue."""


def read_summary(
    job: str,
    fields: Mapping[str, str],
    states: Collection[Status],
    done: int,
    slowest: int | None,
    places: list[int],
    speed: Speed | None,
) -> Summary:
    """A job without its images. `done` counts the steps of all images; `slowest` is the fewest
    steps of an image that is being drawn. The rest is as in `read_job`."""
    request = GenerationRequest.from_dict(json.loads(fields["request"]))
    owner, job_id = keys.split_owned_id(job)
    steps, cost = int(fields["steps"]), int(fields.get("cost", 1))
    status = derive_status(states)
    ended = status in END_STATES
    return Summary(
        id=job_id,
        owner=owner,
        status=status,
        priority=_priority(fields["priority"]),
        request=request,
        model=ModelRef(fields["model_name"], fields["model_version"], fields["model_numerics"]),
        created_at=_finite(fields["created_at"]),
        started_at=_number(fields, "started_at"),
        ended_at=_number(fields, "ended_at"),
        error=fields.get("error"),
        ahead=places[0] if places else None,
        seconds_left=0.0 if ended else seconds_left(slowest, steps, places, speed, cost),
        steps=done,
        steps_total=steps * request.total,
    )


def read_part_state(
    request: GenerationRequest, fields: Mapping[str, str], index: int, status: Status, steps: int
) -> Part:
    """One image of a job, from its record's `fields`."""
    times = (_number(fields, f"{name}:{index}") for name in ("queue_s", "decode_s", "total_s"))
    step = steps if status == "finished" else int(fields.get(f"step:{index}", 0))
    return Part(index, request.label_of(index), request.seed_of(index), status, step, *times)


def _notification(fields: Mapping[str, str]) -> Notification | None:
    if "notify" not in fields:
        return None
    tries, error = int(fields.get("notify_tries", 0)), fields.get("notify_error") or None
    return Notification(fields["notify"], tries, _number(fields, "notified_at"), error)


def _number(fields: Mapping[str, str], name: str) -> float | None:
    return _finite(fields[name]) if name in fields else None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a time")
    return number


def _priority(text: str) -> Priority:
    if text not in PRIORITIES:
        raise ValueError(f"{text!r} is not a priority")
    return text
