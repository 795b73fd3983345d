"""The worker's loop.

One cycle takes parts for the free slots, admits them, makes one decode step for all live rows,
turns complete rows into files (`drawing.py`), stores the files (`storing.py`), marks the parts
finished in Redis (`store/parts.py`) and reports them (`reports.py`). A part can join while others
are half done, and ends independently of them. `ledger.py` has the parts that are held and their
stages. `presence.py` sends heartbeats from its own thread. Knows no PNG, no RQ and no Lua.

What goes wrong, and what happens then:
- a request that the model does not accept fails alone; its neighbours keep their slots;
- an image that the engine cannot draw, or not in time, goes back to the queue and loses a try;
  another worker draws it first, if one lives;
- that happens with some images in a row (`health.py`), or the engine breaks in a step: all that is
  held goes back and the process ends;
- the process dies or hangs: its leases run out and any worker of this queue takes the parts over;
- Redis is away: rows are decoded to their end, results wait here, nothing is taken meanwhile, and
  no silence of others counts until all had time to speak again; a full one takes the results;
- the storage of results is away: the same, once as many results wait as there are slots.
"""

from __future__ import annotations

import logging
import time

import redis

from model.engine import Engine
from model.request import ModelInfo
from runtime.objects import Objects
from runtime.telemetry import Traces
from store import keys
from store.jobs import PART_TIMEOUT_S
from store.parts import Cause, Claim, PartStore, RefusedPart, read_part
from store.results import ResultStore
from store.scripts import LOST_REASON, LOST_WORKER
from worker.drawing import Finisher, threads_beside
from worker.health import EngineFailed, EngineHealth
from worker.images import check_image, numerics
from worker.ledger import Ledger, Task
from worker.metrics import WorkerMetrics
from worker.pace import Pace
from worker.presence import Presence, new_name
from worker.reports import Reports
from worker.stopping import Stop
from worker.storing import FIRST_BACKOFF_S, MAX_BACKOFF_S, Storer

IDLE_S = 0.02
"""Pause between two polls of an empty queue."""
TAKE_EVERY_S = 0.01
"""Between decode steps, the shortest time between two polls of the queue."""
LEAVE_S = 0.5
"""How long an image that failed in this worker is left to other workers."""

log = logging.getLogger("pathar.worker")


