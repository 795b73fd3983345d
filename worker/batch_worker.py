"""The worker's loop.

One cycle takes parts for the free slots (`part_queue.py`), admits them, makes one decode step for
all rows, turns complete rows into files (`drawing.py`), stores the files (`storing.py`) and writes
the ends of parts to Redis. A part can join while others are half done, and ends independently of
them. `ledger.py` has the parts that are held and their stages. `presence.py` sends heartbeats from
its own thread. Knows no PNG, no RQ and no Lua.

What goes wrong, and what happens then:
- The model does not accept a request: it fails alone.
- The engine cannot draw an image, or not in time: it goes back to the queue and loses a try.
  Another worker draws it first, if one lives.
- That happens with several images in a row (`health.py`), or the engine breaks in a step: all parts
  go back and the process ends.
- The process dies or hangs: its leases expire and any worker of this queue takes the parts over.
- Redis is away: rows are decoded to their end, results wait here and nothing is taken.
- The storage of results is away: the same, once as many results wait as there are slots.
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
from store.parts import Cause, PartStore
from store.results import ResultStore
from store.scripts import LOST_WORKER
from worker.drawing import Finisher, threads_beside
from worker.health import EngineFailed, EngineHealth
from worker.images import check_image, numerics
from worker.ledger import Ledger, Task
from worker.metrics import WorkerMetrics
from worker.pace import Pace
from worker.part_queue import TAKE_EVERY_S, PartQueue
from worker.picture import Picture
from worker.presence import Presence, new_name
from worker.reports import Reports
from worker.stopping import Stop
from worker.storing import Storer

POLL_S = 0.2
"""Pause between two polls of an empty queue, in case no message tells of parts."""
IDLE_S = 0.02
"""The longest wait for files or their storage before the queue is polled again."""

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
        parts = PartStore(client, queue, new_name(), result_ttl=result_ttl, damaged=metrics.refused)
        self._ledger = Ledger(engine.slots, PART_TIMEOUT_S)
        self._finisher = Finisher[Task](engine, self.info, threads=threads_beside(engine))
        self._storer = Storer(ResultStore(client, objects))
        self._metrics, self._reports = metrics, Reports(self.info, metrics, traces)
        self._pace, self._stop, self._health = Pace(), Stop(), EngineHealth()
        self._queue = PartQueue(
            parts, self._ledger, self._reports, self._health, self._storer.discard
        )
        self._presence = Presence(
            client, self.info, parts, self._ledger, self._pace,
            slots=engine.slots, tidy=self._storer.tidy, result_ttl=result_ttl,
        )  # fmt: skip

    def enter(self) -> None:
        """Register this worker and publish it as ready. It must be warm. RedisError."""
        self._stop.listen()
        self._presence.enter()

    def work(self) -> None:
        """Draw until a stop signal. Raises an exception when the engine breaks."""
        try:
            while not self._stop.asked or (self._ledger.at() and not self._stop.due):
                self._cycle()
            self._hand_back(None)
        except EngineFailed as error:
            log.critical("%s; this process ends", error)
            self._hand_back(None)
            raise
        except Exception:
            log.exception("the engine broke; handing back %d parts", len(self._ledger.at()))
            self._hand_back(LOST_WORKER)
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
        if not self._stop.asked:
            self._queue.take()
        self._admit()
        rows = self._ledger.used()
        if rows:
            self._step()
        self._pass_on()
        self._health.check()
        if rows:
            self._pace.busy(time.monotonic() - started)
        self._metrics.slots(self._ledger.used(), self._engine.free)
        if not self._ledger.count("waiting", "drawing", "rendering", "storing"):
            time.sleep(TAKE_EVERY_S)  # nothing is taken sooner, whatever it is told
            self._presence.wait(POLL_S)

    def _admit(self) -> None:
        while (task := self._ledger.next()) is not None:
            try:
                if task.picture is None:
                    check_image(task.held.image, self.info)
                    task.picture = Picture(task.held.image, self.info)
                    task.cost = task.picture.cost
                slot = task.picture.admit(self._engine)
            except Exception as error:
                self._leave(task)
                self._fail(task, error)
            else:
                self._ledger.place(task, slot, time.monotonic(), task.picture.ready)

    def _step(self) -> None:
        """Make one step for all rows. Renders complete rows, or starts to in a thread."""
        rows = self._engine.live
        done = self._engine.step()
        if rows:
            self._metrics.step(rows)
        placed = self._ledger.placed()
        for task in self._ledger.at("drawing"):
            task.step = self._picture(task).step(self._engine)
        for slot in done:
            task = placed[slot]
            tokens = self._picture(task).end(self._engine, slot)
            self._ledger.release(task, slot, self._picture(task).ready)
            if tokens is None:  # a large image has windows left
                continue
            task.drawn_s = time.monotonic() - task.since
            self._reports.drawn(task, tokens)
            self._ledger.move(task, "rendering")
            self._finisher.give(task, self._picture(task).drawn, tokens)
            self._pass_on()
        for task in self._ledger.overdue(time.monotonic()):
            self._leave(task)
            self._fail(task, TimeoutError(f"not drawn within {PART_TIMEOUT_S * task.cost} s"))

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
            self._pace.image(task.decode_s, task.cost)
            self._health.succeeded()
            self._ledger.move(task, "storing")
            self._storer.give(task, finished.files)
        idle = idle and not self._ledger.count("rendering")
        for task in self._storer.collect(timeout=IDLE_S if idle else 0.0):
            if not self._is_lost(task):
                self._ledger.move(task, "ending")
        self._queue.end()

    def _is_lost(self, task: Task) -> bool:
        """Whether the part was lost (canceled, deleted or taken over); if so, drop it."""
        if task.lost is None:
            return False
        if task.stage == "drawing":
            self._leave(task)
        self._storer.discard(task)
        self._reports.left(task, task.lost)
        self._ledger.remove(task)
        return True

    def _leave(self, task: Task) -> None:
        """Give back the slots of a task that is not drawn to its end."""
        if task.picture is not None:
            task.picture.leave(self._engine)
        task.slots.clear()

    @staticmethod
    def _picture(task: Task) -> Picture:
        assert task.picture is not None, "it was made before the task got its first slot"
        return task.picture

    def _fail(self, task: Task, error: Exception) -> None:
        task.fail(error)
        if task.cause != "request":
            self._health.failed(task.held.part, error, time.monotonic())
        self._reports.broke(task, error)
        self._ledger.move(task, "ending")

    def _hand_back(self, cause: Cause | None) -> None:
        self._pass_on()
        self._queue.hand_back(cause)
