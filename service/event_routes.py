"""The route that follows a job: what happens to it, as server-sent events. Costs no thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, TypeVar

import redis
from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from model.contract import END_STATES, EVENT_ID
from service.auth import InOwner
from service.context import Context, InContext, find_job
from service.errors import NothingMore
from service.files import JobId
from service.waiting import look_pause
from store.access import Owner
from store.keys import EVENTS_CHANNEL, owned_id

T = TypeVar("T")
LastEventId = Annotated[
    str | None,
    Header(pattern=f"^{EVENT_ID}$", description="an event's id: replay after it"),
]

router = APIRouter(tags=["jobs"])


def check_followed(
    context: InContext, owner: InOwner, job_id: JobId, last_event_id: LastEventId = None
) -> None:
    """Before a stream begins: Gone or NotFound without such a job, NothingMore after its end."""
    job = find_job(context, owner, job_id)
    after = last_event_id or "0"
    if job.status in END_STATES and not context.jobs.events(job_id, after, owner=owner, count=1):
        raise NothingMore


@router.get(
    "/jobs/{job_id}/events",
    response_class=EventSourceResponse,
    responses={204: {"description": "The job has ended, and no event came after Last-Event-ID"}},
    dependencies=[Depends(check_followed)],
)
async def get_events(
    context: InContext, owner: InOwner, job_id: JobId, last_event_id: LastEventId = None
) -> AsyncIterator[ServerSentEvent]:
    """What happens to a job, from its beginning or after `Last-Event-ID`, as server-sent events.

    Kinds: `queued`, `started` and `image` (an image has got a slot, is finished), `progress` (its
    decode steps), and the last one: `finished`, `failed` or `canceled`. Data is JSON. 204 when
    there is nothing more to come, at which an EventSource stops.
    """
    after, ended, quiet = last_event_id or "0", False, True
    now = asyncio.get_running_loop().time
    due = now() + look_pause()
    with context.news.watch(owned_id(owner.id, job_id), EVENTS_CHANNEL) as woken:
        while not context.news.closing:
            woken.clear()
            events = await _asked(partial(context.jobs.events, job_id, after, owner=owner))
            for event in events or ():
                after, quiet = event.id, False
                yield ServerSentEvent(data=dict(event.data), event=event.kind, id=event.id)
                if event.kind in END_STATES:
                    return
            if ended and events == []:  # all were sent, for the job was looked at before them
                return
            if now() >= due:
                if await _asked(partial(context.keys.admits, owner)) is False:
                    return
                ended = quiet and bool(await _asked(partial(_has_ended, context, owner, job_id)))
                due, quiet = now() + look_pause(), True
            elif not events:
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), due - now())


async def _asked(ask: Callable[[], T]) -> T | None:
    """What the store says; None while Redis is away, for the stream goes on when it is back."""
    with suppress(redis.RedisError):
        return await run_in_threadpool(ask)
    return None


def _has_ended(context: Context, owner: Owner, job_id: str) -> bool:
    job = context.jobs.get(job_id, owner=owner)
    return job is None or job.status in END_STATES
