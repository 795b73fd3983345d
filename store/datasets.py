"""Data sets that the service draws: their records, and whose turn it is to be written.

A data set is a recipe, the models that draw it, and how far it is. Its files are in the storage of
results: here are only their sizes and digests. Writers take turns: a turn is a lease, so another
writer goes on where one died. Each write names its writer, and is refused once another has the
data set or its owner has paused, canceled or dropped it. Knows no HTTP, no files and no jobs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, cast, get_args
from uuid import uuid4

import redis

from pathar.contract import DatasetStatus
from pathar.recipe import ModelRef, Plan, PlannedJob, Recipe
from store import keys
from store.access import Owner
from store.jobs import OtherBody, Refused, check_kept
from store.scripts import UNREADABLE, Script, unreadable

MOST_DATASETS = 100
"""Data sets that one owner may have."""
LEASE_S = 30.0
"""Another writer takes a data set over when its writer has not written for this long."""

Change = Literal["pause", "resume", "cancel", "drop"]
_NUMBERS = ("rate", "started_at", "ended_at")


def record_path(shard: int) -> str:
    """Where the record of a shard lies in the folder of its data set: JSON of its pairs and files,
    as in a manifest. It is written after the files.
    """
    return f".pathar/{shard:05d}.json"


class TooMany(Refused):
    """The owner has MOST_DATASETS data sets."""


class Interrupted(Exception):
    """The data set is not this writer's any more. `why`: its status, `lost` to another writer, or
    `gone`.
    """

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


@dataclass(frozen=True)
class Shard:
    """A shard that is stored: its number, pairs, files and their bytes in all. `drawn`: how many
    pairs were drawn for the jobs whose first pair it has. `sha256` is that of its files one after
    the other, so for one file that of the file.
    """

    number: int
    pairs: int
    drawn: int
    files: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """A data set. Of its pairs, `kept` are drawn, those in stored shards included; `drawn` pairs
    were drawn for these, more than are kept where the recipe filters. Times are seconds since 1970
    on the clock of Redis; `rate` is in kept pairs per second, None when it is not known. `trouble`
    says why nothing moves at the moment.
    """

    uid: str
    id: str
    owner: str
    key_name: str
    status: DatasetStatus
    recipe: Recipe
    models: Mapping[str, ModelRef]
    max_waiting: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    kept: int
    drawn: int
    rate: float | None
    resumes: int
    error: str | None
    trouble: str | None
    shards: tuple[Shard, ...]

    @cached_property
    def plan(self) -> Plan:
        """Its jobs and shards."""
        return Plan(self.recipe, self.models)

    @property
    def stored(self) -> int:
        """Pairs in stored shards."""
        return sum(shard.pairs for shard in self.shards)

    @property
    def folder(self) -> str:
        """Where its files are in the storage of results."""
        return f"datasets/{self.uid}"

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the rate; None without one."""
        return (self.recipe.pairs - self.kept) / self.rate if self.rate else None

    def job_id(self, job: PlannedJob, attempt: int) -> str:
        """The id of a job that draws a part of it."""
        again = f"-{attempt}" if attempt else ""
        return f"set-{self.uid[-16:]}-{job.key}{again}"


