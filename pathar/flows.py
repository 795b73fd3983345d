"""The logic of the clients, without input or output: what to send, how long to wait, what to yield.

A flow is a generator of effects. `drivers.py` runs them, blocking or with asyncio, so both clients
behave alike. Every request can be retried: jobs are made by PUT under an id that the client chose,
so a lost answer costs nothing. Knows no sockets.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, BinaryIO, TypeVar
from uuid import uuid4

import httpx

from pathar.contract import ARCHIVE_NAME, EVENT_ID, JOB_ID_EXPECTED, is_job_id
from pathar.errors import ConnectionLost, InternalError, JobCanceled, JobFailed, UsageError
from pathar.pairs import Event, Job, Label, Pair
from pathar.retries import LEAST_S, Patience, Waiting, error_of, foreign
from pathar.wire import EventParser

LONGEST_QUIET_S = 30.0
"""After this long with nothing but pings on a stream, the client polls the job."""


@dataclass(frozen=True)
class Send:
    """A request. The driver answers with the response, or with the error that prevented one.

    `seconds`: how long connecting and each read may take. With `stream`, `Read` reads the body.
    """

    method: str
    path: str
    json: Mapping[str, Any] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: bool = False
    seconds: float = LEAST_S


@dataclass(frozen=True)
class Read:
    """The next bytes of the open stream. The driver answers b"" at its end, or the error."""


@dataclass(frozen=True)
class Pause:
    """Seconds to wait."""

    seconds: float


@dataclass(frozen=True)
class Give:
    """A value for the caller: a pair, an event, a job."""

    what: Any


Effect = Send | Read | Pause | Give
Answer = httpx.Response | httpx.RequestError | bytes | None
T = TypeVar("T")
Flow = Generator[Effect, Answer, T]


def next_effect(flow: Flow[T], answer: Answer) -> Effect | None:
    """The next effect of a flow, given the answer to its last one; None at its end."""
    try:
        return flow.send(answer)
    except StopIteration:
        return None


def giving(flow: Flow[T]) -> Flow[None]:
    """Yield what a flow returns."""
    result = yield from flow
    yield Give(result)


def submit(order: Mapping[str, Any], job_id: str | None, patience: Patience) -> Flow[Job]:
    """Submit a job. It is made once, however often the request is retried."""
    fields = {name: value for name, value in order.items() if value is not None}
    send = Send("PUT", _path(uuid4().hex if job_id is None else job_id), fields)
    return (yield from ask(send, Waiting(patience), Job.from_answer))


def look(job_id: str, patience: Patience) -> Flow[Job]:
    """A job's state."""
    return (yield from ask(Send("GET", _path(job_id)), Waiting(patience), Job.from_answer))


def cancel(job_id: str, patience: Patience, *, files: bool = False) -> Flow[Job]:
    """Cancel a job. With `files`, drop its results too, of a job that has ended as well."""
    send = Send("DELETE", _path(job_id), params={"files": "true"} if files else {})
    return (yield from ask(send, Waiting(patience), Job.from_answer))


def labels(patience: Patience) -> Flow[list[Label]]:
    """The labels that can be drawn."""

    def read(listed: Any) -> list[Label]:
        return [Label.from_answer(label) for label in listed["labels"]]

    return (yield from ask(Send("GET", "/labels"), Waiting(patience), read))


def jobs(params: Mapping[str, Any], patience: Patience) -> Flow[None]:
    """Yield jobs, page by page."""

    def read(listed: Any) -> tuple[list[Job], str | None]:
        return [Job.from_answer(state) for state in listed["jobs"]], listed["next"]

    given = {name: value for name, value in params.items() if value is not None}
    cursor: Mapping[str, str] = {}
    while True:
        send = Send("GET", "/jobs", params={**given, **cursor})
        page, following = yield from ask(send, Waiting(patience), read)
        for job in page:
            yield Give(job)
        if following is None:
            return
        cursor = {"cursor": following}


