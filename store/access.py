"""API keys: who asks, with which share and limits. Secrets are kept as SHA-256 alone.

A token is `pathar_<key id>_<secret>`. Its secret has 192 random bits, so a plain hash is enough: it
cannot be guessed from the hash. Until the first key is made everybody is one owner, `ANYBODY`; from
then on every request needs a key, until the store is opened again by hand. A Redis that has lost
its data opens nothing: who has seen that keys are needed believes nothing else until it is said.
Knows no HTTP.
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

from model.contract import PRIORITIES
from store import keys

_TOKEN = re.compile(r"pathar_([0-9a-f]{8})_([A-Za-z0-9_-]{32})")
_TICKET = re.compile(r"([0-9a-f]{8})\.([0-9a-f]{1,12})\.([0-9a-f]{48})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
WEIGHT_RANGE = (0.01, 1000.0)
_NEEDED, _OPENED = b"1", b"0"
"""What `keys.KEYS_REQUIRED` says."""


class KeyStoreError(ValueError):
    """Refused; the sentence names the field, the value and what is right."""


@dataclass(frozen=True)
class Limits:
    """What one key may take: requests a minute, images waiting in a queue, bytes of jobs and
    results."""

    requests_per_minute: int = 600
    waiting_images: int = 5000
    stored_bytes: int = 2 << 30


@dataclass(frozen=True)
class Owner:
    """Who a job belongs to. `weight` is its share of the images against the others'."""

    id: str
    name: str
    weight: float
    limits: Limits
    created_at: float = 0.0


ANYBODY = Owner("00000000", "anybody", 1.0, Limits())
"""Everybody, where no keys are asked for."""


class KeyStore:
    """Make, list, revoke and look up API keys. Thread-safe, as its client is.

    A revoked key keeps its weight for as long as images of it wait, so that what it left behind
    gets no larger a share than it had.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self.seen = False
        """Whether keys were needed when this was asked last."""

    def make(
        self, name: str, weight: float, limits: Limits, token: str | None = None
    ) -> tuple[str, Owner]:
        """A new key: its token, which is shown this once, and what is kept. The token is random
        unless it is given. KeyStoreError."""
        made = self._make(name, weight, limits, token, only_first=False)
        assert made is not None
        return made

    def make_first(
        self, name: str, weight: float, limits: Limits, token: str | None = None
    ) -> tuple[str, Owner] | None:
        """The same, where there is no key yet; None where there is one."""
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
                "key: got something else, expected pathar_, 8 of 0-9a-f, _ and 32 of A-Za-z0-9_-"
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
                raise KeyStoreError(f"key: there is one that begins with pathar_{key_id} already")
            pipe.set(keys.KEYS_REQUIRED, _NEEDED)
            pipe.hset(keys.API_KEYS, key_id, json.dumps({**asdict(owner), "hash": _hash(secret)}))
            pipe.hset(keys.WEIGHTS, key_id, weight)
            return True

        if not self._at_once(enter):
            return None
        self._forget_weights()
        return token, owner

    def _at_once(self, change: Callable[[Any], Any]) -> bool:
        """A look at the keys and what follows from it, with no other change between the two."""
        return bool(self._redis.transaction(change, keys.API_KEYS, value_from_callable=True))

    def all(self) -> list[Owner]:
        """Every key, the oldest first, without those that are `damaged`."""
        entries = (_read(text) for text in self._redis.hvals(keys.API_KEYS))
        owners = [entry.owner for entry in entries if entry]
        return sorted(owners, key=lambda owner: (owner.created_at, owner.name))

    def damaged(self) -> list[str]:
        """Ids of keys whose records cannot be read: they open nothing."""
        entries = cast(dict[bytes, bytes], self._redis.hgetall(keys.API_KEYS))
        return sorted(
            key_id.decode("utf-8", "replace") for key_id, text in entries.items() if not _read(text)
        )

    def revoke(self, name: str) -> bool:
        """Take a key back by its name, or a damaged one by its id; False when there is none.
        Nothing of it is canceled: its jobs are drawn and live out their time. Requests need a key
        as before, though it was the last one.
        """
        named = {each: each for each in self.damaged()}
        key_id = (named | {owner.name: owner.id for owner in self.all()}).get(name)
        if key_id is None:
            return False
        # One by one, as a full Redis takes only what needs no memory, and no transaction.
        if self._redis.get(keys.KEYS_REQUIRED) != _NEEDED:
            self._redis.set(keys.KEYS_REQUIRED, _NEEDED)
        self._redis.hdel(keys.API_KEYS, key_id)
        self._redis.publish(keys.REVOKED_CHANNEL, key_id)
        self._forget_weights()
        return True

    def open(self) -> None:
        """Ask for no keys any more, until the next is made. KeyStoreError while there are keys."""

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
        """Whether keys are needed, and there is none."""
        return self.required() and not self._redis.exists(keys.API_KEYS)

    def admits(self, owner: Owner) -> bool:
        """Whether an owner that was let in before still would be."""
        if owner.id == ANYBODY.id:
            return not self.required()
        return bool(self._redis.hexists(keys.API_KEYS, owner.id))

    def find(self, token: str) -> Owner | None:
        """Whose token this is; None when it is nobody's (any more)."""
        match = _TOKEN.fullmatch(token)
        entry = _read(self._redis.hget(keys.API_KEYS, match[1])) if match else None
        if match is None or entry is None:
            return None
        return entry.owner if hmac.compare_digest(entry.hash, _hash(match[2])) else None

    def ticket(self, owner: Owner, job_id: str, expires_at: int) -> str:
        """What opens one job of an owner to whoever has it, until then: signed, and kept nowhere.
        It ends with its key."""
        told = f"{owner.id}.{expires_at:x}"
        return f"{told}.{self._signature(told, owner.id, job_id)}"

    def redeem(self, ticket: str, job_id: str, now: float) -> Owner | None:
        """Whose job a ticket opens; None when it is none for this job (any more)."""
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
        """What signs messages to an owner's URLs, 32 bytes; None when its key has been revoked.

        It follows from the owner's key. Where there are no keys, it is drawn once and kept.
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
        """By what is kept of the owner's key, which nobody outside knows."""
        entry = _read(self._redis.hget(keys.API_KEYS, owner_id))
        secret = entry.hash if entry else secrets.token_hex()
        signed = hmac.new(secret.encode(), f"{told}.{job_id}".encode(), hashlib.sha256)
        return signed.hexdigest()[:48]

    def _forget_weights(self) -> None:
        """Drop the weights of revoked keys of which nothing waits any more."""
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
    """What is kept of a key."""

    owner: Owner
    hash: str


def _read(text: Any) -> _Entry | None:
    """The entry of a key; None where there is none, or a damaged one, which costs itself alone."""
    try:
        entry = json.loads(text)
        limits = Limits(**{name: int(value) for name, value in entry["limits"].items()})
        numbers = float(entry["weight"]), limits, float(entry["created_at"])
        owner = Owner(str(entry["id"]), str(entry["name"]), *numbers)
        return _Entry(owner, str(entry["hash"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
