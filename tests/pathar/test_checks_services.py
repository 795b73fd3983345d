"""What `pathar doctor` finds of Redis, storage, workers and the API."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from model.request import ModelInfo
from pathar.checks import services
from pathar.checks.installation import Check, Finding
from store.access import KeyStore, Limits
from store.registry import Registry
from tests.conftest import RedisServer
from tests.pathar.findings import SECRET, look, verdicts
from tests.s3 import Folder, S3Server
from tests.service.conftest import MODEL, LoneService
from tests.store.conftest import ask


def test_a_good_redis_has_nothing_wrong_but_no_worker(redis_server: RedisServer) -> None:
    found = look(*services.CHECKS, PATHAR_REDIS_URL=redis_server.url)
    wrong = [f.check for f in found if f.verdict != "ok"]
    assert wrong == ["workers"]


def test_a_redis_that_was_stopped(redis_server: RedisServer, lone: LoneService) -> None:
    redis_server.kill()
    found = look(*services.CHECKS, PATHAR_REDIS_URL=redis_server.url, PATHAR_URL=lone.url)
    assert [(f.check, f.verdict) for f in found if f.verdict != "ok"] == [
        ("redis", "failed"), ("api", "failed"),
    ]  # fmt: skip
    assert all("Start Redis" in f.mend for f in found if f.verdict != "ok")
    assert "cannot draw" in str(found)


@pytest.mark.parametrize(
    ("options", "check", "verdict", "words"),
    [
        ({"appendonly": "no"}, services.persistence, "warning", "a restart loses jobs"),
        (
            {"maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"},
            services.memory,
            "warning",
            "allkeys-lru it drops queues or results",
        ),
        ({"maxmemory-policy": "allkeys-lru"}, services.memory, "ok", "drops nothing"),
        ({"maxmemory": "1"}, services.memory, "failed", "takes no jobs"),
    ],
)
def test_how_redis_is_set_up(
    options: dict[str, str], check: Check, verdict: str, words: str, redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        for name, value in options.items():
            client.config_set(name, value)
    [found] = look(check, PATHAR_REDIS_URL=redis_server.url)
    assert found.verdict == verdict
    assert words in found.found
    assert bool(found.mend) == (verdict != "ok")


def test_keys_that_were_dropped_are_a_failure(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", used + 2_000_000)
        for number in range(100):
            client.set(f"filler:{number}", bytes(100_000))
        client.config_set("maxmemory", 2 * used + 10_000_000)
    [found] = look(services.memory, PATHAR_REDIS_URL=redis_server.url)
    assert found.verdict == "failed"
    assert re.search(r"drops \d+ keys so far", found.found)


def test_a_replica_and_a_password(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.replicaof("127.0.0.1", 1)
        [found] = look(services.redis, PATHAR_REDIS_URL=redis_server.url)
        assert (found.verdict, "primary" in found.mend) == ("failed", True)
        client.replicaof("NO", "ONE")
        client.config_set("requirepass", SECRET)
    [found] = look(services.redis, PATHAR_REDIS_URL=redis_server.url)
    assert found.verdict == "failed"
    right = redis_server.url.replace("unix://", f"unix://:{SECRET}@")
    [found] = look(services.redis, PATHAR_REDIS_URL=right)
    assert found.verdict == "ok"
    assert SECRET not in str(found)


@pytest.mark.parametrize(
    "url", [f"redis://:{SECRET}#@h:6379/0", f"redis://{SECRET}:abc/0", f"redis://h/0?{SECRET}=1"]
)
def test_a_url_that_cannot_be_is_said_unseen(url: str) -> None:
    found, *_ = look(services.redis, PATHAR_REDIS_URL=url)
    assert found.verdict == "failed"
    assert "PATHAR_REDIS_URL" in found.found
    assert "ercent-encode" in found.mend
    assert SECRET not in str(found)


def test_a_user_who_may_not_ask_is_told_so(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "ann", "on", ">pw", "~*", "+@all", "-info")
    url = redis_server.url.replace("unix://", "unix://ann:pw@")
    found = look(*services.CHECKS, PATHAR_REDIS_URL=url)
    assert "+info" in str(found)
    assert {f.verdict for f in found if f.check not in ("workers", "memory")} == {"ok"}


def test_a_clock_that_is_off(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 60)
    [found] = look(services.clock, PATHAR_REDIS_URL=redis_server.url)
    assert found.verdict == "warning"
    assert re.search(r"is (59|60)\.\d s from", found.found)


def test_nothing_is_written_to_redis(redis_server: RedisServer, lone: LoneService) -> None:
    lone.publish()
    with redis_server.client() as client:
        dirty = "rdb_changes_since_last_save"
        before, size = client.info("persistence")[dirty], client.dbsize()
        look(*services.CHECKS, PATHAR_REDIS_URL=redis_server.url, PATHAR_URL=lone.url)
        assert (client.info("persistence")[dirty], client.dbsize()) == (before, size)


def test_results_in_object_storage(s3_server: S3Server) -> None:
    folder = Folder(s3_server)

    def results(url: str = folder.url) -> Finding:
        [found] = look(services.results, PATHAR_RESULTS_URL=url)
        return found

    assert look(services.results) == []
    assert results().verdict == "ok"
    assert folder.names() == [], "nothing is written"
    missing = results("s3://no-such-bucket/prefix")
    assert (missing.verdict, "no-such-bucket" in missing.found) == ("failed", True)
    s3_server.stop()
    try:
        away = results()
        assert away.verdict == "failed"
        assert "AWS_ENDPOINT_URL" in away.mend
        assert s3_server.access["AWS_SECRET_ACCESS_KEY"] not in away.found.split()
    finally:
        s3_server.start()


# Workers and what waits ---------------------------------------------------------------------------


def info(**changes: str) -> ModelInfo:
    return ModelInfo.from_dict({**MODEL.to_dict(), **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"numerics": "ffffffffffff"}, "a job waits for those it began with"),
        ({"version": "cd" * 32}, "in versions abababababab and cdcdcdcdcdcd"),
    ],
)
def test_workers_that_draw_other_bits_than_the_rest_are_named(
    changes: dict[str, str], words: str, redis_server: RedisServer
) -> None:
    registry = Registry(redis_server.client())
    registry.publish(MODEL, "one", 4)
    registry.publish(MODEL, "two", 4)
    assert verdicts(look(services.workers, PATHAR_REDIS_URL=redis_server.url)) == ["ok"]
    registry.publish(info(**changes), "three", 4)
    [found] = look(services.workers, PATHAR_REDIS_URL=redis_server.url)
    assert found.verdict == "warning"
    assert words in found.found


def test_images_that_nobody_can_draw_are_a_failure(
    redis_server: RedisServer, lone: LoneService
) -> None:
    from store.access import ANYBODY

    def queue() -> list[Finding]:
        return look(services.queue, PATHAR_REDIS_URL=redis_server.url)

    lone.publish()
    lone.jobs.submit(ask(3), MODEL, owner=ANYBODY)
    assert verdicts(queue()) == ["ok"]
    lone.registry.withdraw(MODEL, "test-worker", 4)
    [found] = queue()
    assert found.verdict == "failed"
    assert "3 images wait for stub abababababab" in found.found
    lone.registry.publish(info(numerics="ffffffffffff"), "another", 4)
    assert verdicts(queue()) == ["ok"], "they go over to workers of the same version"


# The API ----------------------------------------------------------------------------------------


@pytest.fixture
def make_key(redis_server: RedisServer) -> Callable[[str], str]:
    store = KeyStore(redis_server.client())
    return lambda name: store.make(name, 1.0, Limits())[0]


def test_the_key_is_asked_for_known_or_unknown(
    lone: LoneService, make_key: Callable[[str], str]
) -> None:
    lone.publish()

    def key(**settings: str) -> list[tuple[str, str]]:
        found = look(services.api, PATHAR_URL=lone.url, **settings)
        return [(f.verdict, f.found) for f in found if f.check == "key"]

    [(verdict, text)] = key()
    assert (verdict, "No key is needed; histology and blood" in text) == ("ok", True)
    token = make_key("ann")
    [(verdict, text)] = key()
    assert (verdict, "PATHAR_API_KEY is unset" in text) == ("failed", True)
    [(verdict, text)] = key(PATHAR_API_KEY=token[:-1] + ("a" if token[-1] != "a" else "b"))
    assert (verdict, "does not know" in text) == ("failed", True)
    [(verdict, text)] = key(PATHAR_API_KEY=token)
    assert (verdict, "is accepted" in text) == ("ok", True)


def test_an_api_without_workers_is_not_ready(lone: LoneService) -> None:
    found = look(services.api, PATHAR_URL=lone.url)
    assert [(f.check, f.verdict) for f in found][:2] == [("api", "ok"), ("api", "failed")]
    assert "worker" in found[1].mend


@pytest.mark.processes
def test_what_is_no_api_is_said(test_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
    ) as server:
        assert server.stdout is not None
        match = re.search(rb"port (\d+)", server.stdout.readline())
        assert match
        found = look(services.api, PATHAR_URL=f"http://127.0.0.1:{match[1].decode()}")
        server.kill()
    assert verdicts(found) == ["failed"]
    assert "as PathAR would not" in found[0].found


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://[", "nonsense"])
def test_a_url_that_is_none(url: str) -> None:
    [found] = look(services.api, PATHAR_URL=url)
    assert found.verdict == "failed"
    assert "PATHAR_URL" in found.mend


def test_a_service_open_to_others_without_a_key(
    redis_server: RedisServer, make_key: Callable[[str], str]
) -> None:
    settings = {"PATHAR_REDIS_URL": redis_server.url, "PATHAR_HOST": "0.0.0.0"}
    [found] = look(services.access, **settings)
    assert found.verdict == "warning"
    assert "answers nobody" in found.found
    make_key("ann")
    assert verdicts(look(services.access, **settings)) == ["ok"]


@pytest.mark.processes
def test_redis_itself_open_to_others() -> None:
    """Only the URL is looked at: on an address that is not loopback, without a password."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; says from which address it would
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = probe.getsockname()[0]
    from pathar.embedded_redis import find_redis_server
    from tests.running import wait_until

    with socket.socket() as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    command = [find_redis_server(), "--port", str(port), "--bind", address, "--save", ""]
    process = subprocess.Popen([*command, "--protected-mode", "no"], stdout=subprocess.DEVNULL)
    url = f"redis://{address}:{port}/0"
    try:
        with redis.Redis.from_url(url) as client:
            wait_until(lambda: _pings(client), "Redis")
        first, *_ = look(services.access, PATHAR_REDIS_URL=url)
    finally:
        process.kill()
        process.wait()
    assert first.verdict == "warning"
    assert "without a password" in first.found


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.mark.parametrize(
    ("host", "shown"), [("::1", "[::1]"), ("::", "[::1]"), ("0.0.0.0", "127.0.0.1")]
)
def test_metrics_are_looked_for_where_a_worker_has_them(host: str, shown: str) -> None:
    [found] = look(services.metrics, PATHAR_HOST=host, PATHAR_WORKER_METRICS_PORT="9")
    assert f"http://{shown}:9/metrics" in found.found
