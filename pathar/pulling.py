"""Pulls a data set from a service: as one data set of the service (`following.py`), or where that
offers none, by a few jobs ahead, each safe on disk before it is dropped there.

It is a flow like those of `flows.py`, so both clients run it. Every step can be repeated: a job has
the same id in every run, and what is safe is not asked for again. Knows no sockets and no formats.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from pathar import flows
from pathar.dataset_folder import DatasetFolder, is_complete, opened, refuse, refuse_model
from pathar.errors import Gone, JobCanceled, JobFailed, NoModel, NotFound, NotOffered, UsageError
from pathar.flows import Flow, Give, Pause
from pathar.following import Following, Progress
from pathar.pairs import Event, Job, Label
from pathar.recipe import ModelRef, Plan, PlannedJob, Recipe
from pathar.retries import PASSING, Patience, Waiting

AHEAD = 3
"""Jobs that a service has at a time. More would let results pile up there."""
TRY_S = 10.0
"""How long one step is retried before the trouble is shown."""


def pull(recipe: Recipe, out: Path, patience: Patience, *, follow: bool = True) -> Flow[None]:
    """Pull the data set of a recipe into `out`; yield Progress. Does nothing where it is complete.

    Without `follow`, jobs alone are asked for.
    Goes on while the service is away or full for as long as `patience` without any success.
    UsageError on a folder of something else, and when another model draws than at the beginning;
    JobFailed and JobCanceled when a job does not come to its end: the next run asks for it again.
    """
    refuse(out, recipe)
    if is_complete(out, recipe):
        return
    models = models_of(recipe, (yield from flows.labels(patience)))
    with opened(out):
        folder = DatasetFolder(out, Plan(recipe, models))
        folder.begin()
        yield Give(Progress(folder.safe))
        run: Following | _Run = Following(folder) if follow else _Run(folder)
        waiting = Waiting(patience)
        while True:
            try:
                yield from run.all(waiting)
                return
            except NotOffered:
                run = _Run(folder)
            except PASSING as error:
                pause = waiting.pause(error)
                yield Give(Progress(folder.safe, trouble=error.detail))
                yield Pause(pause)


def models_of(recipe: Recipe, labels: Sequence[Label]) -> dict[str, ModelRef]:
    """The model that a new request for each label of the recipe gets. UsageError where there is
    none, or more than one. NoModel where no label is known.
    """
    if not labels:
        raise NoModel("no worker has reported a model lately")
    return {label: _model_of(label, recipe.model, labels) for label in recipe.labels}


def _model_of(label: str, model: str | None, labels: Sequence[Label]) -> ModelRef:
    having = [each for each in labels if each.name == label and model in (None, each.model)]
    having = [each for each in having if each.ready] or having
    if not having:
        known = ", ".join(dict.fromkeys(each.name for each in labels))
        of_model = f" of the model {model!r}" if model else ""
        raise UsageError(f"labels: got {label!r}{of_model}, expected one of {known}")
    if len(having) > 1:
        names = ", ".join(each.model for each in having)
        raise UsageError(f"model: got none, expected one of {names}, which all have {label!r}")
    [found] = having
    return ModelRef(found.model, found.version, found.numerics, found.mpp, found.learned)


class _Run:
    """One run of a pull. `attempts`: by the key of a job, how often its id was of no use."""

    def __init__(self, folder: DatasetFolder) -> None:
        self._folder = folder
        self._attempts: dict[str, int] = {}

    def all(self, waiting: Waiting) -> Flow[None]:
        """Draw what is missing, and complete the folder. Passing trouble ends it, and it can be
        begun again.
        """
        yield from self._drop_safe(waiting)
        self._folder.write_shards()
        left, ahead = deque(self._folder.missing()), deque[tuple[PlannedJob, Job]]()
        while left or ahead:
            while left and len(ahead) < AHEAD:
                waiting.begin()
                try:  # where there is no room, the jobs that are there must be fetched first
                    state = yield from self._asked(left[0], 0.0 if ahead else TRY_S)
                except PASSING:
                    if not ahead:
                        raise
                    break
                waiting.answered()
                ahead.append((left.popleft(), state))
            job, state = ahead.popleft()
            following: PlannedJob | None = job
            if (yield from self._kept(job, state, waiting)):
                following = self._folder.following(job)
            if following:
                left.appendleft(following)
        self._folder.finish()

    def _drop_safe(self, waiting: Waiting) -> Flow[None]:
        """Drop again what is safe here: the last run may have been killed before it did."""
        for job_id in self._folder.spooled():
            yield from _dropped(job_id, waiting)

    def _asked(self, job: PlannedJob, seconds: float) -> Flow[Job]:
        """The job on the service. One that failed or was canceled in an earlier run, or whose id
        has expired, is asked for under the next id.
        """
        plan = self._folder.plan
        model = plan.models[job.label]
        order = {**job.fields(), "model": model.name, "priority": "bulk"}
        for attempt in count(self._attempts.get(job.key, 0)):
            self._attempts[job.key] = attempt
            try:
                state = yield from flows.submit(order, plan.job_id(job, attempt), _step(seconds))
            except Gone:
                continue
            if state.status in ("failed", "canceled"):
                continue
            drawn = ModelRef(state.model, state.version, state.numerics)
            if drawn != model:
                yield from flows.cancel(state.id, _step(seconds), files=True)
            refuse_model(self._folder.out, model, drawn)
            return state
        raise AssertionError

    def _kept(self, job: PlannedJob, state: Job, waiting: Waiting) -> Flow[bool]:
        """Wait for a job, make it safe here and drop it there. False when its results are gone: a
        run of the same recipe has dropped them.
        """
        yield from self._watched(state, waiting)
        try:
            with self._folder.keeping(job) as file:
                yield from flows.archive(state.id, file, _step())
        except NotFound:
            self._attempts[job.key] += 1
            return False
        waiting.answered()
        yield from _dropped(state.id, waiting)
        self._folder.write_shards(job)
        yield Give(Progress(self._folder.safe))
        return True

    def _watched(self, state: Job, waiting: Waiting) -> Flow[None]:
        """Yield progress until the job has ended. JobFailed, JobCanceled."""
        drawn, ahead = 0, state.position or 0
        yield Give(Progress(self._folder.safe, drawn, ahead))
        flow, answer = flows.until_ended(state, _step()), None
        while True:
            waiting.begin()
            try:
                effect = flow.send(answer)
            except StopIteration as end:
                state = end.value
                break
            answer = None
            if not isinstance(effect, Give):
                answer = yield effect
                continue
            waiting.answered()
            if isinstance(effect.what, Job):
                drawn, ahead = len(effect.what.finished), effect.what.position or 0
            elif isinstance(effect.what, Event) and effect.what.kind == "image":
                drawn, ahead = drawn + 1, 0
            yield Give(Progress(self._folder.safe, drawn, ahead))
        if state.status == "failed":
            raise JobFailed(f"job {state.id} failed: {state.error}")
        if state.status == "canceled":
            raise JobCanceled(f"job {state.id} was canceled")


def _step(seconds: float = TRY_S) -> Patience:
    """The patience of one step, with a service that has answered."""
    return Patience(seconds, reached=True)


def _dropped(job_id: str, waiting: Waiting) -> Flow[None]:
    """Drop the results of a job, where there still are any."""
    waiting.begin()
    with suppress(NotFound, Gone):
        yield from flows.cancel(job_id, _step(), files=True)
    waiting.answered()
