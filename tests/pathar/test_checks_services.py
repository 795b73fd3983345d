"""What `pathar doctor` finds of Redis, storage, workers and the API."""

from __future__ import annotations

import http.server
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import redis

from pathar.checks import services
from pathar.checks.installation import Check
from store.access import ANYBODY, KeyStore, Limits
from store.registry import Registry
from tests.conftest import RedisServer
from tests.pathar.findings import SECRET, expect, look
from tests.s3 import Folder, S3Server
from tests.service.conftest import MODEL, LoneService
from tests.store.conftest import ask


def test_a_good_redis_has_nothing_wrong_but_no_worker(redis_server: RedisServer) -> None:
    found = look(*services.CHECKS, PATHAR_REDIS_URL=redis_server.url)
    assert [f.check for f in found if f.verdict != "ok"] == ["workers"]


def test_a_redis_that_was_stopped(redis_server: RedisServer, lone: LoneService) -> None:
    lone.publish()
    with redis_server.client() as client:
        dirty = "rdb_changes_since_last_save"
        before, size = client.info("persistence")[dirty], client.dbsize()
        look(*services.CHECKS, PATHAR_REDIS_URL=redis_server.url, PATHAR_URL=lone.url)
        assert (client.info("persistence")[dirty], client.dbsize()) == (before, size), "it wrote"
    redis_server.kill()
    found = look(*services.CHECKS, PATHAR_REDIS_URL=redis_server.url, PATHAR_URL=lone.url)
    wrong = [f for f in found if f.verdict != "ok"]
    assert [(f.check, f.verdict) for f in wrong] == [("redis", "failed"), ("api", "failed")]
    assert all("Start Redis" in f.fix for f in wrong)
    assert "cannot draw" in wrong[1].found


def test_how_redis_is_set_up(redis_server: RedisServer) -> None:
    cases: list[tuple[dict[str, str], Check, str, str]] = [
        ({"maxmemory-policy": "allkeys-lru"}, services.memory, "ok", "drops nothing"),
        ({"maxmemory": "1gb"}, services.memory, "warning", "allkeys-lru it drops queues or"),
        ({"maxmemory-policy": "noeviction"}, services.memory, "ok", "drops nothing"),
        ({"maxmemory": "1"}, services.redis, "failed", "takes no jobs"),
        ({"appendonly": "no"}, services.persistence, "warning", "a restart loses jobs"),
    ]
    with redis_server.client() as client:
        for options, check, verdict, words in cases:
            for name, value in options.items():
                client.config_set(name, value)
            expect(check, verdict, words, PATHAR_REDIS_URL=redis_server.url)


