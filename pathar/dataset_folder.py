"""The folder of a data set while it is being pulled: what is safe in it, and what is still missing.

A drawn job is safe once its archive lies in `.partial`. Once all jobs of a shard are there, the
shard is written, recorded, and the archives go. Every file is written whole, flushed to the disk
and renamed into place, so a run can be killed at any moment and begun again. The manifest comes
last: a folder without one is not complete. Knows nothing of services and engines.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO

from pathar.contact_sheet import SheetRow
from pathar.errors import CommandError, InternalError, UsageError
from pathar.manifest import MANIFEST, SHOWN, file_facts, files_beside, manifest
from pathar.quality import Tally
from pathar.recipe import ModelRef, Plan, PlannedJob, Recipe
from pathar.shards import WRITERS, PulledPair, pair_name, refuse_missing
from pathar.spool import job_id_of, read_job

PARTIAL = ".partial"
OWN = "own"
"""In PARTIAL: the id of the data set that the service draws for this folder."""
KEPT = (".zip", ".record")
"""Names in PARTIAL of what is safe end like this: drawn jobs, and records of written shards."""


class DatasetFolder:
    """One data set in `out`, which `opened` has locked."""

    def __init__(self, out: Path, plan: Plan) -> None:
        self.out, self.plan = out, plan
        self.safe = 0
        """How many pairs are safe on disk, once `begin` has looked."""
        self._partial = out / PARTIAL
        self._passing: dict[str, Collection[int]] = {}

    # -- what is there -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Note what is pulled here, and see what is. UsageError where some of another data set is
        safe here, or other models draw now.
        """
        path, models = self._partial / "recipe.json", self.plan.models
        told = {label: asdict(ref) for label, ref in models.items()}
        if path.exists() and any(p for p in self._partial.iterdir() if p.suffix in KEPT):
            found = json.loads(path.read_text())
            _refuse_other(self.out, found["recipe"], self.plan.recipe)
            for label, ref in models.items():
                refuse_model(self.out, ModelRef(**found["models"][label]), ref)
        else:
            recipe = self.plan.recipe.to_dict()
            with self._whole(path) as file:
                file.write(json.dumps({"recipe": recipe, "models": told}, indent=1).encode())
        self.safe = self._count()

    def has(self, shard: int) -> bool:
        """Whether a shard is safe."""
        return self._record(shard).exists()

    def _count(self) -> int:
        """Pairs of safe shards, and of jobs that are here beside them."""
        pairs = sum(len(numbers) for k, numbers in enumerate(self.plan.shards) if self.has(k))
        for job in filter(self._open, self.plan.jobs):
            there = [self.plan.shards[k] for k in self.plan.shards_of(job) if self.has(k)]
            stored = sum(min(job.end, s.stop) - max(job.first, s.start) for s in there)
            pairs += max(0, self._safe(job) - stored)
        return pairs

    def missing(self) -> list[PlannedJob]:
        """The jobs that must still be drawn, in order. UsageError where too few pairs pass."""
        following = map(self.following, self.plan.jobs)
        return [job for job in following if job]

    def following(self, job: PlannedJob) -> PlannedJob | None:
        """What must be drawn next for the pairs of a job, whichever of its rounds this is; None
        when they are all here or in shards.
        """
        *_, following = self._rounds(job)
        shown = any(job.number == first.number for first in self.plan.firsts)
        return following if shown or self._open(job) else None

    def _rounds(self, job: PlannedJob) -> Iterator[PlannedJob | None]:
        """The rounds of a job that are here, and at last `following`."""
        following: PlannedJob | None = self.plan.jobs[job.number]
        drawn = kept = 0
        while following and self._spool(following).exists():
            yield following
            drawn, kept = drawn + following.n, kept + len(self._passed(following))
            following = self.plan.again(following, drawn, kept)
        yield following

    def _here(self, job: PlannedJob) -> list[PlannedJob]:
        return [each for each in list(self._rounds(job))[:-1] if each]

    def _passed(self, job: PlannedJob) -> Collection[int]:
        """Which of the images of a job that is here the recipe's filters keep."""
        if not self.plan.recipe.filtered:
            return range(job.n)
        if job.key not in self._passing:
            with self._spool(job).open("rb") as file:
                found = [pair.quality for pair in self._pairs(file, job)]
            self._passing[job.key] = self.plan.passing(job, found)
        return self._passing[job.key]

    def _safe(self, job: PlannedJob) -> int:
        """How many pairs of a job are here."""
        return min(job.pairs, sum(len(self._passed(each)) for each in self._here(job)))

    def spooled(self) -> list[str]:
        """The ids of the jobs of a service whose archives are here."""
        ids: list[str] = []
        for path in self._archives():
            with path.open("rb") as file:
                ids += filter(None, [job_id_of(file)])
        return ids

    def _archives(self) -> list[Path]:
        return sorted(self._partial.glob("*.zip"))

    def _spool(self, job: PlannedJob) -> Path:
        return self._partial / f"{job.key.zfill(6)}.zip"

    def _record(self, shard: int) -> Path:
        return self._partial / f"{shard:05d}.record"

    def _open(self, job: PlannedJob) -> bool:
        """Whether a shard that it has pairs in is not written yet."""
        return any(not self.has(shard) for shard in self.plan.shards_of(job))

    # -- what comes --------------------------------------------------------------------------------

    @contextmanager
    def keeping(self, job: PlannedJob) -> Iterator[BinaryIO]:
        """A file for the archive of a job, which is checked before it counts. InternalError where
        it is not what was planned.
        """
        before = self._safe(job)
        with self._whole(self._spool(job)) as file:
            yield file
            file.flush()
            with Path(file.name).open("rb") as written:
                for _ in self._pairs(written, job):
                    pass
        _sync(self._partial)
        self.safe += self._safe(job) - before

    def write_shards(self, since: PlannedJob | None = None) -> None:
        """Write the shards whose jobs are all here, and remove the archives that none needs any
        more. Looks at the shards of one job alone where that is the last that came.
        """
        for shard in self.plan.shards_of(since) if since else range(len(self.plan.shards)):
            jobs = self.plan.jobs_of(shard)
            if not self.has(shard) and not any(map(self.following, jobs)):
                self._write_shard(shard, jobs)
        for path in self._archives():
            job = self.plan.jobs[int(path.stem.partition("r")[0])]
            if not self._open(job) and job not in self.plan.firsts:
                path.unlink()

    def _write_shard(self, shard: int, jobs: list[PlannedJob]) -> None:
        written: list[str] = []

        @contextmanager
        def put(name: str) -> Iterator[BinaryIO]:
            with self._put(name) as file:
                yield file
            written.append(name)

        wanted, tallies = self.plan.shards[shard], defaultdict[str, Tally](Tally)
        pairs = self._numbered(jobs, wanted, tallies)
        WRITERS[self.plan.recipe.format](pairs, f"pairs-{shard:05d}", put)
        facts = [file_facts(self.out, name) for name in written]
        quality = {label: asdict(tally) for label, tally in tallies.items()}
        self._note(shard, {"pairs": len(wanted), "files": facts, "quality": quality})

    def _note(self, shard: int, told: Mapping[str, Any]) -> None:
        """Write the record of a shard, once its files are on the disk."""
        self._sync([facts["path"] for facts in told["files"]])
        with self._whole(self._record(shard)) as file:
            file.write(json.dumps(told).encode())
        _sync(self._partial)

    def _numbered(
        self, jobs: list[PlannedJob], wanted: range, tallies: Mapping[str, Tally]
    ) -> Iterator[PulledPair]:
        """The pairs with these numbers. What was drawn for a job counts in the shard that has its
        first pair.
        """
        for job in jobs:
            tally = tallies[job.label]
            chosen = self._chosen(job, tally if job.first in wanted else None)
            for number, pair in enumerate(chosen, job.first):
                if number in wanted:
                    tally.keep(pair.quality)
                    yield replace(pair, name=pair_name(job.label, number))

    def _chosen(self, job: PlannedJob, tally: Tally | None = None) -> Iterator[PulledPair]:
        """The pairs that a job gives, in order."""
        left = job.pairs
        for each in self._here(job):
            passed = self._passed(each)
            with self._spool(each).open("rb") as file:
                for index, pair in enumerate(self._pairs(file, each)):
                    if tally:
                        tally.draw(pair.quality)
                    if left and index in passed:
                        left -= 1
                        yield pair

    def _pairs(self, file: IO[bytes], job: PlannedJob) -> Iterator[PulledPair]:
        return read_job(file, job, self.plan.models[job.label])

    # -- what a service has written ----------------------------------------------------------------

    @contextmanager
    def adding(self, facts: Mapping[str, Any]) -> Iterator[BinaryIO]:
        """A file of the data set as a manifest lists it. InternalError where it is something else,
        or would lie elsewhere than in this folder.
        """
        parts = facts["path"].split("/")
        if any(not part or part.startswith(".") for part in parts):
            raise InternalError(f"got {facts['path'][:100]!r} for the path of a file")
        with self._put(facts["path"]) as file:
            yield file
            file.flush()
            with Path(file.name).open("rb") as written:
                digest = hashlib.file_digest(written, "sha256").hexdigest()
            if digest != facts["sha256"]:
                raise InternalError(f"{facts['path']} is not what its SHA-256 says")

    def record(self, shard: int, told: Mapping[str, Any]) -> None:
        """Note that a shard is safe, whose files have been added. InternalError where it has
        another number of pairs than planned.
        """
        wanted = len(self.plan.shards[shard])
        if told["pairs"] != wanted:
            raise InternalError(f"shard {shard} has {told['pairs']} pairs, expected {wanted}")
        self._note(shard, told)
        self.safe = self._count()

    def note_own(self, dataset_id: str) -> None:
        """Note that the service draws a data set for this folder alone."""
        with self._whole(self._partial / OWN) as file:
            file.write(dataset_id.encode())

    def own(self) -> str | None:
        """What `note_own` has noted."""
        path = self._partial / OWN
        return path.read_text() if path.exists() else None

    def beside(self, text: bytes) -> list[dict[str, Any]]:
        """The files that a manifest lists beside the shards. InternalError unless it is the one of
        this data set.
        """
        try:
            told = json.loads(text)
            ours = json.loads(manifest(self.plan, self._shards(), told["files"]))
            if ours | {"version": ""} != told | {"version": ""}:
                raise ValueError("it is that of another data set")
            files: list[dict[str, Any]] = told["files"]
        except (ValueError, KeyError, TypeError) as error:
            raise InternalError(f"the manifest of the service: {error!r}") from None
        return files

    def finish_as(self, text: bytes) -> None:
        """Write the manifest, once all files are there."""
        self._finish(text, [facts["path"] for facts in self.beside(text)])

    # -- the end -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Write what a complete data set has beside its shards; the manifest is the last."""
        beside = files_beside(self.plan, self._rows(), self._shards())
        for name, content in beside.items():
            with self._put(name) as file:
                file.write(content)
        facts = [file_facts(self.out, name) for name in beside]
        self._finish(manifest(self.plan, self._shards(), facts).encode(), beside)
        self.close()

    def close(self) -> None:
        """Remove what only an incomplete folder has."""
        shutil.rmtree(self._partial)

    def _finish(self, text: bytes, beside: Collection[str]) -> None:
        self._sync(beside)
        with self._whole(self.out / MANIFEST) as file:
            file.write(text)
        _sync(self.out)

    def _shards(self) -> list[dict[str, Any]]:
        """The records of all shards."""
        return [json.loads(self._record(n).read_text()) for n in range(len(self.plan.shards))]

    def _rows(self) -> list[SheetRow]:
        return [
            SheetRow(job.label, [pair.files for pair in islice(self._chosen(job), SHOWN)])
            for job in self.plan.firsts
        ]

    # -- files -------------------------------------------------------------------------------------

    @contextmanager
    def _put(self, name: str) -> Iterator[BinaryIO]:
        """A file of the data set, which has its name once it is written."""
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._written(path) as file:
            yield file

    @contextmanager
    def _whole(self, path: Path) -> Iterator[BinaryIO]:
        """A file that has its name once it is on the disk."""
        with self._written(path) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _written(self, path: Path) -> Iterator[BinaryIO]:
        """A run writes one file at a time; what a killed one left of it is written over."""
        writing = self._partial / "writing"
        try:
            with writing.open("wb") as file:
                yield file
            os.replace(writing, path)
        except BaseException:
            writing.unlink(missing_ok=True)
            raise

    def _sync(self, names: Collection[str]) -> None:
        """Flush files of the data set to the disk, and their folders. All at once, since that takes
        the disk a fraction of the time."""
        folders = {str(parent) for name in names for parent in Path(name).parents}
        for name in (*names, *folders):
            _sync(self.out / name)


