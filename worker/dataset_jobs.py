"""The jobs that draw a data set: asked for a few ahead, and dropped once their pairs are stored.

Every step can be repeated by any writer, as the ids of jobs follow from the data set. What is kept
here saves questions alone. Knows no files and no turns.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import redis

from model.request import ModelInfo, RequestError, resolve
from pathar.recipe import JOB_PAIRS, PlannedJob
from store.access import Limits, Owner
from store.datasets import Dataset
from store.job import Job
from store.jobs import NO_ROOM, Expired, JobStore, NotKept, OtherBody, TooMuch
from store.keys import queue_name
from store.registry import Registry

AHEAD, MOST_AHEAD = 3, 50
"""Unfinished jobs that a data set has at a time: the least, and the most."""
AHEAD_S = 5.0
"""How long workers should be busy with them."""
TRIES = 3
"""How often a job is asked for that failed or was canceled, until the data set fails."""


class DrawingFailed(Exception):
    """A data set cannot be drawn. Its owner may resume it once the reason is gone."""


class DatasetJobs:
    """The jobs of one data set, as one writer knows them."""

    def __init__(self, client: redis.Redis, dataset: Dataset, *, result_ttl: int) -> None:
        self._jobs = JobStore(client, result_ttl=result_ttl, max_waiting=dataset.max_waiting)
        self._registry = Registry(client)
        self._dataset, self._plan = dataset, dataset.plan
        self._infos: dict[str, ModelInfo] = {}
        self._seen: dict[int, Job] = {}
        self._attempts: Counter[int] = Counter()
        self._failures: Counter[int] = Counter()
        self._again_at, self._no_room = 0.0, ""
        self.owner = Owner(dataset.owner, dataset.key_name, 1.0, Limits())

    def begin(self, dataset: Dataset, owner: Owner | None = None) -> None:
        """Note the state of the data set at the beginning of a turn, and its owner."""
        self._dataset, self.owner = dataset, owner or self.owner

    def look(self, shard: int) -> str:
        """Ask for the jobs of a shard and some after them, as far as there is room, and see how far
        they are. Returns why nothing moves, "" where something does. DrawingFailed.
        """
        needed = self._plan.jobs_of(shard)
        self._seen = {number: s for number, s in self._seen.items() if number >= needed[0].number}
        ahead, unfinished = self._ahead(needed[0].label), 0
        for job in self._plan.jobs[needed[0].number : needed[-1].number + 1 + ahead]:
            if unfinished == ahead:
                break
            if self._finished(job):
                continue
            found = self._asked(job)
            if isinstance(found, str):
                return "" if unfinished else found
            self._seen[job.number] = found
            unfinished += not self._finished(job)
        return ""

    def ready(self, shard: int) -> bool:
        """Whether all jobs of a shard were finished when `look` saw them."""
        return all(map(self._finished, self._plan.jobs_of(shard)))

    def drawn(self, shard: int) -> int:
        """How many pairs from the first of a shard on are drawn, as far as `look` saw."""
        start = self._plan.shards[shard].start
        return sum(
            part.status == "finished" and self._plan.jobs[number].first + part.index >= start
            for number, state in self._seen.items()
            for part in state.parts
        )

    def found(self, job: PlannedJob) -> Job:
        """The state of a job that is finished."""
        return self._seen[job.number]

    def lost(self, job: PlannedJob) -> None:
        """Note that the results of a finished job are gone: it must be drawn again."""
        del self._seen[job.number]
        self._attempts[job.number] += 1

    def drop(self, jobs: Iterable[PlannedJob]) -> None:
        """Drop the results of jobs whose pairs are stored, or not wanted any more."""
        for job in jobs:
            for job_id in self._asked_for(job):
                self._jobs.cancel(job_id, owner=self.owner)
                self._jobs.drop(job_id, owner=self.owner)

    def forsake(self) -> None:
        """Cancel and drop all that may be there."""
        shard = min(len(self._dataset.shards), len(self._plan.shards) - 1)
        jobs = self._plan.jobs_of(shard)
        self.drop(self._plan.jobs[jobs[0].number : jobs[-1].number + 1 + MOST_AHEAD])

    def _finished(self, job: PlannedJob) -> bool:
        seen = self._seen.get(job.number)
        return seen is not None and seen.status == "finished"

    def _ahead(self, label: str) -> int:
        ref = self._plan.models[label]
        speed = self._registry.speed(queue_name(ref.version, ref.numerics))
        wanted = speed.images_per_s * AHEAD_S / JOB_PAIRS if speed else 0
        return min(MOST_AHEAD, max(AHEAD, math.ceil(wanted)))

    def _asked_for(self, job: PlannedJob) -> Iterator[str]:
        """The ids under which a job was asked for and is still known."""
        attempt = 0
        while True:
            job_id = self._dataset.job_id(job.number, attempt)
            if self._jobs.get(job_id, owner=self.owner) is not None:
                yield job_id
            elif not self._jobs.expired(job_id, owner=self.owner):
                return
            attempt += 1

    def _asked(self, job: PlannedJob) -> Job | str:
        """The job, or why it cannot be asked for now. One that failed, was canceled or expired is
        asked for under the next id.
        """
        while True:
            job_id = self._dataset.job_id(job.number, self._attempts[job.number])
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
            self._attempts[job.number] += 1

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
        self._failures[job.number] += 1
        if self._failures[job.number] >= TRIES * (1 + self._dataset.resumes):
            reason = f": {state.error}" if state.error else ""
            raise DrawingFailed(f"job {state.id} {state.status}{reason}")


def _is(state: Job, job: PlannedJob) -> bool:
    """Whether a job is the planned one: its owner may have made another under this id."""
    request = state.request
    return (request.label, request.n, request.seed) == (job.label, job.n, job.seed)
