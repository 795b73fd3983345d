from __future__ import annotations

import pytest
import redis

from store import keys
from store.access import KeyStore, KeyStoreError, Limits


@pytest.fixture
def store(client: redis.Redis) -> KeyStore:
    return KeyStore(client)


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
