"""Records that were damaged or forged cost themselves alone: never a neighbour, a sweep, or a sign
of life. They are counted, and nothing of them stays in the way."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import redis

from store import keys
from store.access import ANYBODY
from store.jobs import JobStore
from store.orphans import ABANDONED_S, ORPHANED_S, adopt_orphans
from store.parts import HeldPart, PartStore, read_part
from store.registry import Registry
from store.results import ResultStore
from store.statistics import StatisticsReader
from tests.store.conftest import (
    FILES,
    INFO,
    NEW,
    QUEUE,
    STEPS,
    ask,
    lapse,
    last_seen,
    see,
    submit,
    take,
)

Damage = Callable[[redis.Redis, str], None]
"""Damages something about the job with this id in Redis."""


def of_another_type(*prefixes: str, suffix: str = "") -> Damage:
    def act(client: redis.Redis, job: str) -> None:
        for prefix in prefixes:
            client.delete(prefix + job + suffix)
            client.set(prefix + job + suffix, "not what it was")

    return act


def of_another_type_at(*names: str) -> Damage:
    def act(client: redis.Redis, job: str) -> None:
        for name in names:
            client.delete(name)
            client.set(name, "not what it was")

    return act


def field(name: str, value: str | None) -> Damage:
    def act(client: redis.Redis, job: str) -> None:
        if value is None:
            client.hdel(keys.RECORD + job, name)
        else:
            client.hset(keys.RECORD + job, name, value)

    return act


def executions(client: redis.Redis, job: str) -> None:
    for key in client.scan_iter("rq:execution*"):
        client.delete(key)
        client.set(key, "not what it was")


def wrong_number(key: str, name: str) -> Damage:
    return lambda client, job: client.hset(key, name or job, "many")  # type: ignore[return-value]


OWN = ANYBODY.id
DAMAGE: dict[str, Damage] = {
    "record": of_another_type(keys.RECORD),
    "part": of_another_type(keys.PART, suffix="_0"),
    "events": of_another_type(keys.EVENTS),
    "result": of_another_type(keys.RESULT, suffix="_0"),
    "gone": lambda client, job: client.lpush(keys.GONE + job, "x") and None,
    "executions": executions,
    **{f"no {name}": field(name, None) for name in
       ("n", "open", "owner", "queue", "priority", "created_at", "steps", "request", "label")},
    **{f"{name} is {value!r}": field(name, value) for name, value in (
        ("n", "many"), ("n", "-1"), ("n", "1.5"), ("n", "1000000000"), ("n", "nan"),
        ("open", "many"), ("created_at", "now"), ("steps", "many"), ("request", "{"),
        ("request", "[1]"), ("request", "[" * 100_000), ("execution:0", "me"),
        ("losses:0", "many"), ("step:0", "many"), ("progress:0", "far"), ("queue_s:0", "long"),
    )},
    "bytes of the owner": of_another_type_at(keys.BYTES + OWN),
    "sum of the owner": wrong_number(keys.BYTES + OWN, "sum"),
    "stored by the owner": of_another_type_at(keys.STORED + OWN),
    "jobs of the owner": of_another_type_at(keys.JOBS + OWN),
    "rate of the owner": of_another_type_at(keys.RATE + OWN),
    "weights": lambda client, job: client.hset(keys.WEIGHTS, OWN, "heavy") and None,
    "ends": of_another_type_at(keys.ENDS),
    "leases": of_another_type_at(keys.LEASES + QUEUE),
    "claims": of_another_type_at(keys.CLAIMS + QUEUE),
    "clock": of_another_type_at(keys.CLOCK + QUEUE),
    "what RQ is shown": of_another_type_at(
        keys.STARTED + QUEUE, keys.FINISHED + QUEUE, keys.FAILED + QUEUE
    ),
    "a stray in the queue": lambda client, job: client.set(keys.QUEUE + QUEUE, "x") and None,
}  # fmt: skip

SHARED = [DAMAGE[name] for name in ("jobs of the owner", "ends", "leases")]
"""Until these are begun anew, at the next change, what is read of them is an error."""


class Life:
    """A job that is damaged and one beside it, both of one owner, and workers."""

    def __init__(self, client: redis.Redis, jobs: JobStore) -> None:
        self.client, self.jobs = client, jobs
        self.damaged = 0
        self.parts, self.rival = (
            PartStore(client, QUEUE, name, result_ttl=60, damaged=self.count) for name in "ab"
        )
        self.victim, self.neighbour = submit(jobs, ask(2)), submit(jobs, ask(2))
        self.key = keys.owned_id(OWN, self.victim.id)
        self.held: list[HeldPart] = []

    def count(self, records: int) -> None:
        self.damaged += records

    def reach(self, stage: str) -> None:
        if stage == "claimed":
            self.parts.claim(1)
        elif stage == "started":
            self.held += take(self.parts, 3)
            self.parts.heartbeat([(held, 1) for held in self.held], STEPS)

    def live_on(self) -> None:
        """Workers come and go, and what can be drawn is drawn."""
        self.parts.heartbeat([(held, 2) for held in self.held], STEPS)
        self.parts.sweep()
        for _ in range(3):
            lapse(self.client)
            self.rival.sweep()
            self.held = take(self.rival, 9)
            self.rival.heartbeat([(held, 3) for held in self.held], STEPS)
        for held in self.held:
            self.rival.finish(held, FILES, 1.0)


@pytest.fixture
def life(client: redis.Redis, jobs: JobStore) -> Life:
    return Life(client, jobs)


def every(client: redis.Redis, jobs: JobStore, check: Callable[[Life, Damage], None]) -> None:
    """Check each damage, on an empty Redis each time, and say which failed."""
    failed = []
    client.config_set("appendonly", "no")  # there is much to write
    for name, damage in DAMAGE.items():
        client.flushall()
        try:
            check(Life(client, jobs), damage)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__} {str(error)[:150]}")
    assert not failed, "\n".join(["", *failed])


@pytest.mark.parametrize("stage", ["waiting", "claimed", "started"])
def test_damage_costs_no_neighbour(stage: str, jobs: JobStore, client: redis.Redis) -> None:
    def check(life: Life, damage: Damage) -> None:
        life.reach(stage)
        damage(client, life.key)
        Registry(client).publish(INFO, "a", 4)
        if damage not in SHARED:
            look(client, jobs, life)
        life.live_on()
        jobs.cancel(life.victim.id, owner=ANYBODY)
        jobs.drop(life.victim.id, owner=ANYBODY)
        assert submit(jobs).status == "queued"
        look(client, jobs, life)
        assert see(jobs, life.neighbour).status == "finished"
        for index in range(2):
            assert ResultStore(client).image(OWN, life.neighbour.id, index) == FILES
        assert not client.zrange(keys.LEASES + QUEUE, 0, -1)
        assert not client.lrange(keys.QUEUE + QUEUE + keys.INTERMEDIATE, 0, -1)

    every(client, jobs, check)


def look(client: redis.Redis, jobs: JobStore, life: Life) -> None:
    """Whatever can be looked at."""
    jobs.get(life.victim.id, owner=ANYBODY)
    jobs.part(life.victim.id, 0, owner=ANYBODY)
    StatisticsReader(client).read()
    jobs.page(owner=ANYBODY)
    see(jobs, life.neighbour)


@pytest.mark.parametrize("silent_s", [ORPHANED_S + 5, ABANDONED_S + 5])
def test_a_damaged_job_keeps_no_other_from_being_taken_over_or_given_up(
    silent_s: float, jobs: JobStore, client: redis.Redis
) -> None:
    def check(life: Life, damage: Damage) -> None:
        damage(client, life.key)
        last_seen(client, INFO, silent_s)
        adopt_orphans(client, NEW, result_ttl=60)
        seen = see(jobs, life.neighbour)
        given_up, moved = ("failed", INFO.numerics), ("queued", NEW.numerics)
        wanted = given_up if silent_s > ABANDONED_S else moved
        assert (seen.status, seen.model.numerics) == wanted

    every(client, jobs, check)


@pytest.mark.parametrize("name", ["record", "n is 'many'", "created_at is 'now'", "no created_at"])
def test_what_cannot_be_read_is_counted_and_expires(
    name: str, life: Life, jobs: JobStore, client: redis.Redis
) -> None:
    life.reach("waiting")
    DAMAGE[name](client, life.key)
    life.live_on()
    assert life.damaged > 0
    for key in client.scan_iter(f"*{life.key}*"):
        assert client.ttl(key) != -1, f"{key!r} stays for ever"


def test_many_leases_of_records_of_another_type_stop_no_sweep(
    life: Life, client: redis.Redis, jobs: JobStore
) -> None:
    for number in range(30):
        job = f"{OWN}-forged{number}"
        client.set(keys.RECORD + job, "not a hash")
        client.zadd(keys.LEASES + QUEUE, {f"{job}_0": 1.0})
    life.parts.sweep()
    assert life.damaged == 30
    assert client.zcard(keys.LEASES + QUEUE) == 0
    life.live_on()
    assert see(jobs, life.neighbour).status == see(jobs, life.victim).status == "finished"


def test_a_full_redis_is_no_damage(client: redis.Redis, jobs: JobStore, life: Life) -> None:
    life.reach("started")
    (claim,) = life.parts.claim(1)
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        life.parts.start(claim, read_part(claim))
    client.config_set("maxmemory", 0)
    assert life.damaged == 0
    assert life.parts.start(claim, read_part(claim)) is not None
    assert life.parts.heartbeat([(held, 2) for held in life.held], STEPS) == set()
    for held in life.held:
        assert life.parts.finish(held, FILES, 1.0) is not None
    assert see(jobs, life.victim).status == "finished"


def test_a_forged_booking_keeps_nobody_out(client: redis.Redis) -> None:
    narrow = JobStore(client, result_ttl=60, max_waiting=4)
    Registry(client).publish(INFO, "a", 4)
    client.zadd(keys.BOOKINGS + QUEUE, {"no ticket": client.time()[0] + 5})
    assert submit(narrow).status == "queued"


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"info": 3, "seen": 1}', "[" * 100_000])
def test_an_unreadable_model_hides_no_other(text: str, client: redis.Redis) -> None:
    registry = Registry(client)
    client.hset(keys.MODELS, "forged", text)
    client.hset(keys.SPEEDS, f"{QUEUE}|4|b", text)
    client.zadd(keys.WORKERS, {"forged": 4e9, f"{QUEUE}|many|b": 4e9, f"{QUEUE}|4|b": 4e9})
    assert registry.speed(QUEUE) is None
    registry.publish(INFO, "a", 4)
    assert [model.info for model in registry.models()] == [INFO]
    assert list(registry.every()) == [QUEUE]
    assert adopt_orphans(client, INFO, result_ttl=60) == 0
    StatisticsReader(client).read()
    assert client.hkeys(keys.MODELS) == [QUEUE.encode()], "it is in the way for ever"


def test_an_unreadable_count_of_ended_jobs_hides_no_other(
    client: redis.Redis, jobs: JobStore
) -> None:
    jobs.cancel(submit(jobs).id, owner=ANYBODY)
    client.hset(keys.ENDS, mapping={"{": 1, "[1]": 2, json.dumps(["m", "l", "p", "s", "c"]): "x"})
    ended = [each for each in StatisticsReader(client).read().ended if each.jobs]
    assert [each.status for each in ended] == ["canceled"]
