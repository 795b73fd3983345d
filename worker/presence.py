"""What a worker says of itself while it lives, and what it hears: two threads beside its loop.

Every two seconds it renews its leases and its entry among the workers, and now and then it takes
over what others left. Meanwhile it hears which jobs end, so that canceled images leave their slots
at the next step; where a message is lost, the next renewal tells. This is the one file of the
worker that touches RQ: of RQ's own worker, whose loop would fork and import, only its entry among
the workers is kept, so that RQ's tools show this one. Knows no engine.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from uuid import uuid4

import redis
from rq import Queue, worker_registration
from rq.serializers import JSONSerializer
from rq.utils import now
from rq.worker import SimpleWorker

from model.request import ModelInfo
from store.keys import ENDED_CHANNEL
from store.orphans import adopt_orphans
from store.parts import Claim, HeldPart, PartStore
from store.registry import Registry
from worker.beside import Beside, Watchdog
from worker.ledger import Ledger
from worker.pace import Pace

BEAT_S = 2.0
"""Pause between two signs of life; leases last several of these."""
LISTEN_S = 1.0
TIDY_EVERY_S = 30.0
"""Pause between two searches for orphaned jobs and for workers that left no word."""
REGISTERED_S = 60
"""How long RQ's tools show a worker after its last sign of life."""

log = logging.getLogger("pathar.worker")


def new_name() -> str:
    """A name for this process that no other worker has."""
    return f"pathar-{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"


class Registration(SimpleWorker):
    """RQ's entry of the worker with this name, which draws the parts of one queue."""

    def __init__(self, client: redis.Redis, queue: str, name: str) -> None:
        listening = Queue(queue, connection=client, serializer=JSONSerializer)
        super().__init__([listening], name=name, connection=client, serializer=JSONSerializer)
        self.birth_date = now()

    @property
    def connection_timeout(self) -> int:
        """RQ raises the client's timeout to this; ours is set in `runtime.connection`."""
        return 0

    def renew(self, *, busy: bool) -> None:
        """Write the entry whole each time: Redis may have lost it."""
        self.last_heartbeat = now()
        with self.connection.pipeline() as pipe:
            state = "busy" if busy else "idle"
            pipe.hset(self.key, mapping={**self.serialize(), "state": state})
            worker_registration.register(self, pipe)
            pipe.expire(self.key, REGISTERED_S)
            pipe.execute()


class Presence:
    """Both threads, from `enter` to `leave`. They read `ledger`, and say there what is lost."""

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
        self._registry = Registry(client)
        self._registration = Registration(client, parts.queue, parts.worker)
        self.watchdog = Watchdog()
        self._heartbeat = Beside("heartbeat", self._beat, BEAT_S)
        self._subscriber = Beside("subscriber", self._listen, LISTEN_S)

    def enter(self) -> None:
        """Publish that this worker, which must be warm, is ready. RedisError."""
        self.watchdog.progress()
        self._beat()
        self._heartbeat.start()
        self._subscriber.start()

    def leave(self) -> None:
        """Say that this worker is no more."""
        self._heartbeat.stop()
        self._subscriber.stop()
        try:
            self._registry.withdraw(self._model, self._parts.worker, self._slots)
            self._registration.register_death()  # type: ignore[no-untyped-call]
        except redis.RedisError as error:
            log.warning("left without saying so: %s", error)

    def _beat(self) -> None:
        """One duty that fails, say over what somebody else wrote into Redis, keeps no other from
        being done; while Redis does not answer there is none to do. What fails again and again for
        one reason is logged once."""
        self.watchdog.check()
        failed: dict[str, str] = {}
        for duty in (self._renew, self._publish, self._register, self._sweep, self._look_around):
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
        lost = self._parts.beat(held, self._model.steps)
        for task in tasks:
            if task.held.execution in lost:
                task.lose("lost")

    def _publish(self) -> None:
        speed = self._pace.speed()
        self._registry.publish(self._model, self._parts.worker, self._slots, speed)

    def _register(self) -> None:
        self._registration.renew(busy=bool(self._ledger.at()))

    def _sweep(self) -> None:
        """Take what others abandoned, while nothing but their death explains their silence."""
        if self._parts.steady and (swept := self._parts.sweep()):
            log.info("took back %d parts of silent workers", swept)

    def _look_around(self) -> None:
        if not self._parts.steady or time.monotonic() < self._tidy_at:
            return
        self._tidy_at = time.monotonic() + TIDY_EVERY_S
        ttl, damaged = self._result_ttl, self._parts.damaged
        if adopted := adopt_orphans(self._redis, self._model, result_ttl=ttl, damaged=damaged):
            log.info("took over %d jobs of other numerics", adopted)
        worker_registration.clean_worker_registry(self._registration.queues[0])
        self._tidy()

    def _listen(self) -> None:
        """Hear which jobs end: what is held of one is canceled, or was drawn by somebody else."""
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        with pubsub as channel:
            channel.subscribe(ENDED_CHANNEL)
            while not self._subscriber.stopped:
                message = channel.get_message(timeout=LISTEN_S)
                for task in self._ledger.at() if message is not None else ():
                    if task.held.job == message["data"].decode():
                        canceled = self._parts.was_canceled(task.held)
                        task.lose("canceled" if canceled else "lost")