def test_keys_that_were_dropped_are_a_failure(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", used + 2_000_000)
        for number in range(100):
            client.set(f"filler:{number}", bytes(100_000))
        client.config_set("maxmemory", 2 * used + 10_000_000)
    found = expect(services.memory, "failed", PATHAR_REDIS_URL=redis_server.url)
    assert re.search(r"drops \d+ keys so far", found.found)


def test_a_replica_a_password_and_a_user_who_may_not_ask(redis_server: RedisServer) -> None:
    url = redis_server.url
    with redis_server.client() as client:
        client.replicaof("127.0.0.1", 1)
        expect(services.redis, "failed", "primary", PATHAR_REDIS_URL=url)
        client.replicaof("NO", "ONE")
        client.execute_command("ACL", "SETUSER", "ann", "on", ">pw", "~*", "+@all", "-info")
        found = look(*services.CHECKS, PATHAR_REDIS_URL=url.replace("unix://", "unix://ann:pw@"))
        assert "+info" in str(found)
        assert {f.verdict for f in found if f.check not in ("workers", "redis")} == {"ok"}
        client.config_set("requirepass", SECRET)
    expect(services.redis, "failed", "password", PATHAR_REDIS_URL=url)
    right = url.replace("unix://", f"unix://:{SECRET}@")
    assert SECRET not in str(expect(services.redis, "ok", PATHAR_REDIS_URL=right))


@pytest.mark.parametrize(
    "url", [f"redis://:{SECRET}#@h:6379/0", f"redis://{SECRET}:abc/0", f"redis://h/0?{SECRET}=1"]
)
def test_a_url_that_cannot_be_is_said_unseen(url: str) -> None:
    words = "PATHAR_REDIS_URL", "ercent-encode"
    assert SECRET not in str(expect(services.redis, "failed", *words, PATHAR_REDIS_URL=url))


def test_a_clock_that_is_off(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 60)
    found = expect(services.clock, "warning", PATHAR_REDIS_URL=redis_server.url)
    assert re.search(r"is (59|60)\.\d s from", found.found)


def test_results_in_object_storage(s3_server: S3Server) -> None:
    folder = Folder(s3_server)
    assert look(services.results) == []
    expect(services.results, "ok", PATHAR_RESULTS_URL=folder.url)
    assert folder.names() == [], "nothing is written"
    missing = "s3://no-such-bucket/prefix"
    expect(services.results, "failed", "no-such-bucket", PATHAR_RESULTS_URL=missing)
    s3_server.stop()
    try:
        away = expect(services.results, "failed", "AWS_ENDPOINT_URL", PATHAR_RESULTS_URL=folder.url)
        assert s3_server.access["AWS_SECRET_ACCESS_KEY"] not in away.found.split()
    finally:
        s3_server.start()


def test_workers_that_draw_other_bits_than_the_rest_are_named(redis_server: RedisServer) -> None:
    url, registry = redis_server.url, Registry(redis_server.client())
    registry.publish(MODEL, "one", 4)
    registry.publish(MODEL, "two", 4)
    expect(services.workers, "ok", PATHAR_REDIS_URL=url)
    registry.publish(replace(MODEL, numerics="f" * 12), "three", 4)
    expect(services.workers, "warning", "those it began with", PATHAR_REDIS_URL=url)
    registry.publish(replace(MODEL, version="cd" * 32), "four", 4)
    versions = "in versions abababababab and cdcdcdcdcdcd"
    expect(services.workers, "warning", versions, PATHAR_REDIS_URL=url)


def test_images_that_nobody_can_draw_are_a_failure(
    redis_server: RedisServer, lone: LoneService
) -> None:
    url = redis_server.url
    lone.publish()
    lone.jobs.submit(ask(3), MODEL, owner=ANYBODY)
    expect(services.queue, "ok", PATHAR_REDIS_URL=url)
    lone.registry.withdraw(MODEL, "test-worker", 4)
    words = "3 images wait for stub abababababab"
    expect(services.queue, "failed", words, PATHAR_REDIS_URL=url)
    lone.registry.publish(replace(MODEL, numerics="f" * 12), "another", 4)
    expect(services.queue, "ok", PATHAR_REDIS_URL=url)  # they go over to that worker


@pytest.fixture
def make_key(redis_server: RedisServer) -> Callable[[str], str]:
    store = KeyStore(redis_server.client())
    return lambda name: store.make(name, 1.0, Limits())[0]


def test_the_api_is_ready_with_workers_and_its_key_is_known_or_not(
    lone: LoneService, make_key: Callable[[str], str]
) -> None:
    url = {"PATHAR_URL": lone.url}
    answers, ready = look(services.api, **url)
    assert (answers.verdict, ready.verdict, "worker" in ready.fix) == ("ok", "failed", True)
    lone.publish()
    expect(services.api, "ok", **url)
    expect(services.key, "ok", "No key is needed; histology and blood", **url)
    token = make_key("ann")
    expect(services.key, "failed", "needs an API key", **url)
    wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
    expect(services.key, "failed", "is unknown", PATHAR_API_KEY=wrong, **url)
    expect(services.key, "ok", "is accepted", PATHAR_API_KEY=token, **url)


def test_what_is_no_api_is_said() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request).start()
        url = f"http://127.0.0.1:{server.server_port}"
        expect(services.api, "failed", "a page of HTML", PATHAR_URL=url)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://[", "nonsense"])
def test_a_url_that_is_none(url: str) -> None:
    expect(services.api, "failed", "PATHAR_URL", PATHAR_URL=url)


def test_a_service_and_a_redis_that_are_open_to_others(
    redis_server: RedisServer, make_key: Callable[[str], str]
) -> None:
    settings = {"PATHAR_REDIS_URL": redis_server.url, "PATHAR_HOST": "0.0.0.0"}
    expect(services.access, "warning", "answers nobody", **settings)
    make_key("ann")
    expect(services.access, "ok", **settings)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; says from which address it would
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = probe.getsockname()[0]
    with redis_server.client() as client, socket.socket() as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
        free.close()
        for name, value in (("protected-mode", "no"), ("bind", address), ("port", port)):
            client.config_set(name, value)
    url = f"redis://{address}:{port}/0"
    with redis.Redis.from_url(url) as client:
        assert client.ping()
    first, *_ = look(services.access, PATHAR_REDIS_URL=url)
    assert (first.verdict, "without a password" in first.found) == ("warning", True)


@pytest.mark.parametrize(
    ("host", "shown"), [("::1", "[::1]"), ("::", "[::1]"), ("0.0.0.0", "127.0.0.1")]
)
def test_metrics_are_looked_for_where_a_worker_has_them(host: str, shown: str) -> None:
    settings = {"PATHAR_HOST": host, "PATHAR_WORKER_METRICS_PORT": "9"}
    expect(services.metrics, "warning", f"http://{shown}:9/metrics", **settings)
