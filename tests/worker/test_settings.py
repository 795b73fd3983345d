from __future__ import annotations

import re
from pathlib import Path

import pytest

from store.settings import SettingsError
from worker.settings import Settings, read_settings


def test_what_is_not_set_has_its_default(tmp_path: Path) -> None:
    settings = read_settings({"PATHAR_CHECKPOINT": str(tmp_path)})
    assert settings == Settings(checkpoint=tmp_path)
    assert (settings.slots, settings.threads, settings.result_ttl) == (16, 0, 86400)


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
    assert settings == Settings(
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
        ("PATHAR_SLOTS", "0"),
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


BAD_URLS = (
    "redis://:s3cr#et@redis:6379/0",
    "redis://:s3cr/et@redis:6379/0",
    "redis://:s3cr[et@redis:6379/0",
    "redis://s3cret:abc/0",
    "redis://redis:6379/0?s3cret=1",
    "redis://redis:6379/0?db=s3cret",
    "redis://:s3cret@redis:6379/0?protocol=9",
)
"""URLs that Redis's client does not take."""


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_the_client_of_redis_does_not_take_is_refused_unseen(
    url: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({"PATHAR_CHECKPOINT": str(tmp_path), "PATHAR_REDIS_URL": url})
    assert str(caught.value).startswith("PATHAR_REDIS_URL='redis://...': expected ")
    assert "percent-encoded" in str(caught.value)
    assert "s3cr" not in str(caught.value)
    assert caught.value.__suppress_context__, "what it says repeats a part of the URL"


@pytest.mark.parametrize(
    "url",
    [
        "redis://redis",
        "redis://ann:s3cr%23et@redis:6379/0",
        "rediss://[::1]:6380/3?ssl_cert_reqs=none&socket_timeout=7",
        "unix:///run/redis.sock?db=1",
        "unix://:s3cret@/run/redis%20here.sock",
    ],
)
def test_a_url_that_the_client_of_redis_takes_is_taken_as_it_is(url: str, tmp_path: Path) -> None:
    settings = read_settings({"PATHAR_CHECKPOINT": str(tmp_path), "PATHAR_REDIS_URL": url})
    assert settings.redis_url == url


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({"PATHAR_REDIS_URL": "http://:secret@host/0"})
    assert "secret" not in str(caught.value)
    assert "http://...@host/0" in str(caught.value)
    for url in ("http://:sec@ret@host/0", ":sec@ret@host:6379/0"):
        with pytest.raises(SettingsError, match=r"\.\.\.@host") as caught:
            read_settings({"PATHAR_REDIS_URL": url})
        assert not re.search("sec|ret", str(caught.value))