def draw(order: Mapping[str, Any], job_id: str | None, patience: Patience) -> Flow[None]:
    """Submit a job and yield its pairs as they are finished."""
    job = yield from submit(order, job_id, patience)
    yield from _pairs(job, patience)


def pairs(job_id: str, patience: Patience) -> Flow[None]:
    """Yield the pairs of a job as they are finished."""
    job = yield from look(job_id, patience)
    yield from _pairs(job, patience)


def events(job_id: str, after: str | None, patience: Patience) -> Flow[None]:
    """Yield the events of a job until it ends."""
    following = _Following(job_id, after, patience)
    while True:
        told = yield from following.more()
        for event in told:
            yield Give(event)
        if following.over or any(event.ends for event in told):
            return
        if not told and not following.ended:
            yield from following.look()


def until_ended(job: Job, patience: Patience) -> Flow[Job]:
    """Yield the events of a job until it ends, and its state whenever that was asked for."""
    following = _Following(job.id, None, patience)
    while not job.ended:
        told = yield from following.more()
        for event in told:
            yield Give(event)
        if not told or any(event.ends for event in told):
            job = yield from following.look()
            yield Give(job)
    return job


def archive(job_id: str, file: BinaryIO, patience: Patience) -> Flow[None]:
    """Write all pairs of a finished job to a file, as of `fetch`."""
    yield from fetch(_path(job_id, f"/{ARCHIVE_NAME}"), file, patience)


def fetch(path: str, file: BinaryIO, patience: Patience) -> Flow[None]:
    """Write what lies under a path of the service to a file; resumes when the stream breaks.

    Yields the bytes so far and their total, None where the service does not say."""
    waiting = Waiting(patience)
    tag, most = "", 0
    while True:
        headers = {"Accept-Encoding": "identity"}
        if tag:
            headers |= {"Range": f"bytes={file.tell()}-", "If-Range": tag}
        answer = yield from answered(Send("GET", path, headers=headers, stream=True), waiting)
        if answer.status_code != 206:
            tag = answer.headers.get("etag", "")
            file.seek(0)
            file.truncate()
        total = _total(answer, file.tell())
        while isinstance(piece := (yield Read()), bytes) and piece:
            file.write(piece)
            yield Give((file.tell(), total))
            if file.tell() > most:  # only progress counts: it may always break at the same place
                most = file.tell()
                waiting.answered()
            waiting.begin()
        if piece == b"" or file.tell() == total:
            return
        yield _pause(waiting, _error(piece))


def _total(answer: httpx.Response, at: int) -> int | None:
    """The size of a file in bytes, from an answer that holds its bytes from `at` on."""
    if answer.status_code == 206:
        told = answer.headers.get("content-range", "")
        match = re.fullmatch(f"bytes {at}-[0-9]+/([0-9]{{1,18}})", told)
        if match is None:
            raise InternalError(f"asked for the bytes from {at} on, got {told[:100]!r}")
        return int(match[1])
    length = answer.headers.get("content-length", "")
    return int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def _pairs(job: Job, patience: Patience) -> Flow[None]:
    """Yields images by the job's events. Asks for the job's state, which lists all finished images,
    when the job has ended and when the stream broke.
    """
    following = _Following(job.id, None, patience)
    finished: frozenset[int] = job.finished
    given: set[int] = set()
    while True:
        for index in sorted(finished - given):
            send = Send("GET", _path(job.id, f"/images/{index}"))
            pair = yield from ask(send, Waiting(patience), partial(Pair.from_answer, job))
            given.add(index)
            yield Give(pair)
        if job.status == "finished":
            return
        if job.status == "failed":
            raise JobFailed(f"job {job.id} failed: {job.error}")
        if job.status == "canceled":
            raise JobCanceled(f"job {job.id} was canceled")
        told = yield from following.more()
        finished = frozenset(event.data["index"] for event in told if event.kind == "image")
        if not told or any(event.ends for event in told):
            job = yield from following.look()
            finished = job.finished


