"""Writes data sets of the service, in a thread beside the loop, turn by turn.

A turn looks at the jobs of one data set, asks for more, and stores one shard once all its pairs are
drawn. Then the data set whose turn is the longest due is the next, so a large one does not hold up
a small one. A turn can end anywhere and be taken again by any worker: what counts are the record in
Redis and whole files in storage. Knows no engine and no formats.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from uuid import uuid4

import redis

from pathar.contract import image_seed, settled
from pathar.errors import UsageError
from pathar.quality import Tally
from pathar.recipe import PlannedJob
from pathar.shards import PulledPair, pair_name, refuse_missing
from runtime.objects import Objects, ObjectsAway
from store.access import KeyStore
from store.datasets import Dataset, DatasetStore, Interrupted, Shard
from store.results import ResultStore
from worker.beside import Beside
from worker.dataset_files import DatasetFiles, FilesGone
from worker.dataset_jobs import DatasetJobs, DrawingFailed
from worker.dataset_rounds import ResultsGone, Rounds

TURN_S = 1.0
"""Pause between two turns of a data set whose pairs are being drawn."""
IDLE_S = 0.5
"""Pause between two looks for a turn that is due."""
AWAY_S = 2.0
"""Pause after the storage did not answer."""
BROKEN_S = 30.0
"""Pause after a defect."""
MOST_KNOWN = 32
"""Data sets that a writer remembers between turns."""
UNWANTED = ("canceled", "dropped", "gone")

log = logging.getLogger("pathar.worker")


class Stopped(Exception):
    """This worker is to stop."""


class DatasetWriter:
    """Takes turns until `stop`. `stored` is called with the pairs of each stored shard."""

    def __init__(
        self,
        client: redis.Redis,
        objects: Objects,
        *,
        result_ttl: int,
        stored: Callable[[int], None],
    ) -> None:
        self._redis, self._objects, self._result_ttl = client, objects, result_ttl
        self._stored = stored
        self._datasets, self._keys = DatasetStore(client), KeyStore(client)
        self._results = ResultStore(client, objects)
        self._known: dict[str, tuple[DatasetJobs, Rounds | None]] = {}
        self._name = uuid4().hex
        self._thread = Beside("data sets", self._turns, IDLE_S)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Take no further turns, and hand back the one that this writer has."""
        self._thread.stop()

    def _turns(self) -> None:
        with suppress(redis.RedisError):  # the heartbeat logs it
            while not self._thread.stopped and (uid := self._datasets.take(self._name)):
                dataset = self._datasets.read(uid)
                if dataset is None or dataset.status not in ("queued", "started"):
                    self._clean(uid, dataset)
                else:
                    self._turn(dataset)

    def _turn(self, dataset: Dataset) -> None:
        about = {"dataset": dataset.id, "key": dataset.key_name}
        jobs, rounds = self._jobs(dataset)
        turn = _Turn(dataset, jobs, rounds, self._datasets, self._name, self._check)
        try:
            self._advance(turn)
        except Interrupted as interrupted:
            if interrupted.why in UNWANTED:
                self._clean(dataset.uid, dataset)
        except (Stopped, ResultsGone):
            turn.end(0)
        except ObjectsAway:
            turn.end(AWAY_S, trouble="the storage of results does not answer")
        except (DrawingFailed, FilesGone, UsageError) as error:
            log.warning("data set failed: %s", error, extra=about)
            turn.end(None, status="failed", error=str(error), trouble="")
            turn.jobs.forsake()
        except redis.RedisError:
            raise
        except Exception:
            log.exception("data set", extra=about)
            turn.end(BROKEN_S, trouble="a defect; see the log of the workers")

    def _advance(self, turn: _Turn) -> None:
        dataset, jobs = turn.dataset, turn.jobs
        plan, number = dataset.plan, len(dataset.shards)
        files = DatasetFiles(self._objects, dataset.folder, plan)
        if number == len(plan.shards):
            files.finish()
            turn.write(None, status="finished", trouble="")
            log.info("data set finished", extra=turn.about)
            return
        refuse_missing(dataset.recipe.format)
        owner = self._keys.owner(dataset.owner)
        if owner is None:
            raise DrawingFailed("its API key has been revoked")
        jobs.begin(dataset, owner)
        trouble = jobs.look(number, turn.alive)
        if not jobs.ready(number):
            turn.write(TURN_S, trouble=trouble)
            return
        tallies = defaultdict[str, Tally](Tally)
        pairs = self._pairs(turn, number, tallies)
        shard = files.write_shard(number, pairs, tallies, turn.tick)
        turn.write(0, shard=shard, trouble="")
        self._stored(shard.pairs)
        log.info("shard %d of %d stored", number + 1, len(plan.shards), extra=turn.about)
        done = [job for job in plan.jobs_of(number) if plan.shards_of(job)[-1] == number]
        jobs.drop(done)
        if turn.rounds:
            turn.rounds.delete(done)

    def _pairs(
        self, turn: _Turn, number: int, tallies: Mapping[str, Tally]
    ) -> Iterator[PulledPair]:
        """The pairs of a shard, in order. What was drawn for a job counts in the shard that has
        its first pair. ResultsGone, FilesGone, ObjectsAway.
        """
        plan = turn.dataset.plan
        pairs_of = turn.rounds.pairs if turn.rounds else partial(self._pairs_of, turn)
        for job in plan.jobs_of(number):
            tally = tallies[job.label]
            for pair in pairs_of(job, plan.shards[number], tally):
                tally.keep(pair.quality)
                yield pair

    def _pairs_of(
        self, turn: _Turn, job: PlannedJob, wanted: range, tally: Tally
    ) -> Iterator[PulledPair]:
        """The pairs of a job whose numbers are wanted, as of `Rounds.pairs`; without filters these
        are all its images.
        """
        begins, model = job.first in wanted, turn.dataset.plan.models[job.label]
        indices = [k for k in range(job.n) if begins or job.first + k in wanted]
        state = turn.jobs.found(job)
        settings = settled(asdict(state.request.settings[0]))
        images = self._results.images(turn.dataset.owner, state.id, indices)
        for index, found in zip(indices, images, strict=True):
            if found is None:
                turn.jobs.lost(job)
                raise ResultsGone
            name, seed = pair_name(job.label, job.first + index), image_seed(job.seed, index)
            pair = PulledPair(name, job.label, seed, settings, model, found)
            if begins:
                tally.draw(pair.quality)
            if job.first + index in wanted:
                yield pair

    def _clean(self, uid: str, dataset: Dataset | None) -> None:
        """Cancel the jobs of a data set that is not wanted any more. Delete its files where it was
        dropped, and what filters kept for shards to come where it was canceled.
        """
        rounds = None
        if dataset is not None:
            jobs, rounds = self._jobs(dataset)
            jobs.forsake()
        self._known.pop(uid, None)
        with suppress(ObjectsAway):  # else a later turn does it
            status = self._datasets.status(uid)
            if status == "dropped":
                self._objects.delete_below([f"datasets/{uid}"])
            elif rounds and status == "canceled":
                rounds.delete_all()
            self._datasets.settle(uid, self._name)

    def _jobs(self, dataset: Dataset) -> tuple[DatasetJobs, Rounds | None]:
        """What this writer knows of the jobs of a data set, and of their rounds where it filters.
        At first, jobs that the writer before may have left are dropped.
        """
        if dataset.uid not in self._known:
            while len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            rounds = None
            if dataset.recipe.filtered:
                rounds = Rounds(self._objects, self._results, dataset)
            jobs = DatasetJobs(self._redis, dataset, rounds, result_ttl=self._result_ttl)
            jobs.drop(_left_behind(dataset))
            self._known[dataset.uid] = jobs, rounds
        jobs, rounds = self._known[dataset.uid]
        jobs.begin(dataset)
        return jobs, rounds

    def _check(self) -> None:
        if self._thread.stopped:
            raise Stopped


