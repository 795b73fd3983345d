"""Random histories of the store, on a real Redis, with a clock of the test's own.

Workers claim, start, send heartbeats, finish, fail, hand back, fall silent and die; clients submit,
cancel and drop; somebody cancels, stops, deletes and requeues parts with RQ's own tools; the clock
jumps. After each step the store must say what must have become of every image (expectations.py),
and in the end every job must be able to end and nothing may be left that does not expire.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace

import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job as RQJob
from rq.job import JobStatus
from rq.serializers import JSONSerializer

from model.request import GenerationRequest
from pathar.contract import END_STATES, FILE_NAMES, PRIORITIES
from store import keys
from store.jobs import Expired, JobStore
from store.orphans import ORPHANED_S, adopt_orphans
from store.parts import LEASE_S, Claim, HeldPart, PartStore, read_part
from store.scripts import LOST_REASON, LOST_WORKER, RETRIES
from tests.store.conftest import INFO, STEPS, Clock, ask, last_seen, part_of
from tests.store.expectations import (
    MODELS,
    OWNERS,
    QUEUES,
    Checks,
    Image,
    Order,
    chosen,
)

TTL = 60
MOST_OPEN = 5
JUMPS = (1, 6, 6, 11, 11, -30, 3600)
ACTIONS = {
    **{"submit": 4, "cancel": 1, "return_to_an_ended_job": 1},
    **{
        "take": 5,
        "claim": 2,
        "start_late": 2,
        "heartbeat": 4,
        "finish": 3,
        "fail": 1,
        "hand_back": 3,
    },
    **{"die": 1, "sweep": 4, "adopt": 1, "pass_time": 4, "withdraw": 3, "requeue": 1},
}
"""What may happen next, and how often."""
LARGE = 2
"""Jobs of so many images ask for large ones, which cost more than a patch."""
HOLDING = ("heartbeat", "finish", "fail", "hand_back", "die")


def mixed(n: int) -> GenerationRequest:
    """A request; large images where n is LARGE."""
    return replace(ask(n), size=(64, 128) if n == LARGE else None)


@dataclass
class Worker:
    """A worker of one queue and what it believes to hold."""

    parts: PartStore
    queue: str
    claims: list[Claim] = field(default_factory=list)
    held: list[HeldPart] = field(default_factory=list)


class Histories(RuleBasedStateMachine):
    """One history, from an empty Redis on. `clock` must be that of the stores' scripts.

    In each step one of ACTIONS happens, to the one of those that there are which `pick` says,
    counted around, and `n` says the rest; what cannot happen now is skipped.
    """

    def __init__(self, client: redis.Redis, clock: Clock) -> None:
        super().__init__()
        client.flushall()
        clock.forward(0)
        self.client, self.clock = client, clock
        self.jobs = JobStore(client, result_ttl=TTL)
        self.workers = [
            Worker(PartStore(client, queue, f"worker-{number}", result_ttl=TTL), queue)
            for number, queue in enumerate((QUEUES[0], QUEUES[0], QUEUES[1]))
        ]
        self.orders: list[Order] = []
        self.requeued: Counter[tuple[str, str]] = Counter()  # queue and part, with RQ's own tool
        self.checks = Checks(client, self.orders, TTL)

    @rule(
        action=st.sampled_from(list(Counter(ACTIONS).elements())),
        pick=st.sampled_from(range(20)),
        n=st.sampled_from((1, 2, 3)),
    )
    def step(self, action: str, pick: int, n: int) -> None:
        """Without anything held something is taken, without anything to take it is submitted."""
        if action in HOLDING and not any(worker.held for worker in self.workers):
            action = "take"
        if action in ("take", "claim") and not any(map(self.waiting, QUEUES)):
            action = "submit"
        getattr(self, action)(pick, n)

    @invariant()
    def holds(self) -> None:
        self.checks.step()
        for order in self.orders:
            if order.ended and order.expires == float("inf"):
                order.expires = self.clock.now + TTL

    def teardown(self) -> None:
        """All workers die and others come."""
        if sys.exc_info()[0] is not None:
            return  # a step has failed, and says why
        self.checks.every()
        for worker in self.workers:
            worker.claims, worker.held = [], []
        for _ in range(RETRIES + 3):
            self.clock.forward(3600)
            for worker in self.workers[1:]:
                worker.parts.sweep()
                for claim in worker.parts.claim(100):
                    if not claim.fields:
                        worker.parts.refuse(claim, "it has no record")
                    elif held := worker.parts.start(claim, read_part(claim)):
                        worker.parts.finish(held, {}, 1.0)
        self.checks.end()

    # -- clients ---------------------------------------------------------------------------------

    def submit(self, pick: int, n: int) -> None:
        if len(self.some(open=True)) == MOST_OPEN:
            return
        owner, priority = OWNERS[pick % 3], PRIORITIES[pick % 2]
        name = f"job-{len(self.orders)}"
        job, new = self.jobs.submit(mixed(n), INFO, owner=owner, priority=priority, job_id=name)
        assert new
        self.orders.append(Order(job, owner, QUEUES[0], [Image() for _ in range(n)]))

    def cancel(self, pick: int, n: int) -> None:
        for order in self.one(pick, open=True):
            assert self.jobs.cancel(order.job.id, owner=order.owner), "it cannot be canceled"
            order.end("canceled")

    def return_to_an_ended_job(self, pick: int, n: int) -> None:
        """Cancel it, submit it again and drop its results."""
        for order in self.one(pick, open=False):
            assert not self.jobs.cancel(order.job.id, owner=order.owner), "canceled twice"
            asked = mixed(len(order.images)), INFO
            try:
                _, new = self.jobs.submit(*asked, owner=order.owner, job_id=order.job.id)
                assert not new
            except Expired:
                assert order.expired
            order.dropped = self.jobs.drop(order.job.id, owner=order.owner)
            assert order.dropped != order.expired
            order.checked = False

    # -- workers ---------------------------------------------------------------------------------

    def take(self, pick: int, n: int) -> None:
        """Claim and start."""
        worker = self.claim(pick, n)
        while worker.claims:
            order, _ = self.find(worker.claims[0].part)
            self.start(worker)
            self.checks.look(order)  # it may have ended of it, with others of these claims

    def claim(self, pick: int, n: int) -> Worker:
        """By somebody who finds something, where there is something."""
        counts = {queue: self.waiting(queue) for queue in QUEUES}
        able = [each for each in self.workers if counts[each.queue]] or self.workers
        worker = able[pick % len(able)]
        claims = worker.parts.claim(n)
        assert len(claims) == min(n, counts[worker.queue]), "an image that waits was not found"
        for claim in claims:
            order, image = self.find(claim.part)
            if self.requeued[worker.queue, claim.part]:
                self.requeued[worker.queue, claim.part] -= 1
                continue
            assert order.queue == worker.queue, "claimed by a worker of other numerics"
            assert not image.claimed, "claimed twice"
            image.claimed, image.until = True, self.clock.now + LEASE_S
        worker.claims += claims
        return worker

    def start_late(self, pick: int, n: int) -> None:
        for worker in chosen([each for each in self.workers if each.claims], pick):
            self.start(worker)

    def start(self, worker: Worker) -> None:
        claim = worker.claims.pop(0)
        order, image = self.find(claim.part)
        mine = image.claimed and order.queue == worker.queue and not image.withdrawn
        image.claimed = image.claimed and order.queue != worker.queue
        if not claim.fields:
            worker.parts.refuse(claim, "it has no record")
            return
        held = worker.parts.start(claim, read_part(claim))
        assert held == worker.parts.start(claim, read_part(claim))
        assert (held is not None) == mine, "started, or not, against what it is"
        if held is not None:
            assert held.losses == RETRIES - image.tries
            image.status, image.execution = "started", held.execution
            image.until = self.clock.now + LEASE_S
            worker.held.append(held)

    def heartbeat(self, pick: int, n: int) -> None:
        holding = [each for each in self.workers if each.held] or self.workers
        worker = holding[pick % len(holding)]
        before = {held.execution for held in worker.held if not self.owns(held)}
        lost = worker.parts.heartbeat([(held, pick % STEPS) for held in worker.held], STEPS)
        for held in worker.held:
            order, image = self.find(held.part)
            if self.owns(held):
                image.until = self.clock.now + LEASE_S
                assert held.execution not in lost or order.disturbed, "a living part was lost"
        assert lost >= before, "a part of somebody else's was kept"
        worker.held = [held for held in worker.held if held.execution not in lost]

    def finish(self, pick: int, n: int) -> None:
        for worker, held in self.one_held(pick):
            order, image = self.find(held.part)
            mine = self.owns(held)
            files = {**dict.fromkeys(FILE_NAMES, b"m"), "image.png": held.execution.encode()}
            for _ in range(n):  # redis-py repeats it where the answer is lost, as all that follows
                accepted = worker.parts.finish(held, files, 1.0) is not None
                assert accepted == mine, "delivered, or not, against what it is"
            if mine:
                image.status, image.execution, image.files = "finished", "", files
                if all(each.status == "finished" for each in order.images):
                    order.end("finished")

    def fail(self, pick: int, n: int) -> None:
        for worker, held in self.one_held(pick):
            order, image = self.find(held.part)
            mine = self.owns(held)
            assert {worker.parts.fail(held, "it broke", "engine") for _ in range(n)} == {mine}
            if mine:
                image.status = "failed"
                order.end("failed")

    def hand_back(self, pick: int, n: int) -> None:
        for worker, held in self.one_held(pick):
            mine, suspect = self.owns(held), n == 1
            for _ in range(1 + pick % 2):
                worker.parts.put_back(held, LOST_WORKER if suspect else None, LOST_REASON)
            if mine:
                self.returned(*self.find(held.part), lost=suspect)

    def die(self, pick: int, n: int) -> None:
        worker = self.workers[pick % 3]
        worker.claims, worker.held = [], []

    def sweep(self, pick: int, n: int) -> None:
        worker = self.workers[pick % 3]
        worker.parts.sweep()
        self.swept(worker.queue)

    def adopt(self, pick: int, n: int) -> None:
        """One kind of workers has been silent for a minute: the other takes its jobs over."""
        silent, target = pick % 2, 1 - pick % 2
        self.forward(ORPHANED_S + 5)
        last_seen(self.client, MODELS[silent], ORPHANED_S + 5)
        last_seen(self.client, MODELS[target], 0)
        adopt_orphans(self.client, MODELS[target], result_ttl=TTL)
        self.swept(QUEUES[silent])
        for order in self.some(open=True):
            held = any(image.claimed or image.execution for image in order.images)
            if order.queue != QUEUES[silent] or order.disturbed or held:
                continue
            if {image.status for image in order.images} == {"queued"}:
                order.queue = QUEUES[target]
            else:  # it has images that others cannot go on with
                next(image for image in order.images if image.status == "queued").status = "failed"
                order.end("failed")

    # -- others ----------------------------------------------------------------------------------

    def pass_time(self, pick: int, n: int) -> None:
        self.forward(JUMPS[pick % len(JUMPS)])

    def forward(self, seconds: float) -> None:
        """Ended jobs expire, which Redis does by its own clock."""
        self.clock.forward(seconds)
        for order in self.orders:
            if order.expires <= self.clock.now and not order.expired:
                order.expired = True
                for name in order.names():
                    assert self.client.ttl(name) != -1, f"{name} does not expire with its job"
                self.client.delete(*order.names())

    def withdraw(self, pick: int, n: int) -> None:
        """Somebody takes a part away with RQ's own tools."""
        images = [(o, at) for o in self.some(open=True) for at in range(len(o.images))]
        started = [(o, at) for o, at in images if o.images[at].status == "started"]
        for order, index in chosen(started if started and pick % 2 else images, pick // 2):
            with suppress(NoSuchJobError, InvalidJobOperation):  # it was taken away before
                job = self.fetched(order, index)
                if n == 1:
                    job.cancel()
                elif n == 2:
                    job.delete()
                else:  # as RQ's worker does when it is told to stop
                    job.set_status(JobStatus.STOPPED)
                order.images[index].withdrawn |= order.images[index].status not in END_STATES

    def requeue(self, pick: int, n: int) -> None:
        """Somebody puts what has failed into the queue again, with RQ's own tools."""
        for order in self.one(pick, open=False):
            with suppress(NoSuchJobError, InvalidJobOperation):  # it has not failed
                job = self.fetched(order, pick % len(order.images))
                job.requeue()
                self.requeued[job.origin, job.id] += 1

    def fetched(self, order: Order, index: int) -> RQJob:
        part = part_of(order.job, index)
        return RQJob.fetch(part, connection=self.client, serializer=JSONSerializer)

    # -- what must have become of it -------------------------------------------------------------

    def some(self, *, open: bool) -> list[Order]:
        return [order for order in self.orders if (order.ended is None) == open]

    def one(self, pick: int, *, open: bool) -> list[Order]:
        return chosen(self.some(open=open), pick)

    def one_held(self, pick: int) -> list[tuple[Worker, HeldPart]]:
        """Something that a worker holds; it holds it no more."""
        found = chosen([(worker, part) for worker in self.workers for part in worker.held], pick)
        for worker, part in found:
            worker.held.remove(part)
        return found

    def find(self, part: str) -> tuple[Order, Image]:
        job, index = keys.split_part_id(part)
        [order] = [order for order in self.orders if order.key == job]
        return order, order.images[index]

    def waiting(self, queue: str) -> int:
        """What may be claimed there."""
        of_queue = [order for order in self.some(open=True) if order.queue == queue]
        images = [image for order in of_queue for image in order.images]
        count = sum(image.status == "queued" and not image.claimed for image in images)
        return count + sum(n for (name, _), n in self.requeued.items() if name == queue)

    def owns(self, held: HeldPart) -> bool:
        order, image = self.find(held.part)
        return order.ended is None and not image.withdrawn and image.execution == held.execution

    def swept(self, queue: str) -> None:
        """What silent workers held is back in line."""
        for order in self.some(open=True):
            for image in order.images if order.queue == queue else ():
                if image.claimed and image.until < self.clock.now:
                    image.claimed = False
                elif image.execution and image.until <= self.clock.now:
                    self.returned(order, image, lost=True)

    def returned(self, order: Order, image: Image, *, lost: bool) -> None:
        image.execution = ""
        if not image.withdrawn and not order.ended:
            image.status, image.tries = "queued", image.tries - lost
            if image.tries < 0:
                image.status = "failed"
                order.end("failed")