class BatchWorker:
    """Draws the parts of one queue, the one of its engine's version and numerics, until a signal.

    Not thread-safe: only the thread that calls `work` may use it.
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
        self.info: ModelInfo = engine.info(numerics(engine))
        queue = keys.queue_name(self.info.version, self.info.numerics)
        self._engine = engine
        self._parts = PartStore(
            client, queue, new_name(), result_ttl=result_ttl, damaged=metrics.refused
        )
        self._ledger = Ledger(engine.slots, PART_TIMEOUT_S)
        self._finisher = Finisher[Task](engine, self.info, threads=threads_beside(engine))
        self._storer = Storer(ResultStore(client, objects))
        self._metrics, self._reports = metrics, Reports(self.info, metrics, traces)
        self._pace, self._stop, self._health = Pace(), Stop(), EngineHealth()
        self._presence = Presence(
            client, self.info, self._parts, self._ledger, self._pace,
            slots=engine.slots, tidy=self._storer.tidy, result_ttl=result_ttl,
        )  # fmt: skip
        self._redis_again_at = self._take_again_at = self._backoff = 0.0

    def enter(self) -> None:
        """Register this worker and publish it as ready. It must be warm. RedisError."""
        self._stop.listen()
        self._presence.enter()

    def work(self) -> None:
        """Draw until a stop signal. Raises an exception when the engine breaks."""
        try:
            while not self._stop.asked or (self._ledger.at() and not self._stop.due):
                self._cycle()
            self._hand_back(suspect=False)
        except EngineFailed as error:
            log.critical("%s; this process ends", error)
            self._hand_back(suspect=False)
            raise
        except Exception:
            log.exception("the engine broke; handing back %d parts", len(self._ledger.at()))
            self._hand_back(suspect=True)
            raise
        finally:
            self._finisher.close()
            self._presence.leave()
            self._storer.close()

    def _cycle(self) -> None:
        self._presence.watchdog.progress()
        started = time.monotonic()
        for task in self._ledger.at("waiting", "drawing"):
            self._is_lost(task)
        self._take()
        self._admit()
        drawing = self._ledger.count("drawing")
        if drawing:
            self._step(drawing)
        self._pass_on()
        self._health.check()
        if drawing:
            self._pace.busy(time.monotonic() - started)
        self._metrics.slots(self._ledger.count("drawing"), self._engine.free)
        if not self._ledger.count("waiting", "drawing", "rendering", "storing"):
            time.sleep(IDLE_S)

    def _take(self) -> None:
        """Claim and start as many parts as there are free slots."""
        at, room = time.monotonic(), self._ledger.room()
        again_at = max(self._take_again_at, self._redis_again_at, self._health.rest_until)
        if self._stop.asked or room <= 0 or at < again_at:
            return
        self._take_again_at = at + TAKE_EVERY_S
        try:
            self._ledger.claims = self._ledger.claims or self._parts.claim(room)
            for claim in self._ledger.claims:
                self._begin(claim)
                self._ledger.claims = self._ledger.claims[1:]
            for task in reversed(self._ledger.spare()):
                self._parts.put_back(task.held)
                self._ledger.remove(task)
            self._backoff = 0.0
        except redis.RedisError as error:
            self._redis_away(error)

    def _begin(self, claim: Claim) -> None:
        if self._health.failed_with(claim.part) and self._parts.others_live():
            self._parts.put_back(claim)
            self._take_again_at = time.monotonic() + LEAVE_S
            return
        try:
            image = read_part(claim)
        except RefusedPart as error:
            if self._parts.refuse(claim, f"refused: {error}"):
                log.warning("refused %s", error)
                self._metrics.refused()
            return
        held = self._parts.start(claim, image)
        if held is not None:
            self._reports.began(self._ledger.add(held))

    def _admit(self) -> None:
        while (task := self._ledger.next()) is not None:
            try:
                check_image(task.held.image, self.info)
                slot = self._engine.admit(task.held.image)
            except Exception as error:
                self._fail(task, error)
            else:
                self._ledger.place(task, slot, time.monotonic())

    def _step(self, rows: int) -> None:
        """Make one step for all rows. Renders complete rows, or starts to in a thread."""
        done = self._engine.step()
        self._metrics.step(rows)
        placed = self._ledger.placed()
        for slot, task in placed.items():
            task.step = self._engine.age(slot)
        for slot in done:
            task, tokens = placed[slot], self._engine.retire(slot)
            task.drawn_s = time.monotonic() - task.since
            self._reports.drawn(task, tokens)
            self._ledger.move(task, "rendering")
            self._finisher.give(task, task.held.image, tokens)
            self._pass_on()
        for task in self._ledger.overdue(time.monotonic()):
            self._engine.retire(task.slot)
            self._fail(task, TimeoutError(f"not drawn within {PART_TIMEOUT_S} s"))

    def _pass_on(self) -> None:
        """Store the files of rendered rows, and mark stored parts finished in Redis."""
        idle = not self._ledger.count("waiting", "drawing")
        for finished in self._finisher.collect(timeout=IDLE_S if idle else 0.0):
            task = finished.key
            if self._is_lost(task):
                continue
            if finished.error is not None:
                self._fail(task, finished.error)
                continue
            task.decode_s = time.monotonic() - task.since
            task.render_s, task.png_s = finished.render_s, finished.png_s
            self._reports.rendered(task)
            self._pace.image(task.decode_s)
            self._health.succeeded()
            self._ledger.move(task, "storing")
            self._storer.give(task, finished.files)
        idle = idle and not self._ledger.count("rendering")
        for task in self._storer.collect(timeout=IDLE_S if idle else 0.0):
            if not self._is_lost(task):
                self._ledger.move(task, "telling")
        self._deliver()

    def _is_lost(self, task: Task) -> bool:
        """Whether the part was lost (canceled, deleted or taken over); if so, drop it."""
        if task.lost is None:
            return False
        if task.stage == "drawing":
            self._engine.retire(task.slot)
        self._storer.discard(task)
        self._reports.left(task, task.lost)
        self._ledger.remove(task)
        return True

    def _fail(self, task: Task, error: Exception) -> None:
        task.fail(error)
        if task.cause != "request":
            self._health.failed(task.held.part, error, time.monotonic())
        self._reports.broke(task, error)
        self._ledger.move(task, "telling")

    def _deliver(self) -> None:
        """Write the end of parts to Redis, oldest first. Retries later when Redis is away."""
        for task in self._ledger.at("telling"):
            if time.monotonic() < self._redis_again_at:
                return
            try:
                self._tell(task)
            except redis.RedisError as error:
                self._redis_away(error)
                return
            self._ledger.remove(task)

    def _tell(self, task: Task) -> None:
        """Write the end of one part. Redis rejects it when this worker no longer owns the part."""
        if task.failure is not None and task.cause != "request":
            state = self._parts.put_back(task.held, task.cause, task.failure)
            self._reports.gave_up(task, state)
            return
        if task.failure is not None:
            accepted = self._parts.fail(task.held, task.failure, task.cause)
        else:
            started = time.monotonic()
            task.total_s = self._parts.finish(task.held, task.files, task.decode_s)
            task.store_s += time.monotonic() - started
            accepted = task.total_s is not None
        self._reports.told(task, accepted=accepted)
        if not accepted:
            self._storer.discard(task)

    def _hand_back(self, *, suspect: bool) -> None:
        """Put all held parts back in the queue, in their old order. RedisError is only logged: the
        leases then expire."""
        self._redis_again_at = 0.0
        self._pass_on()
        try:
            for claim in reversed(self._ledger.claims):
                self._parts.put_back(claim)
            for task in reversed(self._ledger.at()):
                cause: Cause | None = LOST_WORKER if suspect else None
                self._parts.put_back(task.held, cause, LOST_REASON)
                self._reports.left(task, "handed_back")
                self._ledger.remove(task)
        except redis.RedisError as error:
            log.warning("could not hand back the parts; their leases will expire: %s", error)

    def _redis_away(self, error: redis.RedisError) -> None:
        if self._backoff == 0.0:
            log.warning("Redis: %s; trying again", error)
        self._backoff = min(max(2 * self._backoff, FIRST_BACKOFF_S), MAX_BACKOFF_S)
        self._redis_again_at = time.monotonic() + self._backoff
