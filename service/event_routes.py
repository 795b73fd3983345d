"""The route that follows a job: what happens to it, as server-sent events. Costs no thread."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from model.contract import END_STATES, EVENT_ID, TooManyRequests
from service.auth import InReader
from service.context import Context, InContext, find_job
from service.errors import NothingMore
from service.following import Feeds
from service.request_schemas import JobId
from store.access import ANYBODY, Owner

MOST_STREAMS = 100
"""Streams that one key may have open at one process."""
RETRY_S = 5.0
LastEventId = Annotated[
    str | None,
    Header(pattern=f"^{EVENT_ID}$", description="an event's id: replay after it"),
]

router = APIRouter(tags=["jobs"])


class EventStream(StreamingResponse):
    """One reader of a job's feed, from when it is sent until its client leaves."""

    media_type = "text/event-stream"

    def __init__(self, feeds: Feeds, owner: Owner, job_id: str, after: str) -> None:
        self._feeds, self._owner, self._job_id, self._after = feeds, owner, job_id, after
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__((), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._feeds.follow(self._owner, self._job_id) as feed:
            self.body_iterator = feed.read(self._after)
            await super().__call__(scope, receive, send)


@router.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {EventStream.media_type: {}}},
        204: {"description": "The job has ended, and no event came after Last-Event-ID"},
    },
)
async def get_events(
    context: InContext, owner: InReader, job_id: JobId, last_event_id: LastEventId = None
) -> Response:
    """What happens to a job, from its beginning or after `Last-Event-ID`, as server-sent events.

    Kinds: `queued`, `started` and `image` (an image has got a slot, is finished), `progress` (its
    decode steps), and the last one: `finished`, `failed` or `canceled`. Data is JSON. 204 when
    there is nothing more to come, at which an EventSource stops.
    """
    if owner.id != ANYBODY.id and context.feeds.readers(owner) >= MOST_STREAMS:
        detail = f"this key has {MOST_STREAMS} streams of events open here, as many as it may"
        raise TooManyRequests(detail, retry_after=RETRY_S)
    after = last_event_id or "0"
    feed = context.feeds.find(owner, job_id)
    over = (
        feed.ended_by(after)
        if feed
        else await run_in_threadpool(_is_over, context, owner, job_id, after)
    )
    if over:
        raise NothingMore
    return EventStream(context.feeds, owner, job_id, after)


def _is_over(context: Context, owner: Owner, job_id: str, after: str) -> bool:
    """Whether nothing more is to come. Gone or NotFound where there is no such job."""
    job = find_job(context, owner, job_id)
    ended = job.status in END_STATES
    return ended and not context.jobs.events(job_id, after, owner=owner, count=1)
