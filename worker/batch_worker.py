"""The worker process's loop, and the only file of it that touches RQ.

A cycle is: take parts for the free slots, admit them, make one decode step for all live rows,
finish the rows that are complete (`drawing.py`), bring their files to where they are durable
(`storing.py`) and deliver them, telling of it all (`reports.py`). A part joins while others are
half way and ends by itself. RQ's own loop, which would fork and import, is replaced; its worker
registry is kept, so that its tools show this worker. Knows no PNG and no Lua: see `images.py` and
`store/parts.py`.

What goes wrong, and what happens then:
- a request that cannot be drawn fails alone; its neighbours keep their slots;
- the engine itself breaks: all that is held goes back to the queue and the process ends;
- the process dies or hangs: its leases run out and any worker of this queue takes the parts over;
- Redis is away or full: rows are decoded to their end, results wait here, nothing is taken
  meanwhile, and no silence of others counts until all had time to speak again;
- the storage of results is away: the same, once as many results wait as there are slots.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from dataclasses import replace
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any
from uuid import uuid4

import redis
from rq import Queue, worker_registration
from rq.serializers import JSONSerializer
from rq.utils import now
from rq.worker import SimpleWorker

from model.engine import Engine
from model.request import ModelInfo, RequestError
from runtime.objects import Objects
from runtime.telemetry import Traces
from store import keys
from store.jobs import PART_TIMEOUT_S
from store.orphans import adopt_orphans
from store.parts import Cause, Claim, HeldPart, PartStore, RefusedPart, read_part
from store.registry import Registry
from store.results import ResultStore
from worker.drawing import Finisher, threads_beside
from worker.ear import Ear
from worker.heartbeat import Heartbeat
from worker.images import check_image, numerics
from worker.metrics import Outcome, WorkerMetrics
from worker.pace import Pace
from worker.reports import Delivery, Reports
from worker.scheduler import Scheduler
from worker.storing import Storer

IDLE_S = 0.02
"""Pause between two looks at an empty queue."""
TAKE_EVERY_S = 0.01
"""Between decode steps the queue is not looked at more often than this."""
GRACE_S = 12.0
"""How long a worker that was told to stop may go on with what it holds: what it hands back then is
held up by less than 15 s and a decode."""
TIDY_EVERY_S = 30.0
"""Pause between two searches for orphaned jobs and for workers that left no word."""
REGISTERED_S = 60
"""How long RQ's tools show a worker after its last sign of life."""
MAX_BACKOFF_S = 2.0
SUSPECT_LOSSES = 2
"""A part that so many workers died over is drawn alone."""

log = logging.getLogger("pathar.worker")


