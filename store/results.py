"""The files of finished images: raw bytes in Redis, gone `result_ttl` seconds after the job ended.

Knows neither what a PNG is nor when a part may finish: the worker's results are written by
`PartStore.finish`, in the same step that marks the part finished.
"""

from __future__ import annotations

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
    """Results by owner, job id, image index and file name. Thread-safe, as its client is."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def get(self, owner: str, job_id: str, index: int, name: str) -> bytes | None:
        """One file of an owner's job; None when there is none (yet, or any more)."""
        part = keys.part_id(keys.owned_id(owner, job_id), index)
        data = self._redis.hget(keys.RESULT + part, name)
        return data if isinstance(data, bytes) else None
