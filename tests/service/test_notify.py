"""Webhooks from a real API process to a real HTTPS receiver, which checks them with a library."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import trustme
from standardwebhooks.webhooks import Webhook

from service.notify import PAUSES_S, is_allowed
from store import keys
from store.access import ANYBODY, KeyStore, Limits
from store.notices import NoticeStore
from tests.conftest import DEADLINE_S, RedisServer
from tests.running import wait_until
from tests.service.conftest import LoneService

JOB = {"label": "histology", "n": 2, "seed": 7}


@dataclass
class Receiver:
    """An HTTPS server. `answers` are the statuses of its next answers, 200 after these; it hangs
    while `hang` is set and the path is /hang."""

    folder: Path
    answers: list[int] = field(default_factory=list)
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        authority = trustme.CA()
        self.ca = self.folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.path, dict(self.headers), body))
                if self.path == "/hang":
                    receiver.go_on.wait(DEADLINE_S)
                status = receiver.answers.pop(0) if receiver.answers else 200
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", f"{receiver.url}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.got]

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    made = Receiver(tmp_path)
    yield made
    made.close()


Start = Callable[..., LoneService]


@pytest.fixture
def start(redis_server: RedisServer, receiver: Receiver, tmp_path: Path) -> Iterator[Start]:
    """Starts an API that trusts the receiver's certificate."""
    started: list[LoneService] = []

    def make(networks: str = "127.0.0.0/8,::1") -> LoneService:
        settings = {"PATHAR_NOTIFY_NETWORKS": networks, "SSL_CERT_FILE": str(receiver.ca)}
        log = tmp_path / f"service-{len(started)}.log"
        started.append(LoneService(redis_server, log, **settings))
        started[-1].publish()
        return started[-1]

    yield make
    for service in started:
        service.close()


def put(service: LoneService, name: str, url: str, key: str | None = None) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = service.http.put(f"/jobs/{name}", json={**JOB, "notify": url}, headers=headers)
    assert answer.status_code == 201, answer.text


def notified(service: LoneService, name: str) -> dict[str, Any]:
    found: dict[str, Any] = service.http.get(f"/jobs/{name}").raise_for_status().json()["notify"]
    return found


def test_the_end_of_a_job_is_sent_signed_and_once(start: Start, receiver: Receiver) -> None:
    service = start()
    url = f"{receiver.url}/hook?team=a%20b"
    put(service, "first", url)
    assert notified(service, "first") == {
        "url": url, "tries": 0, "delivered_at": None, "error": None
    }  # fmt: skip
    assert service.work() == 2
    wait_until(lambda: notified(service, "first")["delivered_at"], "delivery")
    ((path, headers, body),) = receiver.got
    assert path == "/hook?team=a%20b"
    assert headers["Host"] == receiver.url.removeprefix("https://")
    assert headers["Content-Type"] == "application/json"
    secret = service.http.get("/webhook-secret").json()["secret"]
    told = Webhook(secret).verify(body, headers)
    listed = service.http.get("/jobs").json()["jobs"][0]
    assert told["type"] == "job.finished"
    assert told["data"] == listed
    assert headers["webhook-id"] == f"{ANYBODY.id}-first"
    assert notified(service, "first")["tries"] == 1
    assert service.http.get("/jobs").status_code == 200
    metrics = service.http.get("/metrics").text
    assert 'pathar_webhooks_total{outcome="delivered"} 1.0' in metrics


def test_canceled_and_failed_jobs_are_sent_too(start: Start, receiver: Receiver) -> None:
    service = start()
    put(service, "canceled", f"{receiver.url}/canceled")
    service.http.delete("/jobs/canceled")
    put(service, "failed", f"{receiver.url}/failed")
    service.work(failure="it broke")
    wait_until(lambda: len(receiver.got) == 2, "both")
    secret = service.http.get("/webhook-secret").json()["secret"]
    kinds = {
        path: Webhook(secret).verify(body, headers)["type"] for path, headers, body in receiver.got
    }
    assert kinds == {"/canceled": "job.canceled", "/failed": "job.failed"}


def test_what_is_not_received_is_sent_again_under_the_same_id(
    start: Start, receiver: Receiver
) -> None:
    service = start()
    receiver.answers = [500]
    put(service, "first", f"{receiver.url}/hook")
    service.work()
    wait_until(lambda: notified(service, "first")["error"], "a failure")
    assert notified(service, "first")["error"] == "answered 500, expected 2xx"
    wait_until(lambda: notified(service, "first")["delivered_at"], "delivery")
    first, second = (headers for _, headers, _ in receiver.got)
    assert first["webhook-id"] == second["webhook-id"]
    assert int(second["webhook-timestamp"]) - int(first["webhook-timestamp"]) >= PAUSES_S[0] - 1
    assert notified(service, "first") == {**notified(service, "first"), "tries": 2, "error": None}


def test_a_redirect_is_not_followed_and_gone_is_final(start: Start, receiver: Receiver) -> None:
    service = start()
    receiver.answers = [302, 410]
    put(service, "moved", f"{receiver.url}/moved")
    service.work()
    wait_until(lambda: notified(service, "moved")["error"], "a failure")
    assert notified(service, "moved")["error"] == "answered 302, expected 2xx"
    put(service, "gone", f"{receiver.url}/gone")
    service.work()
    wait_until(lambda: notified(service, "gone")["error"], "a failure")
    assert "410" in notified(service, "gone")["error"]
    assert "/elsewhere" not in receiver.paths()
    wait_until(lambda: 'outcome="given_up"} 1.0' in service.http.get("/metrics").text)


