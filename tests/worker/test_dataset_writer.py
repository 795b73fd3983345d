"""The writer of data sets with filters, stopped at each change that it makes to Redis and to the
storage. A test draws the images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from model.request import Label, ModelInfo, SamplingSettings
from pathar.contract import Status
from pathar.errors import UsageError
from pathar.recipe import Recipe
from runtime.folder import Folder
from store import keys
from store.access import ANYBODY
from store.datasets import Dataset, DatasetStore
from store.jobs import JobStore
from store.keys import queue_name
from store.parts import PartStore, read_part
from store.registry import Registry
from tests.pathar.test_dataset_folder import MODEL, Stopped, files, pull, stopping
from tests.pathar.test_pull_killed import contents
from worker.dataset_writer import DatasetWriter

INFO = ModelInfo(
    name=MODEL.name,
    version=MODEL.version,
    numerics=MODEL.numerics,
    labels=(Label("blood", "organ"), Label("cervix", "organ")),
    defaults=SamplingSettings(),
    codebook_size=16,
    grid_size=4,
    image_size=64,
    segments=True,
)
RECIPE: dict[str, Any] = {
    "labels": {"blood": 5, "cervix": 1},
    **{"shard_size": 4, "min_agreement": 0.7, "best_of": 2, "seed": 2},
}
"""The first job has pairs in both shards, and needs several rounds."""
CHANGES = (
    *((Folder, "_end"), (Folder, "delete_below")),
    *((JobStore, "submit"), (JobStore, "drop"), (DatasetStore, "write")),
)


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped loses nothing that it wrote: only a machine that is does."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Service:
    """What a writer needs, and workers that draw all that waits as soon as they are asked."""

    def __init__(self, client: redis.Redis, share: Path) -> None:
        self.client, self.share = client, share
        self.datasets = DatasetStore(client)
        Registry(client).publish(INFO, "test-worker", 4)
        queue = queue_name(INFO.version, INFO.numerics)
        self._parts = PartStore(client, queue, "test-worker", result_ttl=600)

    def writer(self) -> DatasetWriter:
        return DatasetWriter(
            self.client, Folder(f"file://{self.share}"), result_ttl=600, stored=lambda _: None
        )

    def make(self, name: str, recipe: Recipe) -> Dataset:
        models = dict.fromkeys(recipe.labels, MODEL)
        return self.datasets.make(name, recipe, models, owner=ANYBODY, max_waiting=10_000)[0]

    def state(self, name: str) -> Dataset:
        found = self.datasets.get(name, owner=ANYBODY)
        assert found is not None
        return found

    def work(self, *, segmenter: bool = True) -> None:
        for claim in self._parts.claim(10_000):
            held = self._parts.start(claim, read_part(claim))
            assert held is not None
            self._parts.finish(held, files(held.image.seed, segmenter=segmenter), 0.5)

    def turn(self, writer: DatasetWriter, name: str) -> None:
        """A turn that is due, and all those that are due after it."""
        self.client.zadd(keys.DATASET_TURNS, {self.state(name).uid: 1.0})
        writer._turns()

    def there(self) -> tuple[set[Path], list[tuple[Status, int]]]:
        """All files, and status and number of images of all jobs."""
        listed = JobStore(self.client, result_ttl=600).page(owner=ANYBODY, limit=100).jobs
        return set(self.share.rglob("*")), [(job.status, job.request.n) for job in listed]

    def files(self, name: str) -> dict[str, bytes]:
        found = contents(self.share / self.state(name).folder)
        return {path: content for path, content in found.items() if not path.startswith(".")}

    def ended(self, writer: DatasetWriter, name: str, **how: bool) -> Dataset:
        while self.state(name).status in ("queued", "started"):
            self.turn(writer, name)
            self.work(**how)
        return self.state(name)


@pytest.fixture
def service(client: redis.Redis, tmp_path: Path) -> Service:
    (tmp_path / "share").mkdir()
    return Service(client, tmp_path / "share")


@pytest.fixture
def client(redis_server: Any) -> Iterator[redis.Redis]:
    with redis_server.client() as connected:
        yield connected


def test_wherever_a_writer_is_stopped_the_next_one_makes_the_same_of_it(
    service: Service, tmp_path: Path
) -> None:
    """Each writer is stopped as soon as it has got on."""
    recipe = Recipe.from_dict(RECIPE)
    jobs = pull(recipe, tmp_path / "alone")
    whole, drawn = contents(tmp_path / "alone"), sum(job.n for job in jobs)
    assert [job.key for job in jobs] == ["0", "0r1", "0r2", "1"]
    service.make("a", recipe)
    stops, changes = 0, 1
    while service.state("a").status in ("queued", "started"):
        before = service.there()
        try:
            with stopping(changes, CHANGES):
                service.turn(service.writer(), "a")
        except Stopped:
            stops += 1
        changes = changes + 1 if service.there() == before else 1
        service.work()
    done = service.state("a")
    assert stops > 20
    assert (done.status, done.kept, done.drawn) == ("finished", 6, drawn)
    assert sum(shard.drawn for shard in done.shards) == drawn
    assert service.files("a") == whole
    assert list((service.share / done.folder).rglob("rounds/*")) == []


def test_two_writers_in_turn_draw_nothing_twice(service: Service, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(RECIPE)
    jobs = pull(recipe, tmp_path / "alone")
    service.make("a", recipe)
    writers = [service.writer(), service.writer()]
    while service.state("a").status != "finished":
        service.turn(writers[0], "a")
        service.work()
        writers.reverse()
    assert service.files("a") == contents(tmp_path / "alone")
    listed = JobStore(service.client, result_ttl=600).page(owner=ANYBODY, limit=100).jobs
    assert sorted((job.request.seed, job.request.n) for job in listed) == sorted(
        (job.seed, job.n) for job in jobs
    )


@pytest.mark.parametrize(
    ("filters", "segmenter", "said"),
    [
        ({"min_agreement": 1.0}, True, "but the best of 2 images reached it only"),
        ({}, False, "the model 'small' tells no agreement (the checkpoint has no segmenter)"),
    ],
)
def test_where_too_few_pass_it_fails_in_the_words_of_a_pull_and_keeps_no_job(
    filters: dict[str, Any], segmenter: bool, said: str, service: Service, tmp_path: Path
) -> None:
    recipe = Recipe.from_dict({**RECIPE, **filters, "labels": {"cervix": 2}, "seed": 0})
    with pytest.raises(UsageError) as error:
        pull(recipe, tmp_path / "alone", segmenter=segmenter)
    service.make("a", recipe)
    for _ in range(2):
        done = service.ended(service.writer(), "a", segmenter=segmenter)
        assert (done.status, done.error) == ("failed", str(error.value))
        service.datasets.change("a", "resume", owner=ANYBODY)
    assert said in str(error.value)


def test_of_a_canceled_one_nothing_is_kept_for_shards_to_come(service: Service) -> None:
    rounds = service.share / service.make("a", Recipe.from_dict(RECIPE)).folder / ".pathar/rounds"
    writer = service.writer()
    while not rounds.exists():
        service.turn(writer, "a")
        service.work()
    assert service.state("a").status == "started"
    service.datasets.change("a", "cancel", owner=ANYBODY)
    service.turn(writer, "a")
    assert not rounds.exists()
