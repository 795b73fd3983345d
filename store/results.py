"""The files of finished images: raw bytes in Redis, gone `result_ttl` seconds after the job ended.

Knows neither what a PNG is nor when a part may finish: the worker's results are written by
`PartStore.finish`, in the same step that marks the part finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from store import keys

if TYPE_CHECKING:  # the engine's benchmarks import the names below where there is no Redis
    import redis

IMAGE_NAME = "image.png"
MASK_NAME = "mask.png"
TOKENS_NAME = "tokens.json"
NAMES = (IMAGE_NAME, MASK_NAME, TOKENS_NAME)
"""The files of one image."""


class ResultStore:
    """Results by job id, image index and file name."""

    def __init__(self, client: redis.Redis, *, result_ttl: int) -> None:
        self._redis = client
        self._ttl = result_ttl

    def put(self, job_id: str, index: int, files: Mapping[str, bytes]) -> None:
        """Store the files of one image on their own, with no part to finish (an import, a test)."""
        key = keys.RESULT + keys.part_id(job_id, index)
        with self._redis.pipeline() as pipe:
            for name, data in files.items():
                pipe.hset(key, name, data)
            pipe.expire(key, self._ttl)
            pipe.execute()

    def get(self, job_id: str, index: int, name: str) -> bytes | None:
        """One file; None when there is none (yet, or any more)."""
        data = self._redis.hget(keys.RESULT + keys.part_id(job_id, index), name)
        return data if isinstance(data, bytes) else None
