from __future__ import annotations

from pathlib import Path

import pytest

from runtime.settings import SettingsError
from worker.settings import WorkerSettings, read_settings


def test_what_is_not_set_has_its_default(tmp_path: Path) -> None:
    settings = read_settings({"PATHAR_CHECKPOINT": str(tmp_path)})
    assert settings == WorkerSettings(checkpoint=tmp_path)
    assert (settings.slots, settings.threads, settings.result_ttl) == (0, 0, 86400)


def test_every_setting_is_read(tmp_path: Path) -> None:
    settings = read_settings(
        {
            "PATHAR_REDIS_URL": "unix:///run/redis.sock",
            "PATHAR_CHECKPOINT": str(tmp_path),
            "PATHAR_DEVICE": "cpu",
            "PATHAR_SLOTS": "3",
            "PATHAR_THREADS": "2",
            "PATHAR_RESULT_TTL": "60",
            "PATHAR_RESULTS_URL": "s3://bucket/some/prefix/",
            "PATHAR_HOST": "0.0.0.0",
            "PATHAR_WORKER_METRICS_PORT": "9100",
        }
    )
    assert settings == WorkerSettings(
        "unix:///run/redis.sock",
        tmp_path,
        "cpu",
        3,
        2,
        60,
        "s3://bucket/some/prefix",
        "0.0.0.0",
        9100,
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PATHAR_SLOTS", "4097"),
        ("PATHAR_SLOTS", "many"),
        ("PATHAR_THREADS", "-1"),
        ("PATHAR_RESULT_TTL", "1.5"),
        ("PATHAR_WORKER_METRICS_PORT", "70000"),
        ("PATHAR_REDIS_URL", "http://localhost"),
        ("PATHAR_CHECKPOINT", "/nowhere"),
        ("PATHAR_RESULTS_URL", "https://bucket.example"),
        ("PATHAR_RESULTS_URL", "s3://Bucket"),
        ("PATHAR_RESULTS_URL", "s3://bucket/../other"),
    ],
)
def test_a_bad_setting_names_its_key_value_and_what_is_right(
    key: str, value: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({"PATHAR_CHECKPOINT": str(tmp_path), key: value})
    assert str(caught.value).startswith(f"{key}={value!r}: expected ")