class _Following:
    """A job's events; resumes where the stream broke."""

    def __init__(self, job_id: str, after: str | None, patience: Patience) -> None:
        if after is not None and not re.fullmatch(EVENT_ID, after):
            raise UsageError(f"after {after!r}: expected the id of an event")
        self.ended = False
        """Whether the job had ended when it was last polled."""
        self.over = False
        """Whether a stream that was opened after that poll ended without an event."""
        self._path = _path(job_id)
        self._after = after
        self._patience = patience
        self._waiting = Waiting(patience)
        self._nothing_left = False
        self._parser: EventParser | None = None
        self._broke: Exception | None = None

    def more(self) -> Flow[list[Event]]:
        """The next events. Empty when it is time to poll the job: the stream has ended, broken or
        been quiet for long. The next call opens the stream again if needed. Raises when neither
        streams nor polls were answered for as long as `patience`.
        """
        if self._parser is None:
            self._parser = yield from self._open()
        heard = time.monotonic()
        while self._parser is not None:
            self._waiting.begin()
            piece = yield Read()
            if not isinstance(piece, bytes) or not piece:
                broke = ConnectionLost(f"{self._path}/events broke off")
                self._broke = _error(piece) if piece else broke
                self.over = self._nothing_left and piece == b""
                self._parser = None
                break
            self._waiting.answered()  # a ping, too, says that the service is there
            self._waiting = Waiting(self._patience)
            told = self._parser.feed(piece)
            if told:
                self._after, self._nothing_left = told[-1].id or self._after, False
                return told
            if time.monotonic() - heard > LONGEST_QUIET_S:
                break
        return []

    def _open(self) -> Flow[EventParser | None]:
        if self._broke is not None:
            yield _pause(self._waiting, self._broke)
        headers = {"Last-Event-ID": self._after} if self._after else {}
        send = Send("GET", f"{self._path}/events", headers=headers, stream=True)
        self._waiting.begin()
        answer = yield replace(send, seconds=self._waiting.allowed())
        self._waiting.reached(answer)
        self._nothing_left = self.ended  # until an event comes
        if isinstance(answer, httpx.Response) and answer.is_success:
            return EventParser()
        self._broke = _error(answer)
        return None

    def look(self) -> Flow[Job]:
        """The job's state."""
        job = yield from ask(Send("GET", self._path), self._waiting, Job.from_answer)
        self.ended = job.ended
        return job


def _path(job_id: str, rest: str = "") -> str:
    """The path of a job. UsageError on an invalid id, which could change the path."""
    if not is_job_id(job_id):
        raise UsageError(f"job_id {job_id!r}: expected {JOB_ID_EXPECTED}")
    return f"/jobs/{job_id}{rest}"


def ask(send: Send, waiting: Waiting, read: Callable[[Any], T]) -> Flow[T]:
    """Apply `read` to the JSON of a successful answer."""
    answer = yield from answered(send, waiting)
    waiting.answered()
    return read_json(answer, send.path, read)


def read_json(answer: httpx.Response, path: str, read: Callable[[Any], T]) -> T:
    """Apply `read` to the JSON of an answer. InternalError where that is not possible."""
    try:
        return read(answer.json())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InternalError(f"{path} {foreign(answer)}", status=answer.status_code) from None


def answered(send: Send, waiting: Waiting) -> Flow[httpx.Response]:
    """The successful answer to a request. Retries on 429, 503 and a lost connection."""
    while True:
        waiting.begin()
        answer = yield replace(send, seconds=waiting.allowed())
        waiting.reached(answer)
        if isinstance(answer, httpx.Response) and answer.is_success:
            return answer
        yield _pause(waiting, _error(answer))


def _pause(waiting: Waiting, error: Exception) -> Pause:
    """The pause before the next try; a long wait is logged."""
    seconds = waiting.pause(error)
    waiting.log(error, seconds)
    return Pause(seconds)


def _error(answer: Answer) -> Exception:
    assert isinstance(answer, httpx.Response | httpx.RequestError)
    return error_of(answer)
