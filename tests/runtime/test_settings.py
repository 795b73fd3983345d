"""URLs of Redis: what is taken, and that a password is never repeated."""

from __future__ import annotations

import re

import pytest

from runtime.settings import SettingsError, redis_url

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
def test_a_url_that_the_client_of_redis_does_not_take_is_refused_unseen(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        redis_url({"PATHAR_REDIS_URL": url})
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
def test_a_url_that_the_client_of_redis_takes_is_taken_as_it_is(url: str) -> None:
    read = redis_url({"PATHAR_REDIS_URL": url})
    assert read == url


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        redis_url({"PATHAR_REDIS_URL": "http://:secret@host/0"})
    assert "secret" not in str(caught.value)
    assert "http://...@host/0" in str(caught.value)
    for url in ("http://:sec@ret@host/0", ":sec@ret@host:6379/0"):
        with pytest.raises(SettingsError, match=r"\.\.\.@host") as caught:
            redis_url({"PATHAR_REDIS_URL": url})
        assert not re.search("sec|ret", str(caught.value))
