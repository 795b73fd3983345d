from __future__ import annotations

import json
from dataclasses import replace

import pytest
import redis

from model.request import ModelInfo
from store import keys
from store.jobs import JobStore
from store.parts import PartStore
from store.registry import ALIVE_S, FORGET_S, Registry, Speed
from tests.store.conftest import FILES, INFO, QUEUE, see, submit, take


def test_a_model_is_ready_only_while_a_worker_says_so(
    registry: Registry, client: redis.Redis
) -> None:
    other = replace(INFO, name="other", numerics="ba9876543210")
    assert registry.models() == []
    registry.publish(INFO, "one", 16)
    registry.publish(INFO, "two", 4)
    registry.publish(other, "three", 8)
    registry.withdraw(other, "three", 8)
    first, second = registry.models()
    assert (first.info, first.ready, first.slots) == (INFO, True, 20)
    assert (second.info, second.ready, second.slots) == (other, False, 0)
    for member in client.zrange(keys.WORKERS, 0, -1):
        client.zadd(keys.WORKERS, {member: 1.0})
    assert [model.ready for model in registry.models()] == [False, False]


def heartbeat(
    registry: Registry, client: redis.Redis, info: ModelInfo, *, ago: float, worker: str
) -> None:
    """As if this worker had last spoken so many seconds ago."""
    registry.publish(info, worker, 1)
    queue = keys.queue_name(info.version, info.numerics)
    entry = json.loads(client.hget(keys.MODELS, queue))  # type: ignore[arg-type]
    entry["seen"] -= ago
    client.hset(keys.MODELS, queue, json.dumps(entry))
    member = f"{queue}|1|{worker}"
    client.zincrby(keys.WORKERS, -ago, member)


def test_a_model_is_forgotten_a_while_after_its_last_heartbeat_but_not_its_jobs(
    jobs: JobStore, registry: Registry, parts: PartStore, client: redis.Redis
) -> None:
    job = submit(jobs)
    heartbeat(registry, client, INFO, ago=FORGET_S - 10, worker="one")
    assert [(model.info, model.ready) for model in registry.models()] == [(INFO, False)]
    heartbeat(registry, client, INFO, ago=FORGET_S + 10, worker="one")
    assert registry.models() == []
    seen = see(jobs, job)
    assert seen == job
    (held,) = take(parts)
    assert parts.finish(held, FILES, 1.0) is not None
    heartbeat(registry, client, INFO, ago=0, worker="one")
    assert [model.info for model in registry.models()] == [INFO]


def test_the_version_whose_workers_came_last_is_first_whoever_spoke_last(
    registry: Registry, client: redis.Redis
) -> None:
    new = replace(INFO, version="cd" * 32)
    for info in (INFO, new, INFO):
        registry.publish(info, f"worker of {info.version[:2]}", 1)
    assert [model.info for model in registry.models()] == [new, INFO]
    heartbeat(registry, client, new, ago=ALIVE_S + 1, worker="worker of cd")
    assert [model.info for model in registry.models()] == [INFO, new], "a version without workers"
    registry.publish(new, "worker of cd", 1)
    registry.publish(INFO, "worker of ab", 1)
    assert [model.info for model in registry.models()] == [new, INFO], "its workers came again"


def test_a_worker_that_joins_others_of_its_version_does_not_make_it_newer(
    registry: Registry,
) -> None:
    new, other_numerics = replace(INFO, version="cd" * 32), replace(INFO, numerics="ba9876543210")
    for info in (INFO, new, other_numerics):
        registry.publish(info, "worker", 1)
    assert registry.models()[0].info == new


@pytest.mark.parametrize("key", [keys.MODELS, keys.WORKERS, keys.SPEEDS])
def test_what_is_of_another_type_is_as_good_as_empty_and_mended_by_the_next_worker(
    key: str, registry: Registry, client: redis.Redis
) -> None:
    registry.publish(INFO, "one", 4, Speed(2.0, 1.0))
    client.delete(key)
    client.set(key, "forged")
    known = registry.models()
    assert [model.info for model in known] == ([] if key == keys.MODELS else [INFO])
    assert all(model.ready == (key == keys.SPEEDS) for model in known)
    registry.speed(QUEUE)
    registry.publish(INFO, "one", 4, Speed(2.0, 1.0))
    assert [model.ready for model in registry.models()] == [True]
    assert registry.speed(QUEUE) == Speed(2.0, 1.0)


def test_models_published_before_an_upgrade_are_still_read(
    registry: Registry, client: redis.Redis
) -> None:
    queue, seen = keys.queue_name(INFO.version, INFO.numerics), client.time()[0]
    client.hset(keys.MODELS, queue, json.dumps({"info": INFO.to_dict(), "seen": seen}))
    assert [model.info for model in registry.models()] == [INFO]
    registry.publish(INFO, "one", 4)
    assert registry.models()[0].ready


def test_speeds_of_living_workers_add_up_and_are_unknown_before_one_is_measured(
    registry: Registry, client: redis.Redis
) -> None:
    registry.publish(INFO, "one", 16)
    assert registry.speed(QUEUE) is None
    registry.publish(INFO, "one", 16, Speed(8.0, 1.0))
    registry.publish(INFO, "two", 16, Speed(4.0, 2.0))
    registry.publish(replace(INFO, numerics="ba9876543210"), "three", 16, Speed(99.0, 9.0))
    assert registry.speed(QUEUE) == Speed(12.0, 1.5)
    client.zadd(keys.WORKERS, {f"{QUEUE}|16|two": 1.0})
    assert registry.speed(QUEUE) == Speed(8.0, 1.0)
    registry.withdraw(INFO, "one", 16)
    assert registry.speed(QUEUE) is None
    registry.publish(INFO, "three", 1)
    assert len(client.hgetall(keys.SPEEDS)) == 1, "speeds of silent workers are kept"
