"""The worker's settings, read from PATHAR_ environment variables once, at start-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.settings import (
    HOST,
    REDIS_URL,
    RESULT_TTL_S,
    SettingsError,
    integer,
    redis_url,
    result_ttl,
    results_url,
)

SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints" / "small"
READY = "worker ready"
"""The start of the line that a warm worker prints. `pathar up` waits for it."""


@dataclass(frozen=True)
class WorkerSettings:
    """A worker's settings. `result_ttl` in seconds; `slots` 0 means as many as suit the device,
    `threads` 0 all cores. Without a `results_url` results go to Redis.

    Metrics are served on `host` and `metrics_port`; port 0 turns them off.
    """

    redis_url: str = REDIS_URL
    checkpoint: Path = SHIPPED
    device: str = "auto"
    slots: int = 0
    threads: int = 0
    result_ttl: int = RESULT_TTL_S
    results_url: str | None = None
    host: str = HOST
    metrics_port: int = 0


def read_settings(env: Mapping[str, str]) -> WorkerSettings:
    """The settings in `env`, with defaults for the rest. SettingsError on a bad value."""
    default = WorkerSettings()
    checkpoint = Path(env.get("PATHAR_CHECKPOINT") or default.checkpoint)
    if not checkpoint.is_dir():
        raise SettingsError("PATHAR_CHECKPOINT", str(checkpoint), "a folder with a checkpoint")
    return WorkerSettings(
        redis_url=redis_url(env),
        checkpoint=checkpoint,
        device=env.get("PATHAR_DEVICE") or default.device,
        slots=integer(env, "PATHAR_SLOTS", default.slots, 0, 4096),
        threads=integer(env, "PATHAR_THREADS", default.threads, 0, 1024),
        result_ttl=result_ttl(env),
        results_url=results_url(env),
        host=env.get("PATHAR_HOST") or default.host,
        metrics_port=integer(env, "PATHAR_WORKER_METRICS_PORT", default.metrics_port, 0, 65535),
    )
