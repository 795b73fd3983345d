"""A thread that hears which jobs end, so that canceled images leave their slots at the next step.

Without it a worker would learn of it at its next heartbeat only, which stays as the safety net
where a message is lost. Knows no parts and no engine.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import redis

from store.keys import ENDED_CHANNEL

LISTEN_S = 1.0
AGAIN_S = 1.0

log = logging.getLogger("pathar.worker")


class Ear:
    """Calls `heard` with the id in Redis of each job that ends, from `start` to `stop`."""

    def __init__(self, client: redis.Redis, heard: Callable[[str], None]) -> None:
        self._client = client
        self._heard = heard
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ear", daemon=True)

    def start(self) -> None:
        """Listen from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._stopped.set()
        self._thread.join(timeout=2 * LISTEN_S)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._listen()
            except redis.RedisError as error:
                log.warning("lost the channel of ended jobs (%s); reconnecting", error)
                self._stopped.wait(AGAIN_S)

    def _listen(self) -> None:
        pubsub = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        with pubsub as channel:
            channel.subscribe(ENDED_CHANNEL)
            while not self._stopped.is_set():
                message = channel.get_message(timeout=LISTEN_S)
                if message is not None:
                    self._heard(message["data"].decode())
