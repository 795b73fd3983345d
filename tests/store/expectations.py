"""What must have become of every job, and checks that the store and Redis agree with it.

`Order` and `Image` are a job and a part as they must be; histories.py keeps them up to date.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import redis

from pathar.contract import END_STATES, PRIORITIES, Status
from store import keys
from store.access import ANYBODY, Owner
from store.job import Job
from store.jobs import JobStore
from store.results import ResultStore, room
from store.scripts import IMAGE_BYTES, PART_BYTES, RECORD_BYTES, RETRIES
from tests.store.conftest import ANN, BOB, INFO, NEW, part_of

T = TypeVar("T")
OWNERS = (ANYBODY, ANN, BOB)
MODELS = (INFO, NEW)
QUEUES = tuple(keys.queue_name(each.version, each.numerics) for each in MODELS)
LASTING = (
    *(keys.WEIGHTS, keys.MODELS, keys.WORKERS, keys.SPEEDS, keys.ENDS, keys.QUEUES),
    *("clock", *(f"rq:canceled:{queue}" for queue in QUEUES)),  # the test's, and RQ's own
)
"""What stays in Redis when all jobs have ended: see `store/keys.py`."""


@dataclass
class Image:
    """A part. `until` is when its claim or lease runs out; `withdrawn` says that it was taken away
    with RQ's tools."""

    status: Status = "queued"
    claimed: bool = False
    until: float = 0.0
    execution: str = ""
    tries: int = RETRIES
    withdrawn: bool = False
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Order:
    """A job."""

    job: Job
    owner: Owner
    queue: str
    images: list[Image]
    ended: Status | None = None
    dropped: bool = False
    expires: float = float("inf")
    expired: bool = False
    checked: bool = False

    @property
    def key(self) -> str:
        """Its id in Redis."""
        return keys.owned_id(self.owner.id, self.job.id)

    def names(self) -> list[str]:
        """The keys in Redis that expire with it."""
        parts = [part_of(self.job, index) for index in range(len(self.images))]
        of_parts = [prefix + part for prefix in (keys.PART, keys.RESULT) for part in parts]
        return [keys.RECORD + self.key, keys.EVENTS + self.key, *of_parts]

    @property
    def disturbed(self) -> bool:
        """It ends as canceled when somebody comes across what was withdrawn."""
        return any(image.withdrawn for image in self.images)

    def end(self, status: Status) -> None:
        """What is still open is canceled."""
        self.ended = status
        for image in self.images:
            image.execution, image.claimed = "", False
            if image.status not in END_STATES:
                image.status = "canceled"


def chosen(candidates: list[T], pick: int) -> list[T]:
    """One of them, or none where there is none."""
    return [candidates[pick % len(candidates)]] if candidates else []