class BatchWorker(SimpleWorker):
    """Draws the parts of one queue, that of its engine's version and numerics, until told to stop.

    The threads of the heartbeat and the ear only read `_held` and `_steps` (replaced, never
    changed) and fill `_lost`; all else belongs to the thread that calls `work`.
    """

    def __init__(
        self,
        engine: Engine,
        client: redis.Redis,
        metrics: WorkerMetrics,
        traces: Traces,
        *,
        result_ttl: int,
        objects: Objects | None = None,
    ) -> None:
        self._engine = engine
        self._info = engine.info(numerics(engine))
        queue = keys.queue_name(self._info.version, self._info.numerics)
        name = f"pathar-{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
        super().__init__(
            [Queue(queue, connection=client, serializer=JSONSerializer)],
            name=name,
            connection=client,
            serializer=JSONSerializer,
        )
        self._result_ttl = result_ttl
        self._registry = Registry(client)
        self._parts = PartStore(client, queue, name, result_ttl=result_ttl)
        self._metrics, self._reports = metrics, Reports(self._info, metrics, traces)
        self._scheduler = Scheduler(engine.slots, PART_TIMEOUT_S)
        self._held: dict[str, HeldPart] = {}
        self._steps: dict[str, int] = {}
        self._pace = Pace()
        self._lost: SimpleQueue[tuple[str, Outcome]] = SimpleQueue()
        self._finisher = Finisher[tuple[HeldPart, float, float]](
            engine, self._info, threads=threads_beside(engine)
        )
        results = ResultStore(client, objects)
        self._storer = Storer[Delivery](results, lambda held: held.execution in self._held)
        self._outbox: deque[Delivery] = deque()
        self._redis_again_at = self._take_again_at = 0.0
        self._backoff = 0.0
        self._stopped_at = self._leave_at = float("inf")
        self._tidy_at = 0.0
        self._heartbeat = Heartbeat(self._beat)
        self._ear = Ear(client, self._ended)

    @property
    def connection_timeout(self) -> int:
        """RQ raises the client's timeout to this; ours is set in `runtime.connection`."""
        return 0

    @property
    def info(self) -> ModelInfo:
        """The model that this worker serves."""
        return self._info

    # -- from start to stop -------------------------------------------------------------------

    def enter(self) -> None:
        """Register, and publish that this worker, which must be warm, is ready."""
        self._install_signal_handlers()  # type: ignore[no-untyped-call]
        self.register_birth()  # type: ignore[no-untyped-call]
        self._beat()
        self._heartbeat.start()
        self._ear.start()

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """Draw until a signal says stop; True then. An exception means that the engine broke."""
        try:
            while not self._may_leave():
                self._cycle()
            self._hand_back(suspect=False)
        except Exception:
            log.exception("the engine broke; handing back %d parts", len(self._held))
            self._hand_back(suspect=True)
            raise
        finally:
            self._finisher.close()
            self._leave()
            self._storer.close()
        return True

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM and SIGINT: sets numbers and nothing else. A second signal, if
        it comes later than a parent's echo of the first would, asks to hand back at once.
        """
        at = time.monotonic()
        if not self._stop_requested:
            self._stop_requested = True
            self._stopped_at, self._leave_at = at, at + GRACE_S
        elif at - self._stopped_at > 1.0:
            self._leave_at = at

    def _may_leave(self) -> bool:
        return self._stop_requested and (not self._held or time.monotonic() > self._leave_at)

    def _hand_back(self, *, suspect: bool) -> None:
        """Put what is still held back, in its old order. If Redis is away the leases run out."""
        self._redis_again_at = 0.0
        self._gather()
        self._deliver()
        try:
            for held in reversed(self._held.values()):
                self._parts.put_back(held, suspect=suspect)
                self._reports.handed_back(held)
        except redis.RedisError as error:
            log.warning("not handed back, the leases will run out: %s", error)
        self._held = {}

    def _leave(self) -> None:
        self._heartbeat.stop()
        self._ear.stop()
        try:
            self._registry.withdraw(self._info, self.name, self._engine.slots)
            self.register_death()  # type: ignore[no-untyped-call]
        except redis.RedisError as error:
            log.warning("left without saying so: %s", error)

    # -- one cycle ----------------------------------------------------------------------------

    def _cycle(self) -> None:
        self._heartbeat.progress()
        started = time.monotonic()
        self._drop_lost()
        self._take()
        self._admit()
        busy = self._scheduler.active > 0
        self._step()
        self._collect()
        self._deliver()
        if busy:
            self._pace.busy(time.monotonic() - started)
        self._metrics.slots(self._scheduler.active, self._engine.free)
        if not self._scheduler.held and not self._finisher.backlog and not self._storer.backlog:
            time.sleep(IDLE_S)

    def _drop_lost(self) -> None:
        """Free the slots of parts that are ours no more: canceled, deleted or taken over."""
        while True:
            try:
                execution, how = self._lost.get_nowait()
            except Empty:
                return
            slot = self._scheduler.drop(execution)
            if slot is not None:
                self._engine.retire(slot)
            if execution in self._held and not self._delivers(execution):
                self._reports.dropped(self._held[execution], how)
                self._let_go(execution)

    def _take(self) -> None:
        """Claim and start as many parts as there are slots for them."""
        backlog = self._finisher.backlog + self._storer.backlog
        room = min(self._scheduler.room(), self._engine.slots - backlog)
        at = time.monotonic()
        if self._stop_requested or room <= 0 or at < max(self._take_again_at, self._redis_again_at):
            return
        self._take_again_at = at + TAKE_EVERY_S
        try:
            for claim in self._parts.claim(room):
                self._begin(claim)
            for execution in reversed(self._scheduler.spare()):
                self._parts.put_back(self._held[execution])
                self._let_go(execution)
            self._backoff = 0.0
        except redis.RedisError as error:
            self._redis_away(error)

    def _begin(self, claim: Claim) -> None:
        if not claim.fields:
            self._parts.forget(claim)
            return
        try:
            image = read_part(claim)
        except RefusedPart as error:
            log.warning("refused %s", error)
            self._parts.refuse(claim, f"refused: {error}")
            self._metrics.refused()
            return
        held = self._parts.start(claim, image)
        if held is not None:
            self._reports.began(held)
            self._held = {**self._held, held.execution: held}
            self._scheduler.add(held.execution, suspect=held.losses >= SUSPECT_LOSSES)

    def _admit(self) -> None:
        while (execution := self._scheduler.next()) is not None:
            held = self._held[execution]
            try:
                check_image(held.image, self._info)
                slot = self._engine.admit(held.image)
            except Exception as error:
                self._scheduler.drop(execution)
                self._fail(held, error)
            else:
                self._scheduler.place(execution, slot, time.monotonic())

    def _step(self) -> None:
        for execution in self._scheduler.overdue(time.monotonic()):
            slot = self._scheduler.drop(execution)
            if slot is not None:
                self._engine.retire(slot)
            late = TimeoutError(f"not drawn within {PART_TIMEOUT_S} s")
            self._fail(self._held[execution], late)
        if not self._scheduler.active:
            return
        rows = self._scheduler.active
        done = self._engine.step()
        self._metrics.step(rows)
        placed = self._scheduler.placed()
        self._steps = {execution: self._engine.age(slot) for slot, execution in placed}
        for slot in done:
            execution, since = self._scheduler.at(slot), self._scheduler.since(slot)
            self._scheduler.drop(execution)
            held, tokens = self._held[execution], self._engine.retire(slot)
            drawn_s = time.monotonic() - since
            self._reports.drawn(held, tokens, drawn_s)
            self._finisher.give((held, since, drawn_s), held.image, tokens)
            self._collect()
            self._deliver()

    def _collect(self) -> None:
        """Have rows stored that are pixels and PNG by now; what is stored goes to the outbox."""
        idle = not self._scheduler.held
        for finished in self._finisher.collect(timeout=IDLE_S if idle else 0.0):
            held, since, drawn_s = finished.key
            if held.execution not in self._held:
                continue  # lost meanwhile
            if finished.error is not None:
                self._fail(held, finished.error)
                continue
            self._reports.painted(held, finished.paint_s, finished.png_s)
            decode_s = time.monotonic() - since
            self._pace.image(decode_s)
            spent = (decode_s, drawn_s, finished.paint_s, finished.png_s)
            delivery = Delivery(held, finished.files, *spent)
            self._storer.give(delivery, held, finished.files)
        self._gather(timeout=IDLE_S if idle and not self._finisher.backlog else 0.0)

    def _gather(self, timeout: float = 0.0) -> None:
        for put in self._storer.collect(timeout):
            held = put.key.held
            if held.execution in self._held:
                self._outbox.append(replace(put.key, files=put.files, sent_s=put.store_s))
            else:  # lost meanwhile
                self._storer.discard(held)

    def _fail(self, held: HeldPart, error: Exception) -> None:
        """Have the part fail; only our own sentences are shown to the client in full."""
        cause = _cause(error)
        known = cause != "engine"
        reason = str(error) if known else f"image could not be drawn: {type(error).__name__}"
        self._reports.broke(held, error, known=known)
        self._outbox.append(Delivery(held, {}, failure=reason, cause=cause))

    def _deliver(self) -> None:
        """Tell Redis of ended parts, oldest first; what cannot be told now stays for later."""
        while self._outbox and time.monotonic() >= self._redis_again_at:
            delivery = self._outbox[0]
            try:
                self._tell(delivery)
            except redis.RedisError as error:
                self._redis_away(error)
                return
            self._outbox.popleft()
            self._let_go(delivery.held.execution)

    def _tell(self, delivery: Delivery) -> None:
        held = delivery.held
        if delivery.failure is not None:
            accepted = self._parts.fail(held, delivery.failure, delivery.cause)
            if accepted:
                self._reports.failed(held)
        else:
            started = time.monotonic()
            total_s = self._parts.finish(held, delivery.files, delivery.decode_s)
            store_s = delivery.sent_s + time.monotonic() - started
            self._reports.stored(held, store_s)
            accepted = total_s is not None
            if total_s is not None:
                self._reports.finished(delivery, store_s, total_s)
        if not accepted:
            self._reports.refused(held)
            self._storer.discard(held)

    def _let_go(self, execution: str) -> None:
        self._held = {name: held for name, held in self._held.items() if name != execution}

    def _delivers(self, execution: str) -> bool:
        return any(delivery.held.execution == execution for delivery in self._outbox)

    def _redis_away(self, error: redis.RedisError) -> None:
        if self._backoff == 0.0:
            log.warning("Redis: %s; trying again", error)
        self._backoff = min(max(2 * self._backoff, 0.05), MAX_BACKOFF_S)
        self._redis_again_at = time.monotonic() + self._backoff

    # -- in the ear's thread ------------------------------------------------------------------

    def _ended(self, job: str) -> None:
        """A job has ended: what is held of it is canceled, or was drawn by somebody else."""
        for execution, held in self._held.items():
            if held.job == job:
                canceled = self._parts.was_canceled(held)
                self._lost.put((execution, "canceled" if canceled else "lost"))

    # -- in the heartbeat thread --------------------------------------------------------------

    def _beat(self) -> None:
        """Renew leases; take what others abandoned only while nothing but their death explains
        their silence."""
        steps = self._steps
        held = [(part, steps.get(part.execution, 0)) for part in self._held.values()]
        for execution in self._parts.beat(held, self._engine.steps_per_image):
            self._lost.put((execution, "lost"))
        if self._parts.steady and (swept := self._parts.sweep()):
            log.info("took back %d parts of silent workers", swept)
        self._registry.publish(self._info, self.name, self._engine.slots, self._pace.speed())
        self._register()
        if self._parts.steady and time.monotonic() >= self._tidy_at:
            self._tidy_at = time.monotonic() + TIDY_EVERY_S
            adopted = adopt_orphans(self.connection, self._info, result_ttl=self._result_ttl)
            if adopted:
                log.info("took over %d jobs of other numerics", adopted)
            worker_registration.clean_worker_registry(self.queues[0])
            self._storer.tidy()

    def _register(self) -> None:
        """Write RQ's entry of this worker whole each time: Redis may have lost it."""
        self.last_heartbeat = now()
        state = "busy" if self._held else "idle"
        with self.connection.pipeline() as pipe:
            pipe.hset(self.key, mapping={**self.serialize(), "state": state})
            worker_registration.register(self, pipe)
            pipe.expire(self.key, REGISTERED_S)
            pipe.execute()


def _cause(error: Exception) -> Cause:
    match error:
        case RequestError():
            return "request"
        case TimeoutError():
            return "timeout"
        case _:
            return "engine"
