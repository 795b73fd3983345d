"""How to reach Redis: timeouts and retries said out loud. Knows no keys.

redis-py's defaults (a 5 s read timeout, several retries) turn one blocking read of 7 s into a
failure after a minute, so nothing here is left to them.
"""

from __future__ import annotations

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

TIMEOUT_S = 5.0
RETRIES = 2


def connect(url: str, *, timeout_s: float = TIMEOUT_S, patient: bool = True) -> redis.Redis:
    """A client for `url` (redis://, rediss:// or unix://). Connects on first use.

    A command is tried again a few times within about a second after a lost connection, and, by a
    patient client, after `timeout_s` without an answer; then redis.exceptions.ConnectionError or
    TimeoutError. ValueError on a URL of another kind.
    """
    errors = (redis.ConnectionError, redis.TimeoutError) if patient else (redis.ConnectionError,)
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES, errors),
        decode_responses=False,
    )
