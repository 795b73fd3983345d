"""What filters keep of the jobs of a data set, in the storage of results.

Once a job is drawn, the pairs that pass go into a file of the data set, and a record with the
quality of all its images after it. Then the job can be dropped: what is not kept takes no room, and
which round is the next follows from the records alone. A round that is written again has the same
bytes. Knows no Redis and no turns.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from pathar.contract import FILE_NAMES, IMAGE_NAME, Setting, image_seed, settled
from pathar.quality import Quality, Tally
from pathar.recipe import PlannedJob
from pathar.shards import PulledPair, pair_name
from runtime.objects import Objects
from store.datasets import Dataset
from store.job import Job
from store.results import ResultStore
from worker.dataset_files import HIDDEN_ROUNDS, FilesGone


class ResultsGone(Exception):
    """The results of a finished job are not there any more."""


@dataclass(frozen=True)
class Round:
    """A drawn job: the quality of its images, and which of them are kept."""

    job: PlannedJob
    settings: Mapping[str, Setting]
    found: Sequence[Quality]
    kept: Collection[int]


class Rounds:
    """The rounds of a data set with filters: `JOB/ROUND.zip` and `JOB/ROUND.json` below
    HIDDEN_ROUNDS in its folder. What is known here saves questions: another writer may have stored
    more meanwhile.
    """

    def __init__(self, objects: Objects, results: ResultStore, dataset: Dataset) -> None:
        self._objects, self._results = objects, results
        self._owner, self._folder, self._plan = dataset.owner, dataset.folder, dataset.plan
        self._known = defaultdict[int, list[Round]](list)

    def following(self, job: PlannedJob) -> PlannedJob | None:
        """What must be drawn next for the pairs of a job; None when they are all here. UsageError
        where too few pass. ObjectsAway.
        """
        rounds = self._known[job.number]
        while following := self._after(job, rounds):
            found = self._read(following)
            if found is None:
                break
            rounds.append(found)
        return following

    def keep(self, job: PlannedJob, state: Job, alive: Callable[[], None]) -> None:
        """Store what is kept of a finished job; calls `alive` for each image that is read.
        ResultsGone, UsageError, ObjectsAway.
        """

        def images(indices: Collection[int], names: Sequence[str]) -> Iterator[Mapping[str, bytes]]:
            for files in self._results.images(self._owner, state.id, indices, names):
                alive()
                if files is None:
                    raise ResultsGone
                yield files

        found = [Quality.of(files) for files in images(range(job.n), [IMAGE_NAME])]
        kept = self._plan.passing(job, found)
        settings = settled(asdict(state.request.settings[0]))
        pairs = zip(kept, images(kept, FILE_NAMES), strict=True)
        packed = _packed(pairs)
        with self._objects.writing(self._path(job, "zip")) as file:
            file.write(packed)
        told = {"settings": settings, "images": [_told(quality) for quality in found]}
        self._objects.put({self._path(job, "json"): json.dumps(told).encode()})
        self._known[job.number].append(Round(job, settings, found, kept))

    def pairs(self, job: PlannedJob, wanted: range, tally: Tally) -> Iterator[PulledPair]:
        """The pairs of a job with these numbers, in order. All that was drawn for it counts in
        `tally` if its first pair is one of them. FilesGone, ObjectsAway.
        """
        number = job.first
        for each in self._known[job.number]:
            if job.first in wanted:
                for quality in each.found:
                    tally.draw(quality)
            numbers = range(number, min(number + len(each.kept), job.end))
            number = numbers.stop
            if not any(at in wanted for at in numbers):
                continue
            with zipfile.ZipFile(io.BytesIO(self._content(each.job))) as archive:
                for at, index in zip(numbers, each.kept, strict=False):
                    if at in wanted:
                        yield self._pair(each, at, index, archive)

    def progress(self, first: int) -> tuple[int, int]:
        """Of the pairs from number `first` on, how many are kept, as far as is known here, and how
        many were drawn for jobs that begin there.
        """
        kept = drawn = 0
        for number, rounds in self._known.items():
            job = self._plan.jobs[number]
            end = min(job.end, job.first + sum(len(each.kept) for each in rounds))
            kept += max(0, end - max(job.first, first))
            drawn += sum(each.job.n for each in rounds) if job.first >= first else 0
        return kept, drawn

    def forget(self, before: int) -> None:
        """Know nothing of the jobs before this number any more."""
        for number in [number for number in self._known if number < before]:
            del self._known[number]

    def delete(self, jobs: Iterable[PlannedJob]) -> None:
        """Delete what is kept of jobs. ObjectsAway."""
        self._objects.delete_below(f"{self._folder}/{HIDDEN_ROUNDS}/{job.number}" for job in jobs)

    def delete_all(self) -> None:
        """Delete what is kept of all jobs. ObjectsAway."""
        self._objects.delete_below([f"{self._folder}/{HIDDEN_ROUNDS}"])

    def _after(self, job: PlannedJob, rounds: Sequence[Round]) -> PlannedJob | None:
        if not rounds:
            return job
        drawn, kept = sum(each.job.n for each in rounds), sum(len(each.kept) for each in rounds)
        return self._plan.again(rounds[-1].job, drawn, kept)

    def _read(self, job: PlannedJob) -> Round | None:
        [content] = self._objects.get([self._path(job, "json")])
        if content is None:
            return None
        told = json.loads(content)
        found = [Quality.from_record(each) for each in told["images"]]
        return Round(job, told["settings"], found, self._plan.passing(job, found))

    def _content(self, job: PlannedJob) -> bytes:
        path = self._path(job, "zip")
        [content] = self._objects.get([path])
        if content is None:
            raise FilesGone(f"{path} is gone from the storage of results")
        return content

    def _pair(self, drawn: Round, number: int, index: int, archive: zipfile.ZipFile) -> PulledPair:
        job = drawn.job
        files = {name: archive.read(f"{index}/{name}") for name in FILE_NAMES}
        name, seed = pair_name(job.label, number), image_seed(job.seed, index)
        model = self._plan.models[job.label]
        return PulledPair(name, job.label, seed, drawn.settings, model, files)

    def _path(self, job: PlannedJob, kind: str) -> str:
        return f"{self._folder}/{HIDDEN_ROUNDS}/{job.number}/{job.round}.{kind}"


def _packed(pairs: Iterable[tuple[int, Mapping[str, bytes]]]) -> bytes:
    """Files of images by index, in one file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for index, files in pairs:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(f"{index}/{name}"), content)
    return buffer.getvalue()


def _told(quality: Quality) -> dict[str, object]:
    """As `Quality.from_record` reads it."""
    return {**vars(quality), "log_likelihood": quality.log_likelihood._asdict()}