def test_another_process_sends_what_a_dead_one_has_left(start: Start, receiver: Receiver) -> None:
    first = start()
    put(first, "first", f"{receiver.url}/hook")
    first.process.kill()
    first.process.wait()
    first.work()
    second = start()
    wait_until(lambda: notified(second, "first")["delivered_at"], "delivery")
    assert receiver.paths() == ["/hook"]


def test_nothing_private_is_called_unless_a_setting_names_its_network(
    start: Start, receiver: Receiver
) -> None:
    service = start(networks="10.0.0.0/8")
    for name, host in (("name", "localhost"), ("address", "127.0.0.1")):
        put(service, name, receiver.url.replace("localhost", host))
        service.work()
        wait_until(lambda name=name: notified(service, name)["error"], "a refusal")  # type: ignore[misc]
        assert "is not public" in notified(service, name)["error"]
    assert receiver.got == []


def test_receivers_that_hang_keep_no_other_key_waiting(
    start: Start, receiver: Receiver, redis_server: RedisServer
) -> None:
    store = KeyStore(redis_server.client())
    ann, _ = store.make("ann", 1.0, Limits())
    bob, _ = store.make("bob", 1.0, Limits())
    service = start()
    for number in range(30):
        put(service, f"slow-{number}", f"{receiver.url}/hang", ann)
    service.work()
    wait_until(lambda: "/hang" in receiver.paths(), "the first")
    put(service, "quick", f"{receiver.url}/quick", bob)
    service.work()
    wait_until(lambda: "/quick" in receiver.paths(), "bob's")
    assert receiver.paths().count("/hang") < 30


def test_a_revoked_key_sends_no_more(
    start: Start, receiver: Receiver, redis_server: RedisServer
) -> None:
    store = KeyStore(redis_server.client())
    ann, owner = store.make("ann", 1.0, Limits())
    service = start()
    put(service, "first", f"{receiver.url}/hook", ann)
    secret = service.http.get("/webhook-secret", headers={"Authorization": f"Bearer {ann}"})
    assert secret.json()["secret"].startswith("whsec_")
    store.revoke("ann")
    service.work()
    client = redis_server.client()
    wait_until(lambda: not client.exists(keys.NOTIFIERS), "the end of the try")
    record = client.hgetall(keys.RECORD + keys.owned_id(owner.id, "first"))
    assert record[b"notify_error"] == b"its API key has been revoked"
    assert receiver.got == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hook",
        "ftp://lab.example/hook",
        "http://lab.example/hook",
        "https://",
        "https:///hook",
        "https://user:secret@lab.example/hook",
        "https://lab.example/a b",
        "https://lab.example/\u00fc",
        "https://lab.example/\r\nX: y",
        "https://lab.example/" + 2048 * "x",
        7,
    ],
)
def test_a_url_that_cannot_be_called_is_refused_at_once(url: object, shared: LoneService) -> None:
    shared.publish()
    answer = shared.http.put("/jobs/refused", json={**JOB, "notify": url})
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["field"] == "notify"
    assert "https URL" in error["expected"]


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("10.1.2.3", True),  # named below
        ("192.168.1.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.251", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.215.14", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::5db8:d70e", True),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
    ],
)
def test_only_public_addresses_and_named_networks_are_called(address: str, allowed: bool) -> None:
    networks = [ip_network("10.0.0.0/8")]
    assert is_allowed(ip_address(address), networks, encrypted=True) is allowed
    named = address == "10.1.2.3"
    assert is_allowed(ip_address(address), networks, encrypted=False) is named


def test_a_notice_of_an_expired_job_is_forgotten(redis_server: RedisServer) -> None:
    client = redis_server.client()
    client.zadd(keys.NOTICES + ANYBODY.id, {f"{ANYBODY.id}-gone": 1.0})
    client.zadd(keys.NOTIFIERS, {ANYBODY.id: 1.0})
    assert NoticeStore(client).next() is None
    assert not client.exists(keys.NOTICES + ANYBODY.id, keys.NOTIFIERS)


def test_a_notice_is_leased_to_one_process(redis_server: RedisServer) -> None:
    client = redis_server.client()
    jobs = [f"{owner}-{name}" for owner in ("aaaaaaaa", "bbbbbbbb") for name in ("one", "two")]
    for job in jobs:
        client.hset(keys.RECORD + job, mapping={"notify": "https://lab.example"})
        client.zadd(keys.NOTICES + job[:8], {job: 1.0})
        client.zadd(keys.NOTIFIERS, {job[:8]: 1.0})
    notices = NoticeStore(client)
    first, second = notices.next(), notices.next()
    assert first is not None
    assert second is not None
    assert {first.owner, second.owner} == {"aaaaaaaa", "bbbbbbbb"}, "owners take turns"
    third = notices.next([first.owner])
    assert third is not None
    assert third.owner == second.owner
    assert notices.next([first.owner]) is None
    notices.failed(first, "no answer", 0.0)
    again = [notices.next([second.owner]) for _ in range(2)]
    assert {(each.job_id, each.tries) for each in again if each} == {("one", 1), ("two", 0)}
    assert notices.next() is None