class DatasetStore:
    """Makes, reads and changes data sets, and hands out turns. Thread-safe, as its client is."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._make = Script(client, "dataset_make")
        self._take = Script(client, "dataset_take")
        self._write = Script(client, "dataset_write")
        self._settle = Script(client, "dataset_settle")
        self._change = Script(client, "dataset_change")

    # -- for owners --------------------------------------------------------------------------------

    def make(
        self,
        dataset_id: str,
        recipe: Recipe,
        models: Mapping[str, ModelRef],
        *,
        owner: Owner,
        max_waiting: int,
    ) -> tuple[Dataset, bool]:
        """Accept a recipe; returns the data set and whether it is new. The same id and recipe find
        the same data set, whatever its models. OtherBody for another recipe, TooMany, and NotKept
        as of `JobStore.submit`.
        """
        told = recipe.to_dict()
        digest = json.dumps([list(told.pop("labels").items()), told], sort_keys=True)
        fields = {
            "key_name": owner.name,
            "recipe": json.dumps(recipe.to_dict()),
            "models": json.dumps({label: asdict(ref) for label, ref in models.items()}),
            "max_waiting": str(max_waiting),
        }
        uid = f"{owner.id}-{dataset_id}-{uuid4().hex[:16]}"
        flat = [each for field in fields.items() for each in field]
        answer, *rest = self._make(owner.id, dataset_id, uid, digest, MOST_DATASETS, *flat)
        match answer:
            case b"other":
                raise OtherBody(dataset_id)
            case b"many":
                raise TooMany
        check_kept(self._redis)
        found = self._read(rest[0].decode())
        if found is None:
            raise redis.ResponseError(f"data set {dataset_id} vanished")
        return found, answer == b"made"

    def get(self, dataset_id: str, *, owner: Owner) -> Dataset | None:
        """The owner's data set; None when there is none with this id."""
        uid = cast("bytes | None", self._redis.hget(keys.DATASETS + owner.id, dataset_id))
        return None if uid is None else self._read(uid.decode())

    def all(self, *, owner: Owner) -> list[Dataset]:
        """The owner's data sets, the newest first."""
        uids = cast("list[bytes]", self._redis.hvals(keys.DATASETS + owner.id))
        found = [each for uid in uids if (each := self._read(uid.decode()))]
        return sorted(found, key=lambda each: (each.created_at, each.id), reverse=True)

    def change(self, dataset_id: str, change: Change, *, owner: Owner) -> None:
        """Pause, resume, cancel or drop a data set, where its status allows that. A dropped one is
        forgotten at once; a writer deletes its files.
        """
        self._change(owner.id, dataset_id, change)

    # -- for writers -------------------------------------------------------------------------------

    def take(self, writer: str) -> str | None:
        """The uid of a data set whose turn is due, which `writer` has for LEASE_S from its last
        `write`; None when there is none.
        """
        uid = cast("bytes | None", self._take(LEASE_S, writer))
        return None if uid is None else uid.decode()

    def read(self, uid: str) -> Dataset | None:
        """The data set that `take` returned; None when its record cannot be read or is gone."""
        return self._read(uid)

    def status(self, uid: str) -> str:
        """The status of a data set now; `dropped` too when its record is gone."""
        status = cast("bytes | None", self._redis.hget(keys.DATASET + uid, "status"))
        return "dropped" if status is None else status.decode()

    def write(
        self,
        uid: str,
        writer: str,
        *,
        kept: int,
        drawn: int,
        pause: float | None = LEASE_S,
        shard: Shard | None = None,
        fields: Mapping[str, str] = {},
    ) -> None:
        """Write progress, and with it the next stored `shard` and other fields of the record. The
        next turn is due in `pause` seconds; None for no further turn. Interrupted.
        """
        entry = ("0", "") if shard is None else (shard.number, json.dumps(asdict(shard)))
        flat = [each for field in fields.items() for each in field]
        until = "" if pause is None else pause
        answer = self._write(uid, writer, until, kept, drawn, *entry, *flat)
        if answer != b"ok":
            raise Interrupted(answer.decode())

    def settle(self, uid: str, writer: str) -> bool:
        """Note that what a canceled or dropped data set left behind has been removed. False when
        another writer has it, or it goes on.
        """
        return bool(self._settle(uid, writer))

    def _read(self, uid: str) -> Dataset | None:
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.DATASET + uid)
            pipe.lrange(keys.SHARDS + uid, 0, -1)
            flat, shards = pipe.execute()
        if not flat:
            return None
        try:
            fields = {name.decode(): value.decode() for name, value in flat.items()}
            return _dataset(uid, fields, [Shard(**json.loads(each)) for each in shards])
        except UNREADABLE as error:
            unreadable(f"data set {uid}", error)
            return None


def _dataset(uid: str, fields: Mapping[str, str], shards: list[Shard]) -> Dataset:
    status = fields["status"]
    if status not in get_args(DatasetStatus):
        raise ValueError(f"{status!r} is not a status")
    models = {label: ModelRef(**ref) for label, ref in json.loads(fields["models"]).items()}
    numbers: dict[str, Any] = {
        name: float(fields[name]) if name in fields else None for name in _NUMBERS
    }
    return Dataset(
        uid=uid,
        id=fields["id"],
        owner=fields["owner"],
        key_name=fields["key_name"],
        status=cast(DatasetStatus, status),
        recipe=Recipe.from_dict(json.loads(fields["recipe"])),
        models=models,
        max_waiting=int(fields["max_waiting"]),
        created_at=float(fields["created_at"]),
        kept=int(fields.get("kept", 0)),
        drawn=int(fields.get("drawn", 0)),
        resumes=int(fields.get("resumes", 0)),
        error=fields.get("error") or None,
        trouble=fields.get("trouble") or None,
        shards=tuple(shards),
        **numbers,
    )
