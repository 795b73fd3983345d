"""Connects to Redis, with explicit time-outs and retries. Knows no keys.

With redis-py's defaults (a 5 s read time-out, several retries) one blocking read of 7 s fails after
a minute.
"""

from __future__ import annotations

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

TIMEOUT_S = 5.0
REDIS_RETRIES = 2


def connect(url: str, *, timeout_s: float = TIMEOUT_S, patient: bool = True) -> redis.Redis:
    """A client for `url` (redis://, rediss:// or unix://). Connects on first use.

    After a lost connection a command is retried a few times within about a second. A `patient`
    client also retries after `timeout_s` without an answer. Raises redis.exceptions.ConnectionError
    or TimeoutError in the end; ValueError on another kind of URL.
    """
    errors = (redis.ConnectionError, redis.TimeoutError) if patient else (redis.ConnectionError,)
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), REDIS_RETRIES, errors),
        decode_responses=False,
    )