class _Turn:
    """One turn of a data set."""

    def __init__(
        self,
        dataset: Dataset,
        jobs: DatasetJobs,
        rounds: Rounds | None,
        datasets: DatasetStore,
        writer: str,
        check: Callable[[], None],
    ) -> None:
        self.dataset, self.jobs, self.rounds = dataset, jobs, rounds
        self.about = {"dataset": dataset.id, "key": dataset.key_name}
        self._datasets, self._writer, self._check = datasets, writer, check
        self._looked = self._written = time.monotonic()

    def alive(self) -> None:
        """Within what takes long: see now and then that the data set is still wanted, which keeps
        it. Stopped, Interrupted.
        """
        self._check()
        if time.monotonic() - self._written >= TURN_S:
            kept, drawn = self._progress()
            self._datasets.write(self.dataset.uid, self._writer, kept=kept, drawn=drawn)
            self._written = time.monotonic()

    def tick(self) -> None:
        """The same between two pairs of a shard, and keep the workers busy."""
        self.alive()
        if time.monotonic() - self._looked >= TURN_S:
            self.jobs.look(len(self.dataset.shards), self.alive)
            self._looked = time.monotonic()

    def write(self, pause: float | None, shard: Shard | None = None, **fields: str) -> None:
        """Write how far it is, and when the next turn is due. Interrupted."""
        kept, drawn = self._progress()
        self._datasets.write(
            self.dataset.uid,
            self._writer,
            kept=kept,
            drawn=drawn,
            pause=pause,
            shard=shard,
            fields=fields,
        )

    def end(self, pause: float | None, **fields: str) -> None:
        """The same for a turn that has come to nothing, where the data set is still wanted."""
        with suppress(Interrupted):
            self.write(pause, None, **fields)

    def _progress(self) -> tuple[int, int]:
        """Pairs that are kept, and those that were drawn for them."""
        number, kept, drawn = len(self.dataset.shards), 0, 0
        if number < len(self.dataset.plan.shards):
            kept, drawn = self.jobs.progress(number)
        in_shards = sum(shard.drawn for shard in self.dataset.shards)
        return self.dataset.stored + kept, in_shards + drawn


def _left_behind(dataset: Dataset) -> list[PlannedJob]:
    """The jobs that were to be dropped when the last shard had been stored."""
    last, plan = len(dataset.shards) - 1, dataset.plan
    if last < 0:
        return []
    return [job for job in plan.jobs_of(last) if plan.shards_of(job)[-1] == last]
