"""The jobs that draw a data set: asked for a few ahead, and dropped once their pairs are stored.

Where pairs are filtered, a job may have further rounds, each a job of its own, until enough pass
(`dataset_rounds.py`). Every step can be repeated by any writer, as the ids of jobs follow from the
data set. What is kept here saves questions alone. Knows no files and no turns.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count

import redis

from model.request import ModelInfo, RequestError, resolve
from pathar.recipe import JOB_PAIRS, PlannedJob
from store.access import Limits, Owner
from store.datasets import Dataset
from store.job import Job
from store.jobs import NO_ROOM, Expired, JobStore, NotKept, OtherBody, TooMuch
from store.keys import queue_name
from store.registry import Registry
from worker.dataset_rounds import ResultsGone, Rounds

AHEAD, MOST_AHEAD = 3, 50
"""Unfinished jobs that a data set has at a time: the least, and the most."""
AHEAD_S = 5.0
"""How long workers should be busy with them."""
TRIES = 3
"""How often a job is asked for that failed or was canceled, until the data set fails."""


class DrawingFailed(Exception):
    """A data set cannot be drawn. Its owner may resume it once the reason is gone."""


class DatasetJobs:
    """The jobs of one data set, as one writer knows them. It has `rounds` if the recipe filters.

    `_seen`: the job that is drawn for a planned one, by its number. `_attempts` and `_failures`: by
    the key of a job.
    """

    def __init__(
        self, client: redis.Redis, dataset: Dataset, rounds: Rounds | None, *, result_ttl: int
    ) -> None:
        self._jobs = JobStore(client, result_ttl=result_ttl, max_waiting=dataset.max_waiting)
        self._registry = Registry(client)
        self._dataset, self._plan, self._rounds = dataset, dataset.plan, rounds
        self._infos: dict[str, ModelInfo] = {}
        self._seen: dict[int, Job] = {}
        self._attempts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._again_at, self._no_room = 0.0, ""
        self.owner = Owner(dataset.owner, dataset.key_name, 1.0, Limits())

    def begin(self, dataset: Dataset, owner: Owner | None = None) -> None:
        """Note the state of the data set at the beginning of a turn, and its owner."""
        self._dataset, self.owner = dataset, owner or self.owner

    def look(self, shard: int, alive: Callable[[], None]) -> str:
        """Ask for the jobs of a shard and some after them, as far as there is room, and see how far
        they are; calls `alive` in between. Returns why nothing moves, "" where something does.
        DrawingFailed; UsageError where too few pairs pass the filters.
        """
        needed = self._plan.jobs_of(shard)
        self._forget(needed[0].number)
        ahead, unfinished = self._ahead(needed[0].label), 0
        for job in self._plan.jobs[needed[0].number : needed[-1].number + 1 + ahead]:
            if unfinished == ahead:
                break
            alive()
            while following := self._following(job):
                found = self._asked(following)
                if isinstance(found, str):
                    return "" if unfinished else found
                self._seen[job.number] = found
                if found.status != "finished":
                    unfinished += 1
                    break
                if self._rounds:
                    self._keep(self._rounds, following, alive)
        return ""

    def ready(self, shard: int) -> bool:
        """Whether all pairs of a shard were drawn when `look` saw its jobs."""
        return not any(map(self._following, self._plan.jobs_of(shard)))

    def progress(self, shard: int) -> tuple[int, int]:
        """Of the pairs from the first of a shard on, how many are kept, as far as `look` saw, and
        how many were drawn for jobs that begin there.
        """
        start = self._plan.shards[shard].start
        kept, drawn = self._rounds.progress(start) if self._rounds else (0, 0)
        for number, state in self._seen.items():
            first = self._plan.jobs[number].first
            finished = [part.index for part in state.parts if part.status == "finished"]
            drawn += len(finished) if first >= start else 0
            if not self._rounds:
                kept += sum(first + index >= start for index in finished)
        return kept, drawn

    def found(self, job: PlannedJob) -> Job:
        """The state of a job that is finished."""
        return self._seen[job.number]

    def lost(self, job: PlannedJob) -> None:
        """Note that the results of a finished job are gone: it must be drawn again."""
        del self._seen[job.number]
        self._attempts[job.key] += 1

    def drop(self, jobs: Iterable[PlannedJob]) -> None:
        """Drop the results of jobs whose pairs are stored, or not wanted any more, and those of
        their further rounds.
        """
        for job in jobs:
            for job_id in self._asked_for(job):
                self._jobs.cancel(job_id, owner=self.owner)
                self._jobs.drop(job_id, owner=self.owner)

    def forsake(self) -> None:
        """Cancel and drop all that may be there."""
        shard = min(len(self._dataset.shards), len(self._plan.shards) - 1)
        jobs = self._plan.jobs_of(shard)
        self.drop(self._plan.jobs[jobs[0].number : jobs[-1].number + 1 + MOST_AHEAD])

    def _forget(self, before: int) -> None:
        """Know nothing of the jobs before this number any more."""
        self._seen = {number: seen for number, seen in self._seen.items() if number >= before}
        if self._rounds:
            self._rounds.forget(before)

    def _following(self, job: PlannedJob) -> PlannedJob | None:
        """What must be drawn next for the pairs of a job; None when these are all drawn."""
        if self._rounds:
            return self._rounds.following(job)
        seen = self._seen.get(job.number)
        return None if seen is not None and seen.status == "finished" else job

    def _keep(self, rounds: Rounds, job: PlannedJob, alive: Callable[[], None]) -> None:
        """Store what passes of a finished job, and drop its results. Where these are gone, it will
        be drawn again.
        """
        try:
            rounds.keep(job, self._seen[job.number], alive)
        except ResultsGone:
            self.lost(job)
        else:
            self.drop([job])
            del self._seen[job.number]

    def _ahead(self, label: str) -> int:
        if self._plan.recipe.sides:
            return AHEAD
        ref = self._plan.models[label]
        speed = self._registry.speed(queue_name(ref.version, ref.numerics))
        wanted = speed.images_per_s * AHEAD_S / JOB_PAIRS if speed else 0
        return min(MOST_AHEAD, max(AHEAD, math.ceil(wanted)))

    def _asked_for(self, job: PlannedJob) -> Iterator[str]:
        """The ids under which a job and its further rounds were asked for and are still known."""
        for further in count(job.round):
            for attempt in count():
                job_id = self._dataset.job_id(replace(job, round=further), attempt)
                if self._jobs.get(job_id, owner=self.owner) is not None:
                    yield job_id
                elif not self._jobs.expired(job_id, owner=self.owner):
                    break
            if not attempt or not self._rounds:
                return

    def _asked(self, job: PlannedJob) -> Job | str:
        """The job, or why it cannot be asked for now. One that failed, was canceled or expired is
        asked for under the next id.
        """
        while True:
            job_id = self._dataset.job_id(job, self._attempts[job.key])
            state = self._jobs.get(job_id, owner=self.owner)
            if state is None and not self._jobs.expired(job_id, owner=self.owner):
                try:
                    return self._submitted(job, job_id)
                except (Expired, OtherBody):
                    pass
            elif state is not None and _is(state, job):
                if state.status not in ("failed", "canceled"):
                    self._check_model(job, state)
                    return state
                self._count_failure(job, state)
            self._attempts[job.key] += 1

    def _submitted(self, job: PlannedJob, job_id: str) -> Job | str:
        if time.monotonic() < self._again_at:
            return self._no_room
        info = self._info(job.label)
        if info is None:
            ref = self._plan.models[job.label]
            return f"no worker has served {ref.name} {ref.version[:12]} lately"
        try:
            request = resolve(job.fields(), info, seed=job.seed)
            state, _ = self._jobs.submit(
                request, info, owner=self.owner, priority="bulk", job_id=job_id, digest=job_id
            )
        except RequestError as error:
            raise DrawingFailed(str(error)) from None
        except TooMuch as over:
            self._again_at = time.monotonic() + over.retry_after
            self._no_room = NO_ROOM[over.limit]
            return self._no_room
        except NotKept:
            return "Redis cannot write to its disk"
        return state

    def _info(self, label: str) -> ModelInfo | None:
        if label not in self._infos:
            ref = self._plan.models[label]
            last = self._registry.published().seen.get(queue_name(ref.version, ref.numerics))
            if last is None:
                return None
            self._infos[label] = last.info
        return self._infos[label]

    def _check_model(self, job: PlannedJob, state: Job) -> None:
        """DrawingFailed where workers of other numerics have taken the job over."""
        ref = self._plan.models[job.label]
        if (state.model.version, state.model.numerics) != (ref.version, ref.numerics):
            self.drop([job])
            raise DrawingFailed(
                f"begun with numerics {ref.numerics} of {ref.name}, now {state.model.numerics} "
                "draws; start a worker with the former, or make another data set"
            )

    def _count_failure(self, job: PlannedJob, state: Job) -> None:
        self._failures[job.key] += 1
        if self._failures[job.key] >= TRIES * (1 + self._dataset.resumes):
            reason = f": {state.error}" if state.error else ""
            raise DrawingFailed(f"job {state.id} {state.status}{reason}")


def _is(state: Job, job: PlannedJob) -> bool:
    """Whether a job is the planned one: its owner may have made another under this id."""
    request = state.request
    return (request.labels, request.n, request.seed) == ((job.label,), job.n, job.seed)
