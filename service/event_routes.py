"""The route of a job's events, as server-sent events. Waiting clients need no thread."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from pathar.contract import END_STATES, EVENT_ID, TooManyRequests
from service.auth import InReader
from service.context import Context, InContext, find_job
from service.errors import RETRY_S, NothingMore
from service.following import Feeds
from service.request_schemas import JobId
from store.access import ANYBODY, Owner

MOST_STREAMS = 100
"""The most streams that one key may have open at one process."""
LastEventId = Annotated[
    str | None,
    Header(pattern=f"^{EVENT_ID}$", description="an event's id: replay from the next event on"),
]

router = APIRouter(tags=["jobs"])


class EventStream(StreamingResponse):
    """A response that streams a job's feed until the client disconnects."""

    media_type = "text/event-stream"

    def __init__(self, feeds: Feeds, owner: Owner, job_id: str, after: str) -> None:
        self._feeds, self._owner, self._job_id, self._after = feeds, owner, job_id, after
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__((), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
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
    """Stream a job's events as server-sent events, from the first or after `Last-Event-ID`.

    Kinds: `queued`, `started` (an image has a slot), `progress` (its decode steps), `image` (it is
    finished), and the last event: `finished`, `failed` or `canceled`. Data is JSON. 204 when there
    are no further events; an EventSource then stops.
    """
    if owner.id != ANYBODY.id and context.feeds.readers(owner) >= MOST_STREAMS:
        detail = f"this key has {MOST_STREAMS} event streams open at this process, the most it may"
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
    """Whether there are no further events. Gone or NotFound when there is no such job."""
    job = find_job(context, owner, job_id)
    ended = job.status in END_STATES
    return ended and not context.jobs.events(job_id, after, owner=owner, count=1)
