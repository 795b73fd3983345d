from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from store import keys
from store.access import ANYBODY, KeyStore, KeyStoreError, Limits
from store.jobs import JobStore
from store.parts import PartStore
from store.registry import Registry
from tests.conftest import RedisServer
from tests.store.conftest import INFO, submit


@pytest.fixture
def store(client: redis.Redis) -> KeyStore:
    return KeyStore(client)


DAMAGED = (b"", b"{", b"[]", b"7", b'{"id": "x"}', b"[" * 100_000, b"\xff", None)
"""Records of keys that cannot be read; None is one without its hash."""


@pytest.mark.parametrize("record", DAMAGED)
def test_a_damaged_key_costs_itself_alone(
    record: bytes | None, store: KeyStore, client: redis.Redis
) -> None:
    token, ann = store.make("ann", 1.0, Limits())
    lost, bob = store.make("bob", 1.0, Limits())
    ticket = store.ticket(bob, "a", 2**32)
    if record is None:
        entry = json.loads(client.hget(keys.API_KEYS, bob.id) or b"")
        record = json.dumps({k: v for k, v in entry.items() if k != "hash"}).encode()
    client.hset(keys.API_KEYS, bob.id, record)
    assert store.find(lost) is None
    assert store.redeem(ticket, "a", 0) is None
    assert store.find(token) == ann
    assert store.all() == [ann]
    assert store.damaged() == [bob.id]
    store.make("eve", 1.0, Limits())
    assert store.revoke("ann")
    assert store.revoke(bob.id)
    assert [owner.name for owner in store.all()] == ["eve"]
    assert store.damaged() == []


def test_a_key_is_found_by_its_token_alone_until_it_is_revoked(
    store: KeyStore, client: redis.Redis
) -> None:
    assert not store.required()
    token, owner = store.make("ann", 2.5, Limits(waiting_images=7))
    assert store.required()
    assert store.find(token) == owner
    assert (owner.name, owner.weight, owner.limits.waiting_images) == ("ann", 2.5, 7)
    assert client.hget(keys.WEIGHTS, owner.id) == b"2.5"
    other, _ = store.make("bob", 1.0, Limits())
    mixed = f"pathar_{owner.id}_{other.rpartition('_')[2]}"
    for wrong in ("", token[:-1], token + "x", owner.id, mixed, "pathar_00000000_" + "a" * 32):
        assert store.find(wrong) is None
    assert store.revoke("ann")
    assert not store.revoke("ann")
    assert store.find(token) is None
    assert [each.name for each in store.all()] == ["bob"]


@pytest.mark.parametrize("first", [False, True])
def test_many_at_once_make_one_key_of_a_name_and_one_first_key(
    first: bool, store: KeyStore, redis_server: RedisServer
) -> None:
    def make(number: int) -> bool:
        with redis_server.client() as own:
            if first:
                return KeyStore(own).make_first(f"k{number}", 1.0, Limits()) is not None
            try:
                KeyStore(own).make("ann", 1.0, Limits())
            except KeyStoreError:
                return False
            return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(make, range(48))) == 1
    assert len(store.all()) == 1


def test_who_has_seen_keys_stays_closed_when_redis_loses_them_until_it_is_opened(
    store: KeyStore, client: redis.Redis
) -> None:
    store.make("ann", 1.0, Limits())
    assert store.required()
    client.flushall()
    assert store.required()
    assert store.lost()
    assert not store.admits(ANYBODY)
    KeyStore(client).open()
    assert not store.required()
    store.make("bob", 1.0, Limits())
    assert store.revoke("bob")
    assert store.required()


def test_the_secret_is_nowhere_in_redis(store: KeyStore, client: redis.Redis) -> None:
    token, _ = store.make("ann", 1.0, Limits())
    secret = token.split("_", 2)[2].encode()
    kept = [client.dump(key) for key in client.scan_iter("*")]
    assert kept
    assert all(secret not in text for text in kept if text is not None)


@pytest.mark.parametrize(
    ("name", "weight", "limits", "field"),
    [
        ("", 1.0, Limits(), "name"),
        ("two words", 1.0, Limits(), "name"),
        ("ann", 0.0, Limits(), "weight"),
        ("ann", float("nan"), Limits(), "weight"),
        ("ann", 1.0, Limits(requests_per_minute=0), "requests_per_minute"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused_by_its_field(
    store: KeyStore, name: str, weight: float, limits: Limits, field: str
) -> None:
    with pytest.raises(KeyStoreError, match=f"^{field}: got"):
        store.make(name, weight, limits)
    assert store.all() == []


def test_a_name_is_given_once(store: KeyStore) -> None:
    store.make("ann", 1.0, Limits())
    with pytest.raises(KeyStoreError, match="there is a key 'ann' already"):
        store.make("ann", 1.0, Limits())


def test_revoking_the_last_key_opens_nothing(store: KeyStore) -> None:
    store.make("ann", 1.0, Limits())
    with pytest.raises(KeyStoreError, match=r"^keys: got 1, expected none"):
        store.open()
    assert store.revoke("ann")
    assert store.required()
    store.open()
    assert not store.required()
    assert store.admits(ANYBODY)
    store.make("bob", 1.0, Limits())
    assert store.required()


def test_keys_of_an_older_version_are_asked_for_after_they_are_revoked(
    store: KeyStore, client: redis.Redis
) -> None:
    store.make("ann", 1.0, Limits())
    client.delete(keys.KEYS_REQUIRED)
    assert store.required()
    assert store.revoke("ann")
    assert store.required()


def test_an_owner_is_admitted_until_its_key_is_revoked(store: KeyStore) -> None:
    assert store.admits(ANYBODY)
    _, ann = store.make("ann", 1.0, Limits())
    assert store.admits(ann)
    assert not store.admits(ANYBODY)
    store.revoke("ann")
    assert not store.admits(ann)


def test_a_revoked_key_keeps_its_weight_while_images_of_it_wait(
    store: KeyStore, jobs: JobStore, parts: PartStore, registry: Registry, client: redis.Redis
) -> None:
    registry.publish(INFO, "worker-one", 4)
    _, ann = store.make("ann", 0.1, Limits())
    _, bob = store.make("bob", 3.0, Limits())
    submit(jobs, owner=ann, priority="bulk")
    for owner in (ann, bob):
        store.revoke(owner.name)
    assert client.hgetall(keys.WEIGHTS) == {ann.id.encode(): b"0.1"}
    assert len(parts.claim(2)) == 1
    store.make("cleo", 1.0, Limits())
    assert client.hget(keys.WEIGHTS, ann.id) is None
    assert client.hlen(keys.WEIGHTS) == 1
