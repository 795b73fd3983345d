"""`pathar keys` where a machine runs it: made once, written where it is looked for."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest
import redis

from pathar.api_keys import redis_url
from store.access import KeyStore, Limits
from store.keys import API_KEYS
from tests.conftest import RedisServer
from tests.pathar.test_cli import called

pytestmark = pytest.mark.processes


def keys(server: RedisServer | str, *words: str) -> subprocess.CompletedProcess[str]:
    url = server if isinstance(server, str) else server.url
    return called("keys", *words, PATHAR_REDIS_URL=url)


@pytest.fixture
def store(redis_server: RedisServer) -> KeyStore:
    return KeyStore(redis_server.client())


def test_with_if_none_only_the_first_start_makes_a_key(
    redis_server: RedisServer, store: KeyStore, tmp_path: Path
) -> None:
    path = tmp_path / "first"
    words = ("make", "first", "--if-none", "--out", str(path))
    for start in range(2):
        done = keys(redis_server, *words)
        assert (done.returncode, done.stdout) == (0, "")
        assert ("already" in done.stderr) == bool(start)
    owner = store.find(path.read_text().strip())
    assert owner is not None
    assert [each.name for each in store.all()] == ["first"]
    assert keys(redis_server, "make", "other", "--if-none").stdout == ""
    assert len(store.all()) == 1


def test_a_key_in_a_file_is_for_its_owner_alone_and_replaces_a_dead_one(
    redis_server: RedisServer, store: KeyStore, tmp_path: Path
) -> None:
    path = tmp_path / "first"
    path.write_text("of a Redis that is gone")
    assert keys(redis_server, "make", "first", "--if-none", "--out", str(path)).returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert store.find(path.read_text().strip()) is not None
    assert [each.name for each in tmp_path.iterdir()] == ["first"]


def test_a_key_may_come_from_a_file(
    redis_server: RedisServer, store: KeyStore, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    words = ("make", "first", "--if-none", "--from", str(path))
    assert keys(redis_server, *words).returncode == 1
    for wrong in ("pathar_CHANGE-ME_CHANGE-ME", "", "\xe9" * 48):
        path.write_bytes(wrong.encode("latin-1"))
        done = keys(redis_server, *words)
        assert done.returncode == (1 if "\xe9" in wrong else 2)
        assert "key" in done.stderr
        assert not wrong or wrong not in done.stderr
    token = f"pathar_0123abcd_{'x' * 32}"
    path.write_text(f"{token}\n")
    for _ in range(2):
        done = keys(redis_server, *words)
        assert (done.returncode, done.stdout) == (0, "")
    owner = store.find(token)
    assert owner is not None
    assert (owner.name, len(store.all())) == ("first", 1)
    done = keys(redis_server, "make", "second", "--from", str(path))
    assert (done.returncode, store.find(token)) == (2, owner), "it would replace another"


def test_a_key_that_cannot_be_written_is_not_made(
    redis_server: RedisServer, store: KeyStore, tmp_path: Path
) -> None:
    path = tmp_path / "missing" / "first"
    done = keys(redis_server, "make", "first", "--out", str(path))
    assert done.returncode == 1
    assert str(path) in done.stderr
    assert "pathar_" not in done.stdout + done.stderr
    assert store.all() == []


def test_without_out_the_key_is_printed_once(redis_server: RedisServer, store: KeyStore) -> None:
    done = keys(redis_server, "make", "ann")
    assert store.find(done.stdout.strip()) is not None


def test_a_damaged_key_is_named_and_can_be_revoked(
    redis_server: RedisServer, store: KeyStore
) -> None:
    _, ann = store.make("ann", 1.0, Limits())
    with redis_server.client() as client:
        client.hset(API_KEYS, ann.id, "{")
    listed = keys(redis_server, "list")
    assert listed.returncode == 0
    assert f"key {ann.id}: its record is damaged" in listed.stderr
    assert keys(redis_server, "revoke", ann.id).returncode == 0
    assert keys(redis_server, "list").stderr == ""


def test_the_password_of_redis_is_in_no_message() -> None:
    done = keys("redis://:hunter2@127.0.0.1:1/0", "list")
    assert done.returncode == 1
    assert "127.0.0.1:1/0" in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    "url", ["redis://:hunter2#@h:6379/0", "redis://hunter2:abc/0", "redis://h:6379/0?hunter2=1"]
)
def test_a_url_that_cannot_be_is_said_with_code_2_and_stays_unseen(url: str) -> None:
    done = keys(url, "list")
    assert (done.returncode, done.stdout) == (2, "")
    assert "PATHAR_REDIS_URL" in done.stderr
    assert "hunter2" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_told_url_needs_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "expanduser", lambda _: pytest.fail("looked for a home"))
    assert redis_url({"PATHAR_REDIS_URL": "redis://redis:6379/0"}) == "redis://redis:6379/0"


def test_a_wrong_password_is_said_in_one_line(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.config_set("requirepass", "right")
    url = redis_server.url.replace("unix://", "unix://:wrong@")
    done = keys(url, "list")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "wrong" not in done.stderr.replace("WRONGPASS", "")
    with redis.Redis.from_url(redis_server.url.replace("unix://", "unix://:right@")) as client:
        client.config_set("requirepass", "")


@pytest.mark.parametrize("option", ["--rate", "--waiting", "--stored"])
@pytest.mark.parametrize("value", ["0", "-1", "many", "1" * 30])
def test_a_limit_that_is_none_is_refused(
    redis_server: RedisServer, store: KeyStore, option: str, value: str
) -> None:
    done = keys(redis_server, "make", "ann", f"{option}={value}")
    assert done.returncode == 2
    assert option in done.stderr
    assert "expected an integer from 1" in done.stderr
    assert store.all() == []


def test_limits_are_kept(redis_server: RedisServer, store: KeyStore) -> None:
    words = ("--rate", "1", "--waiting", "2", "--stored", "3")
    assert keys(redis_server, "make", "ann", *words).returncode == 0
    [owner] = store.all()
    assert owner.limits == Limits(1, 2, 3)


@pytest.mark.parametrize("text", [None, "", "{}", "7"])
def test_without_a_service_here_it_must_be_said_which_redis(
    tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    done = called("keys", "make", "ann", PATHAR_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "PATHAR_REDIS_URL" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_redis_of_the_service_that_runs_here_is_named(
    redis_server: RedisServer, store: KeyStore, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"redis_url": redis_server.url}))
    done = called("keys", "make", "ann", PATHAR_HOME=str(tmp_path))
    assert store.find(done.stdout.strip()) is not None
    assert str(tmp_path / "run.json") in done.stderr


def test_a_service_asks_for_keys_until_it_is_opened_by_hand(
    redis_server: RedisServer, store: KeyStore
) -> None:
    assert keys(redis_server, "make", "ann").returncode == 0
    refused = keys(redis_server, "open")
    assert refused.returncode == 2
    assert "revoke" in refused.stderr
    assert keys(redis_server, "revoke", "ann").returncode == 0
    assert store.required(), "nobody is let in because the last key was taken back"
    assert keys(redis_server, "make", "next", "--if-none").stdout
    assert keys(redis_server, "revoke", "next").returncode == 0
    assert keys(redis_server, "open").returncode == 0
    assert not store.required()
