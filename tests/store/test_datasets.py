"""Records of data sets: whose turn it is, and that no writer writes what is not its own."""

from __future__ import annotations

import pytest
import redis

from pathar.recipe import ModelRef, Recipe
from runtime.connection import connect
from store import keys
from store.access import ANYBODY
from store.datasets import LEASE_S, Dataset, DatasetStore, Interrupted, Shard
from store.scripts import PACE_S
from tests.conftest import RedisServer
from tests.lossy import lossy
from tests.store.conftest import ANN, Clock

RECIPE = Recipe.of({"histology": 250}, {"shard_size": 100})
MODELS = {"histology": ModelRef("test", "ab" * 32, "0123456789ab", 0.5)}
FIRST = Shard(0, 100, 130, 1, 5000, "ab" * 32)


@pytest.fixture
def datasets(client: redis.Redis, clock: Clock) -> DatasetStore:
    return DatasetStore(client)


def make(datasets: DatasetStore, name: str = "a") -> Dataset:
    made, new = datasets.make(name, RECIPE, MODELS, owner=ANN, max_waiting=9)
    assert new
    return made


def see(datasets: DatasetStore, name: str = "a") -> Dataset:
    found = datasets.get(name, owner=ANN)
    assert found is not None
    return found


def test_a_record_holds_the_recipe_and_the_models_that_it_was_made_with(
    datasets: DatasetStore,
) -> None:
    made = make(datasets)
    assert (made.recipe, made.models, made.models["histology"].mpp) == (RECIPE, MODELS, 0.5)
    assert datasets.get("a", owner=ANYBODY) is None
    newer = {"histology": ModelRef("test", "cd" * 32, "0123456789ab")}
    found, new = datasets.make("a", RECIPE, newer, owner=ANN, max_waiting=9)
    assert (found, new) == (made, False), "it keeps the models that have begun it"


def test_turns_go_round_and_another_writer_takes_over_when_a_lease_has_run_out(
    datasets: DatasetStore, clock: Clock
) -> None:
    a, b = make(datasets, "a"), make(datasets, "b")
    assert {datasets.take("one"), datasets.take("two")} == {a.uid, b.uid}
    assert datasets.take("three") is None
    clock.forward(LEASE_S - 1)
    for made in (a, b):
        writes = [written(datasets, made, writer) for writer in ("one", "two")]
        assert sorted(writes) == [False, True], "each has one"
    clock.forward(LEASE_S - 1)
    assert datasets.take("three") is None, "both have renewed their leases"
    clock.forward(2)
    assert {datasets.take("three"), datasets.take("three")} == {a.uid, b.uid}
    for writer in ("one", "two"):
        with pytest.raises(Interrupted, match="lost"):
            datasets.write(a.uid, writer, kept=100, drawn=100, shard=FIRST)
    assert see(datasets, "a").shards == ()
    datasets.write(a.uid, "three", kept=100, drawn=100, shard=FIRST, pause=0)
    assert see(datasets, "a").shards == (FIRST,)
    assert datasets.take("four") == a.uid, "its next turn is due"


def written(datasets: DatasetStore, dataset: Dataset, writer: str) -> bool:
    """Whether a writer may write to a data set; `lost` where another has it."""
    try:
        datasets.write(dataset.uid, writer, kept=5, drawn=5)
    except Interrupted as interrupted:
        return interrupted.why != "lost"
    return True


def test_a_shard_is_written_once_though_the_answer_was_lost(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    datasets = DatasetStore(client)
    made = make(datasets)
    assert datasets.take("one") == made.uid
    with lossy(redis_server.folder) as way, connect(way.url) as far:
        way.lose = 1
        DatasetStore(far).write(made.uid, "one", kept=100, drawn=100, shard=FIRST)
        assert way.lost == 1
    assert see(datasets).shards == (FIRST,)
    assert (see(datasets).status, see(datasets).stored) == ("started", 100)


@pytest.mark.parametrize("change", ["pause", "cancel", "drop"])
def test_a_writer_hears_that_its_data_set_is_not_wanted_any_more(
    change: str, datasets: DatasetStore, client: redis.Redis
) -> None:
    made = make(datasets)
    assert datasets.take("one") == made.uid
    datasets.write(made.uid, "one", kept=3, drawn=3)
    datasets.change("a", change, owner=ANN)  # type: ignore[arg-type]
    why = {"pause": "paused", "cancel": "canceled", "drop": "dropped"}[change]
    with pytest.raises(Interrupted, match=why):
        datasets.write(made.uid, "one", kept=100, drawn=100, shard=FIRST)
    again = None if change == "pause" else made.uid
    assert datasets.take("two") == again, "somebody must tidy up"
    if again is not None:
        assert datasets.settle(made.uid, "two")
    assert datasets.take("two") is None
    left = client.keys(f"{keys.DATASET}*") + client.keys(f"{keys.SHARDS}*")
    assert bool(left) == (change != "drop")
    if change == "drop":
        with pytest.raises(Interrupted, match="gone"):
            datasets.write(made.uid, "one", kept=100, drawn=100, shard=FIRST)
        assert make(datasets).uid != made.uid


def test_what_was_resumed_is_not_settled(datasets: DatasetStore) -> None:
    made = make(datasets)
    assert datasets.take("one") == made.uid
    datasets.change("a", "pause", owner=ANN)
    datasets.change("a", "resume", owner=ANN)
    assert not datasets.settle(made.uid, "one")
    assert datasets.take("two") == made.uid
    with pytest.raises(Interrupted, match="lost"):
        datasets.write(made.uid, "one", kept=1, drawn=1)
    assert see(datasets).resumes == 1


def test_the_rate_is_that_of_pairs_kept_in_the_last_minute(
    datasets: DatasetStore, clock: Clock
) -> None:
    made = make(datasets)
    datasets.take("one")
    datasets.write(made.uid, "one", kept=0, drawn=0)
    assert see(datasets).rate is None
    for step in range(1, 8):
        clock.forward(PACE_S / 2)
        datasets.write(made.uid, "one", kept=10 * step, drawn=13 * step)
        assert see(datasets).rate == pytest.approx(20 / PACE_S)
    assert see(datasets).seconds_left == pytest.approx((250 - 70) * PACE_S / 20)
    for _ in range(5):
        clock.forward(PACE_S / 2)
        datasets.write(made.uid, "one", kept=70, drawn=200)
    assert (see(datasets).kept, see(datasets).drawn) == (70, 200)
    assert see(datasets).rate == 0
    assert see(datasets).seconds_left is None
    datasets.write(made.uid, "one", kept=250, drawn=250, pause=None, fields={"status": "finished"})
    ended = see(datasets)
    assert (ended.status, ended.rate, ended.ended_at) == ("finished", None, clock.now)


def test_a_damaged_record_costs_itself_alone(datasets: DatasetStore, client: redis.Redis) -> None:
    damaged, fine = make(datasets, "damaged"), make(datasets, "fine")
    client.hset(keys.DATASET + damaged.uid, "recipe", "{")
    assert datasets.get("damaged", owner=ANN) is None
    assert datasets.all(owner=ANN) == [fine]
    client.delete(keys.DATASET + damaged.uid)
    client.set(keys.DATASET + damaged.uid, "text")
    assert datasets.take("one") == fine.uid
    assert datasets.take("one") is None
