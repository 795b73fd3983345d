"""A worker's heartbeat and its subscriber, two threads beside its loop.

The heartbeat renews the leases and the worker's registration every two seconds, and takes over
parts of dead workers and orphaned jobs from time to time. The subscriber learns which jobs end, so
that canceled images leave their slots at the next step, and when parts are put in the queue, so
that an idle worker takes them at once. If a message is lost, the next heartbeat or the next poll of
the queue finds out. Only this file of the worker uses RQ: RQ's own worker would fork and import, so
only its registration is used, and RQ's tools show this worker. Knows no engine.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from uuid import uuid4

import redis
from rq import Queue, worker_registration
from rq.serializers import JSONSerializer
from rq.utils import now
from rq.worker import SimpleWorker

from model.request import ModelInfo
from store.keys import ENDED_CHANNEL, WAITING_CHANNEL
from store.orphans import adopt_orphans
from store.parts import Claim, HeldPart, PartStore
from store.registry import Registry
from worker.beside import Beside, Watchdog
from worker.ledger import Ledger
from worker.pace import Pace

HEARTBEAT_S = 2.0
"""Pause between two heartbeats. A lease lasts for several of them."""
LISTEN_S = 1.0
TIDY_EVERY_S = 30.0
"""Pause between two searches for orphaned jobs and for dead workers in RQ's registry."""
REGISTERED_S = 60
"""How long RQ's tools show a worker after its last heartbeat."""

log = logging.getLogger("pathar.worker")


def new_name() -> str:
    """A unique worker name for this process."""
    return f"pathar-{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"


class Registration(SimpleWorker):
    """The registration in RQ of a worker with this name and one queue."""

    def __init__(self, client: redis.Redis, queue: str, name: str) -> None:
        self.client = client
        listening = self.on(queue)
        super().__init__([listening], name=name, connection=client, serializer=JSONSerializer)
        self.birth_date = now()

    def on(self, queue: str) -> Queue:
        """The RQ queue of this name."""
        return Queue(queue, connection=self.client, serializer=JSONSerializer)

    @property
    def connection_timeout(self) -> int:
        """RQ raises the client's time-out to this value; 0 keeps that of `runtime.connection`."""
        return 0

    def renew(self, *, busy: bool) -> None:
        """Write the whole registration: Redis may have lost it."""
        self.last_heartbeat = now()
        with self.connection.pipeline() as pipe:
            state = "busy" if busy else "idle"
            pipe.hset(self.key, mapping={**self.serialize(), "state": state})
            worker_registration.register(self, pipe)
            pipe.expire(self.key, REGISTERED_S)
            pipe.execute()


class Presence:
    """Both threads, from `enter` to `leave`. They read `ledger` and mark lost parts in it."""

    def __init__(
        self,
        client: redis.Redis,
        model: ModelInfo,
        parts: PartStore,
        ledger: Ledger,
        pace: Pace,
        *,
        slots: int,
        tidy: Callable[[], None],
        result_ttl: int,
    ) -> None:
        self._redis, self._model, self._slots = client, model, slots
        self._parts, self._ledger, self._pace = parts, ledger, pace
        self._tidy, self._result_ttl = tidy, result_ttl
        self._tidy_at = 0.0
        self._failed: dict[str, str] = {}
        self._called = threading.Event()
        self._registry = Registry(client)
        self._registration = Registration(client, parts.queue, parts.worker)
        self.watchdog = Watchdog()
        self._heartbeat = Beside("heartbeat", self._send_heartbeat, HEARTBEAT_S)
        self._subscriber = Beside("subscriber", self._listen, LISTEN_S)

    def enter(self) -> None:
        """Publish this worker as ready and start both threads. It must be warm. RedisError."""
        self.watchdog.progress()
        self._send_heartbeat()
        self._heartbeat.start()
        self._subscriber.start()

    def wait(self, timeout_s: float) -> None:
        """Wait until parts are put in the queue, at most so long."""
        self._called.wait(timeout_s)
        self._called.clear()

    def leave(self) -> None:
        """Stop both threads and remove this worker's registration."""
        self._heartbeat.stop()
        self._subscriber.stop()
        try:
            self._registry.withdraw(self._model, self._parts.worker, self._slots)
            self._registration.register_death()  # type: ignore[no-untyped-call]
        except redis.RedisError as error:
            log.warning("could not remove this worker's registration: %s", error)

    def _send_heartbeat(self) -> None:
        """Run all duties. A duty that fails, for example on a foreign value in Redis, does not stop
        the others. An error that repeats is logged once. Raises while Redis does not answer."""
        self.watchdog.check()
        failed: dict[str, str] = {}
        for duty in (self._renew, self._publish, self._register, self._sweep, self._clean_up):
            try:
                duty()
            except (redis.ConnectionError, redis.TimeoutError):
                raise
            except Exception as error:
                failed[duty.__name__] = str(error)
                if self._failed.get(duty.__name__) != str(error):
                    unknown = not isinstance(error, redis.RedisError)
                    log.warning("heartbeat: %s", error, exc_info=unknown)
        self._failed = failed

    def _renew(self) -> None:
        tasks = self._ledger.at()
        held: list[tuple[HeldPart | Claim, int]] = [(task.held, task.step) for task in tasks]
        held += [(claim, 0) for claim in self._ledger.claims]
        lost = self._parts.heartbeat(held, self._model.steps)
        for task in tasks:
            if task.held.execution in lost:
                task.lose("lost")

    def _publish(self) -> None:
        speed = self._pace.speed()
        self._registry.publish(self._model, self._parts.worker, self._slots, speed)

    def _register(self) -> None:
        self._registration.renew(busy=bool(self._ledger.at()))

    def _sweep(self) -> None:
        """Take back parts of dead workers, if this worker is `steady`: then no outage of Redis can
        explain their missing heartbeats."""
        if self._parts.steady and (swept := self._parts.sweep()):
            log.info("took back %d parts of dead workers", swept)

    def _clean_up(self) -> None:
        if not self._parts.steady or time.monotonic() < self._tidy_at:
            return
        self._tidy_at = time.monotonic() + TIDY_EVERY_S
        ttl, damaged = self._result_ttl, self._parts.damaged
        if adopted := adopt_orphans(self._redis, self._model, result_ttl=ttl, damaged=damaged):
            log.info("took over %d orphaned jobs of other numerics", adopted)
        for name in {*self._registry.every(), self._parts.queue}:  # also of models without workers
            worker_registration.clean_worker_registry(self._registration.on(name))
        self._tidy()

    def _listen(self) -> None:
        """Receive which jobs end. Their held parts are canceled, or lost to another worker. Receive
        also where parts are put."""
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        with pubsub as channel:
            channel.subscribe(ENDED_CHANNEL, WAITING_CHANNEL)
            while not self._subscriber.stopped:
                message = channel.get_message(timeout=LISTEN_S)
                if message is None:
                    continue
                told = message["data"].decode(errors="replace")
                if message["channel"] == WAITING_CHANNEL.encode():
                    if told == self._parts.queue:
                        self._called.set()
                    continue
                for task in self._ledger.at():
                    if task.held.job == told:
                        canceled = self._parts.was_canceled(task.held)
                        task.lose("canceled" if canceled else "lost")
