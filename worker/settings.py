"""The worker's settings, read from PATHAR_ environment variables once, at start-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints" / "small"
READY = "worker ready"
"""What the line begins with that a warm worker prints, and that `pathar up` waits for."""
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


class SettingsError(ValueError):
    """A setting that cannot be used. Names the key, the value and what would be right."""

    def __init__(self, key: str, value: str, expected: str) -> None:
        super().__init__(f"{key}={value!r}: expected {expected}")


@dataclass(frozen=True)
class Settings:
    """What a worker can be told. `result_ttl` in seconds; threads 0 = all cores; port 0 = off."""

    redis_url: str = "redis://127.0.0.1:6379/0"
    checkpoint: Path = SHIPPED
    device: str = "auto"
    slots: int = 16
    threads: int = 0
    result_ttl: int = 86400
    metrics_port: int = 0


def read_settings(env: Mapping[str, str]) -> Settings:
    """The settings that `env` names, defaults for the rest. SettingsError on a bad value."""
    default = Settings()
    checkpoint = Path(env.get("PATHAR_CHECKPOINT") or default.checkpoint)
    if not checkpoint.is_dir():
        raise SettingsError("PATHAR_CHECKPOINT", str(checkpoint), "a folder with a checkpoint")
    redis_url = env.get("PATHAR_REDIS_URL") or default.redis_url
    if not redis_url.startswith(REDIS_SCHEMES):
        expected = f"a URL that starts with {', '.join(REDIS_SCHEMES)}"
        raise SettingsError("PATHAR_REDIS_URL", redis_url, expected)
    return Settings(
        redis_url=redis_url,
        checkpoint=checkpoint,
        device=env.get("PATHAR_DEVICE") or default.device,
        slots=_integer(env, "PATHAR_SLOTS", default.slots, 1, 4096),
        threads=_integer(env, "PATHAR_THREADS", default.threads, 0, 1024),
        result_ttl=_integer(env, "PATHAR_RESULT_TTL", default.result_ttl, 1, 365 * 86400),
        metrics_port=_integer(env, "PATHAR_WORKER_METRICS_PORT", default.metrics_port, 0, 65535),
    )


def _integer(env: Mapping[str, str], key: str, default: int, low: int, high: int) -> int:
    text = env.get(key) or str(default)
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not low <= int(text) <= high:
        raise SettingsError(key, text, f"an integer from {low} to {high}")
    return int(text)