@contextmanager
def opened(out: Path) -> Iterator[None]:
    """Hold the folder for one run. UsageError where another run has it, or where it holds anything
    else than a data set.
    """
    import fcntl  # which Windows lacks, where clients that pull nothing run

    partial = out / PARTIAL
    if out.exists() and not partial.exists() and any(out.iterdir()):
        raise UsageError(f"out {out}: holds other files, expected a new folder")
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"out {out}: another run is pulling into it") from None
        yield


def is_complete(out: Path, recipe: Recipe) -> bool:
    """Whether the folder holds this recipe's data set, whole. UsageError where it is another's."""
    path = out / MANIFEST
    if not path.exists():
        return False
    try:
        found = json.loads(path.read_text())["recipe"]
    except (ValueError, KeyError, TypeError):
        raise CommandError(f"{path}: is not the manifest of a data set") from None
    _refuse_other(out, found, recipe)
    shutil.rmtree(out / PARTIAL, ignore_errors=True)  # of a run that was killed at its end
    return True


def refuse_model(out: Path, before: ModelRef, now: ModelRef) -> None:
    """UsageError where another model draws than the one that the data set was begun with."""
    if now != before:
        was, drawn = (f"{m.name} {m.version[:12]}, numerics {m.numerics}" for m in (before, now))
        raise UsageError(
            f"out {out}: begun with the model {was}; now {drawn} draws. Take another folder, or "
            "start a worker with that model and those numerics"
        )


def _refuse_other(out: Path, found: Mapping[str, Any], recipe: Recipe) -> None:
    for name, value in recipe.to_dict().items():
        if json.dumps(found.get(name)) != json.dumps(value):  # of labels, the order counts too
            was = f"begun with {name} {found.get(name)!r}, now it is {value!r}"
            raise UsageError(f"out {out}: {was}; take another folder")


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse(out: Path, recipe: Recipe) -> None:
    """UsageError where a recipe cannot be pulled into this folder, as far as shows at once."""
    refuse_missing(recipe.format)
    if out.exists() and not out.is_dir():
        raise UsageError(f"out {out}: is a file, expected a folder")