class Checks:
    """Assert that the store says of `orders`, and Redis holds of them, what it must."""

    def __init__(self, client: redis.Redis, orders: list[Order], ttl: int) -> None:
        self._client, self._orders = client, orders
        self._jobs = JobStore(client, result_ttl=ttl)
        self._results = ResultStore(client)

    def step(self) -> None:
        """What must hold after each step; of jobs that ended in it, once."""
        changing = [order for order in self._orders if not order.checked]
        for order in changing:
            self.look(order)
        held = self._held()
        self.places(held)
        self.turns(held)
        for order in changing:
            self.record(order)
            order.checked = order.ended is not None

    def every(self) -> None:
        """What must hold at any time, for all jobs."""
        for order in self._orders:
            order.checked = False
            self.look(order)
        self.lists()
        self.step()

    def look(self, order: Order) -> None:
        """A look at a job and looks at its images say the same, and what must be."""
        job = self._jobs.get(order.job.id, owner=order.owner)
        assert (job is None) == order.expired, "a job was lost"
        if job is None:
            return
        if order.disturbed and order.ended is None and job.ended_at is not None:
            order.end("canceled")
        parts = [self._jobs.part(job.id, i, owner=order.owner) for i in range(len(job.parts))]
        assert list(job.parts) == parts, "get() and part() disagree"
        said = [part.status for part in job.parts]
        wanted = ["canceled" if image.withdrawn else image.status for image in order.images]
        if order.ended == "failed":  # whichever of its images it was
            said, wanted = sorted(said), sorted(wanted)
        assert said == wanted
        assert (job.ended_at is not None) == (order.ended is not None)
        assert order.ended in (None, job.status)

    def lists(self) -> None:
        """Lists say what looks say."""
        for owner in OWNERS:
            listed = {job.id: job.status for job in self._jobs.page(owner=owner, limit=500).jobs}
            looks = (
                self._jobs.get(o.job.id, owner=owner) for o in self._orders if o.owner == owner
            )
            assert listed == {job.id: job.status for job in looks if job}, "list and look disagree"

    def places(self, held: Mapping[str, Sequence[str]]) -> None:
        """Every image that is not ended waits, is claimed or is started, and never two of these."""
        waiting, claimed, started, shown = [], [], [], []
        for queue in QUEUES:
            for line in lines_of(queue):
                waiting += held[line]
            claimed += held[keys.QUEUE + queue + keys.INTERMEDIATE]
            started += held[keys.LEASES + queue]
            shown += [member.split(":")[0] for member in held[keys.STARTED + queue]]
        everywhere = Counter([*waiting, *claimed, *started])
        assert max(everywhere.values(), default=1) == 1, "an image is in two places"
        assert set(shown) <= set(started), "RQ's tools show as started what is not"
        for order in self._orders:
            for index, image in enumerate(order.images):
                part = part_of(order.job, index)
                if image.withdrawn and not order.ended:
                    continue
                waits = image.status == "queued" and not image.claimed
                assert (part in waiting) == waits, "waits, or not, against what it is"
                assert part in claimed or not image.claimed, "is not claimed any more"
                assert (part in started) == (part in shown) == (image.status == "started")

    def turns(self, held: Mapping[str, Sequence[str]]) -> None:
        """Who waits has a turn, and nobody else; each end was counted once."""
        lines = set()
        for queue in QUEUES:
            for priority in PRIORITIES:
                for owner in held[f"{keys.FAIR}{queue}.{priority}"]:
                    lines.add(f"{keys.QUEUE}{queue}.{priority}.{owner}")
        waited = {line for queue in QUEUES for line in lines_of(queue) if held[line]}
        assert lines == waited, "who waits, and who has a turn"
        names = {name.decode() for name in self._client.smembers(keys.QUEUES)}
        assert names - {keys.QUEUE + queue for queue in QUEUES} == waited, "RQ's list of queues"
        ended = sum(int(count) for count in self._client.hvals(keys.ENDS))
        assert ended == sum(order.ended is not None for order in self._orders)

    def record(self, order: Order) -> None:
        """Counts are those of what they count, and every delivered image is there, once."""
        if order.expired:
            return
        record = self._client.hgetall(keys.RECORD + order.key)
        outcomes = [name for name in record if name.startswith(b"outcome:")]
        assert order.dropped or int(record[b"open"]) == len(order.images) - len(outcomes)
        delivered = [image.files for image in order.images if image.files]
        files = 0 if order.dropped else sum(len(f) for each in delivered for f in each.values())
        to_come = room(INFO, order.job.request.size) * (len(order.images) - len(delivered))
        kept = IMAGE_BYTES * len(delivered) if not order.dropped else 0
        if not order.ended:
            kept = PART_BYTES * len(order.images) + to_come
        size = RECORD_BYTES + kept + files
        assert int(self._client.hget(keys.BYTES + order.owner.id, order.key) or 0) == size
        for index, image in enumerate(order.images):
            found = self._results.image(order.owner.id, order.job.id, index)
            files = {} if order.dropped else image.files
            assert (found or {}) == files, "an image was lost, or is not what was delivered"
        told = Counter(event.kind for event in self._jobs.events(order.job.id, owner=order.owner))
        images = 0 if order.dropped else len(delivered)
        assert told["image"] == images, "an image was told of twice, or never"
        assert sum(told[status] for status in END_STATES) == (order.ended is not None)

    def end(self) -> None:
        """Every job has ended, and Redis is empty but for what lasts."""
        for order in self._orders:
            job = self._jobs.get(order.job.id, owner=order.owner)
            assert job is None or job.ended_at is not None, f"{order.job.id} never ends"
        lasting = (key.decode() for key in self._client.scan_iter() if self._client.ttl(key) == -1)
        left = sorted(set(lasting) - set(LASTING))
        assert not left, f"left over for ever: {left}"

    def _held(self) -> dict[str, list[str]]:
        """What each list and sorted set of the queues holds, asked in one go."""
        lists = [line for queue in QUEUES for line in lines_of(queue)]
        lists += [keys.QUEUE + queue + keys.INTERMEDIATE for queue in QUEUES]
        ranked = [prefix + queue for prefix in (keys.LEASES, keys.STARTED) for queue in QUEUES]
        ranked += [f"{keys.FAIR}{queue}.{each}" for queue in QUEUES for each in PRIORITIES]
        with self._client.pipeline(transaction=False) as asked:
            for key in lists:
                asked.lrange(key, 0, -1)
            for key in ranked:
                asked.zrange(key, 0, -1)
            answers = asked.execute()
        found = zip([*lists, *ranked], answers, strict=True)
        return {key: [member.decode() for member in members] for key, members in found}


def lines_of(queue: str) -> list[str]:
    """The lists in which parts wait."""
    own = keys.QUEUE + queue
    return [f"{own}.{priority}.{owner.id}" for priority in PRIORITIES for owner in OWNERS]
