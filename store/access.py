"""API keys: the owner of a request, with its share and limits. Only SHA-256 hashes are stored.

A token is `pathar_<key id>_<secret>`. The secret has 192 random bits, so a plain hash is enough: it
cannot be guessed from the hash. Until the first key is made, all clients are one owner, `ANYBODY`.
From then on each request needs a key, until an operator opens the store again. A Redis that has
lost its data does not open the service: a process that has seen that keys are needed requires them
until Redis explicitly says otherwise. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import redis

from pathar.contract import PRIORITIES
from store import keys

_TOKEN = re.compile(r"pathar_([0-9a-f]{8})_([A-Za-z0-9_-]{32})")
_TICKET = re.compile(r"([0-9a-f]{8})\.([0-9a-f]{1,12})\.([0-9a-f]{48})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
WEIGHT_RANGE = (0.01, 1000.0)
_NEEDED, _OPENED = b"1", b"0"
"""The values of `keys.KEYS_REQUIRED`."""


class KeyStoreError(ValueError):
    """A rejected change. The message names the field, its value and what is expected."""


@dataclass(frozen=True)
class Limits:
    """The limits of one key: requests per minute, images waiting in a queue, bytes of jobs and
    results."""

    requests_per_minute: int = 600
    waiting_images: int = 5000
    stored_bytes: int = 2 << 30


@dataclass(frozen=True)
class Owner:
    """The owner of jobs. `weight` is its share of the images, relative to other owners."""

    id: str
    name: str
    weight: float
    limits: Limits
    created_at: float = 0.0


ANYBODY = Owner("00000000", "anybody", 1.0, Limits())
"""The owner of all jobs while no keys are needed."""


class KeyStore:
    """Makes, lists, revokes and looks up API keys. Thread-safe, as its client is.

    A revoked key keeps its weight while images of it wait, so that these do not get a larger share
    than before.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self.seen = False
        """Whether keys were needed at the last call of `required`."""

    def make(
        self, name: str, weight: float, limits: Limits, token: str | None = None
    ) -> tuple[str, Owner]:
        """Make a key; returns its token, which is not stored, and its owner. The token is random
        unless it is given. KeyStoreError."""
        made = self._make(name, weight, limits, token, only_first=False)
        assert made is not None
        return made

    def make_first(
        self, name: str, weight: float, limits: Limits, token: str | None = None
    ) -> tuple[str, Owner] | None:
        """Like `make` if there is no key yet; else None."""
        return self._make(name, weight, limits, token, only_first=True)

    def _make(
        self, name: str, weight: float, limits: Limits, token: str | None, *, only_first: bool
    ) -> tuple[str, Owner] | None:
        if not _NAME.fullmatch(name):
            raise KeyStoreError(f"name: got {name!r}, expected letters, digits and . _ -, up to 63")
        if not WEIGHT_RANGE[0] <= weight <= WEIGHT_RANGE[1]:
            expected = "a number from {:g} to {:g}".format(*WEIGHT_RANGE)
            raise KeyStoreError(f"weight: got {weight:g}, expected {expected}")
        for field, value in asdict(limits).items():
            if value < 1:
                raise KeyStoreError(f"{field}: got {value}, expected at least 1")
        if token is None:
            token = f"pathar_{secrets.token_hex(4)}_{secrets.token_urlsafe(24)}"
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            raise KeyStoreError(
                "key: expected pathar_, 8 of 0-9a-f, _ and 32 of A-Za-z0-9_-; got another format"
            )
        key_id, secret = parts.groups()
        created_at = float(self._redis.time()[0])
        owner = Owner(key_id, name, weight, limits, created_at)

        def enter(pipe: Any) -> bool:
            there = [_read(text) for text in pipe.hvals(keys.API_KEYS)]
            pipe.multi()
            if there and only_first:
                return False
            if any(entry and entry.owner.name == name for entry in there):
                raise KeyStoreError(f"name: there is a key {name!r} already; revoke it first")
            if any(entry and entry.owner.id == key_id for entry in there):
                raise KeyStoreError(f"key: there is a key that begins with pathar_{key_id} already")
            pipe.set(keys.KEYS_REQUIRED, _NEEDED)
            pipe.hset(keys.API_KEYS, key_id, json.dumps({**asdict(owner), "hash": _hash(secret)}))
            pipe.hset(keys.WEIGHTS, key_id, weight)
            return True

        if not self._at_once(enter):
            return None
        self._forget_weights()
        return token, owner

    def _at_once(self, change: Callable[[Any], Any]) -> bool:
        """Read and change the keys in one transaction; returns whether `change` returned true."""
        return bool(self._redis.transaction(change, keys.API_KEYS, value_from_callable=True))

    def all(self) -> list[Owner]:
        """The owners of all keys except `damaged` ones, oldest first."""
        entries = (_read(text) for text in self._redis.hvals(keys.API_KEYS))
        owners = [entry.owner for entry in entries if entry]
        return sorted(owners, key=lambda owner: (owner.created_at, owner.name))

    def damaged(self) -> list[str]:
        """The ids of keys with unreadable records. Such keys are not accepted."""
        entries = cast(dict[bytes, bytes], self._redis.hgetall(keys.API_KEYS))
        return sorted(
            key_id.decode("utf-8", "replace") for key_id, text in entries.items() if not _read(text)
        )

    def revoke(self, name: str) -> bool:
        """Revoke a key by its name, or a damaged key by its id; False when there is none. Its jobs
        are still drawn and kept until they expire. Requests need a key as before, even after the
        last key was revoked.
        """
        named = {each: each for each in self.damaged()}
        key_id = (named | {owner.name: owner.id for owner in self.all()}).get(name)
        if key_id is None:
            return False
        # One by one: a full Redis accepts only commands that need no memory, and no transaction.
        if self._redis.get(keys.KEYS_REQUIRED) != _NEEDED:
            self._redis.set(keys.KEYS_REQUIRED, _NEEDED)
        self._redis.hdel(keys.API_KEYS, key_id)
        self._redis.publish(keys.REVOKED_CHANNEL, key_id)
        self._forget_weights()
        return True

    def open(self) -> None:
        """Require no keys until the next one is made. KeyStoreError while there are keys."""

        def enter(pipe: Any) -> bool:
            count = pipe.hlen(keys.API_KEYS)
            pipe.multi()
            if count:
                raise KeyStoreError(f"keys: got {count}, expected none; revoke them first")
            pipe.set(keys.KEYS_REQUIRED, _OPENED)
            return True

        self._at_once(enter)

    def required(self) -> bool:
        """Whether requests need a key: from the first `make` on, until `open`."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(keys.KEYS_REQUIRED)
            pipe.exists(keys.API_KEYS)
            mark, some = pipe.execute()
        self.seen = bool(some) or (mark or (_NEEDED if self.seen else _OPENED)) != _OPENED
        return self.seen

    def lost(self) -> bool:
        """Whether keys are needed although there is none."""
        return self.required() and not self._redis.exists(keys.API_KEYS)

    def admits(self, owner: Owner) -> bool:
        """Whether an owner that was accepted before would still be accepted."""
        if owner.id == ANYBODY.id:
            return not self.required()
        return bool(self._redis.hexists(keys.API_KEYS, owner.id))

    def find(self, token: str) -> Owner | None:
        """The owner of a token; None when the token is unknown or revoked."""
        match = _TOKEN.fullmatch(token)
        entry = _read(self._redis.hget(keys.API_KEYS, match[1])) if match else None
        if match is None or entry is None:
            return None
        return entry.owner if hmac.compare_digest(entry.hash, _hash(match[2])) else None

    def ticket(self, owner: Owner, job_id: str, expires_at: int) -> str:
        """A signed ticket that opens one job of an owner until `expires_at` (Unix seconds). It is
        not stored. It becomes invalid when the owner's key is revoked."""
        told = f"{owner.id}.{expires_at:x}"
        return f"{told}.{self._signature(told, owner.id, job_id)}"

    def redeem(self, ticket: str, job_id: str, now: float) -> Owner | None:
        """The owner of the job that a ticket opens; None when the ticket is for another job, is
        expired or invalid. `now` in Unix seconds."""
        match = _TICKET.fullmatch(ticket)
        if match is None or int(match[2], 16) < now:
            return None
        signature = self._signature(f"{match[1]}.{match[2]}", match[1], job_id)
        if not hmac.compare_digest(match[3], signature):
            return None
        if match[1] == ANYBODY.id:
            return ANYBODY
        entry = _read(self._redis.hget(keys.API_KEYS, match[1]))
        return entry.owner if entry else None

    def owner(self, owner_id: str) -> Owner | None:
        """The owner with this id; None when its key has been revoked."""
        if owner_id == ANYBODY.id:
            return ANYBODY
        entry = _read(self._redis.hget(keys.API_KEYS, owner_id))
        return entry.owner if entry else None

    def webhook_secret(self, owner: Owner) -> bytes | None:
        """The secret that signs an owner's webhooks, 32 bytes; None when its key has been revoked.

        It is derived from the owner's key. Without keys it is random, made once and stored.
        """
        if owner.id == ANYBODY.id:
            if not self._redis.exists(keys.WEBHOOK_SECRET):
                self._redis.set(keys.WEBHOOK_SECRET, secrets.token_hex(), nx=True)
            kept = cast(bytes, self._redis.get(keys.WEBHOOK_SECRET)).decode()
        else:
            entry = _read(self._redis.hget(keys.API_KEYS, owner.id))
            if entry is None:
                return None
            kept = entry.hash
        return hmac.new(kept.encode(), b"webhooks", hashlib.sha256).digest()

    def _signature(self, told: str, owner_id: str, job_id: str) -> str:
        """The signature of a ticket, keyed with the stored hash of the owner's secret, which no
        client knows."""
        entry = _read(self._redis.hget(keys.API_KEYS, owner_id))
        secret = entry.hash if entry else secrets.token_hex()
        signed = hmac.new(secret.encode(), f"{told}.{job_id}".encode(), hashlib.sha256)
        return signed.hexdigest()[:48]

    def _forget_weights(self) -> None:
        """Delete the weights of revoked keys without waiting images."""
        queues = cast(list[bytes], self._redis.hkeys(keys.MODELS))
        lines = [f"{keys.FAIR}{q.decode()}.{p}" for q in queues for p in PRIORITIES]
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hkeys(keys.WEIGHTS)
            pipe.hkeys(keys.API_KEYS)
            for line in lines:
                pipe.zrange(line, 0, -1)
            weighed, *needed = pipe.execute()
        gone = set(weighed).difference(*needed)
        if gone:
            self._redis.hdel(keys.WEIGHTS, *gone)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True)
class _Entry:
    """The stored record of a key."""

    owner: Owner
    hash: str


def _read(text: Any) -> _Entry | None:
    """The entry of a key; None when it is missing or damaged. A damaged one affects no other."""
    try:
        entry = json.loads(text)
        limits = Limits(**{name: int(value) for name, value in entry["limits"].items()})
        numbers = float(entry["weight"]), limits, float(entry["created_at"])
        owner = Owner(str(entry["id"]), str(entry["name"]), *numbers)
        return _Entry(owner, str(entry["hash"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
