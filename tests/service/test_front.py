"""What HTTP, proxies, load balancers and pages of other origins expect of the service."""

from __future__ import annotations

import csv
import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from pathar import Client
from store.access import KeyStore, Limits
from tests.conftest import RedisServer
from tests.proxies import haproxy, nginx
from tests.running import JSON, PROBLEM, wait_until
from tests.service.conftest import FILES, LoneService

BODY = {"label": "blood", "n": 2, "seed": 1}
PAGE = "https://pages.example"


pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def made(shared: LoneService) -> LoneService:
    """A service with a finished job `a` and a waiting one, `b`."""
    shared.publish()
    assert shared.http.put("/jobs/a", json=BODY).is_success
    shared.work()
    assert shared.http.put("/jobs/b", json=BODY).is_success
    return shared


def raw(lone: LoneService, request: str) -> tuple[str, bool]:
    """What is answered to a request as it is written here, and whether the connection ends."""
    parts = urlsplit(lone.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as opened:
        opened.sendall(request.replace("\n", "\r\n").encode())
        answer = b""
        opened.settimeout(3)
        try:
            while piece := opened.recv(65536):
                answer += piece
        except TimeoutError:
            return answer.decode(errors="replace"), False
        return answer.decode(errors="replace"), True


GETS = ["/healthz", "/labels", "/jobs", "/jobs/a", "/jobs/a/images/0", "/jobs/a/pairs.zip",
        "/jobs/a/images/0/image.png", "/metrics", "/docs", "/openapi.json"]  # fmt: skip


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_its_body(path: str, made: LoneService) -> None:
    got, head = made.http.get(path), made.http.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    same = ("content-type", "etag", "accept-ranges", "content-disposition")
    assert [head.headers.get(name) for name in same] == [got.headers.get(name) for name in same]
    if path != "/metrics":
        assert head.headers["content-length"] == str(len(got.content))


def test_head_of_a_stream_ends_and_of_nothing_is_404(made: LoneService) -> None:
    for _ in range(3):
        head = made.http.head("/jobs/b/events")
        assert (head.status_code, head.headers["content-type"][:17]) == (200, "text/event-stream")
    assert made.http.head("/jobs/nobody").status_code == 404
    assert made.http.head("/generate").status_code == 405
    assert 'route="/jobs/{job_id}/events",status="200"' in made.http.get("/metrics").text


def test_options_says_what_a_path_takes(made: LoneService) -> None:
    for path, methods in (
        ("/jobs/a", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("/generate", "OPTIONS, POST"),
        ("/healthz", "GET, HEAD, OPTIONS"),
    ):
        answer = made.http.options(path)
        assert (answer.status_code, answer.headers["allow"]) == (204, methods)
    assert made.http.options("/nothing").status_code == 404


@pytest.mark.system
@pytest.mark.parametrize("check", ["HEAD", "OPTIONS"])
def test_a_load_balancer_that_asks_so_keeps_the_service(
    check: str, made: LoneService, tmp_path: Path
) -> None:
    server = made.url.removeprefix("http://")
    lines = f"""option httpchk {check} /healthz
  stats uri /proxy
  server one {server} check inter 100"""
    with haproxy(tmp_path, lines) as url:

        def seen() -> str:
            rows = list(csv.DictReader(httpx.get(f"{url}/proxy;csv").text.splitlines()))
            told = next(row["check_status"] for row in rows if row["svname"] == "one")
            return told.removeprefix("* ")

        wait_until(lambda: seen().startswith("L7"))
        assert seen() == "L7OK"


@pytest.mark.parametrize("path", ["/labels", "/jobs/a/images/0/image.png", "/healthz"])
def test_a_target_may_be_a_whole_url(path: str, made: LoneService) -> None:
    host = urlsplit(made.url).netloc
    answer, _ = raw(
        made, f"GET {made.url}{path} HTTP/1.1\nHost: evil.example\nConnection: close\n\n"
    )
    assert answer.startswith("HTTP/1.1 200"), answer
    answer, _ = raw(
        made, f"GET http://evil.example/labels HTTP/1.1\nHost: {host}\nConnection: close\n\n"
    )
    assert answer.startswith("HTTP/1.1 403"), "the target's authority counts, not Host"


def test_a_message_with_two_ends_is_refused_and_its_connection_closed(made: LoneService) -> None:
    host = urlsplit(made.url).netloc
    answer, closed = raw(
        made,
        f"PUT /jobs/two HTTP/1.1\nHost: {host}\nContent-Type: application/json\n"
        "Content-Length: 4\nTransfer-Encoding: chunked\n\n"
        '11\n{"label":"blood"}\n0\n\n',
    )
    assert answer.startswith("HTTP/1.1 400"), answer
    assert "Transfer-Encoding" in answer
    assert closed
    assert made.http.get("/jobs/two").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/generate?wait=1_0", "/generate?wait=%D9%A1", "/generate?wait=%201", "/generate?wait=+1",
     "/generate?wait=Infinity", "/generate?wait=.5"],
)  # fmt: skip
def test_what_only_python_takes_for_a_number_is_none(path: str, made: LoneService) -> None:
    assert made.http.post(path, json=BODY).status_code == 422


@pytest.mark.parametrize("path", ["/jobs?limit=1_0", "/jobs?limit=%D9%A1", "/jobs/a/images/0_1"])
def test_nor_is_it_elsewhere(path: str, made: LoneService) -> None:
    assert made.http.get(path).status_code == 422


def test_a_compressed_body_is_refused_with_the_reason(made: LoneService) -> None:
    body = gzip.compress(json.dumps(BODY).encode())
    answer = made.http.put("/jobs/z", content=body, headers={**JSON, "Content-Encoding": "gzip"})
    assert (answer.status_code, answer.headers["content-type"]) == (415, PROBLEM)
    assert "Content-Encoding: got 'gzip'" in answer.json()["detail"]
    assert answer.headers["accept-encoding"] == "identity"


def test_a_byte_order_mark_is_no_error(made: LoneService) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(BODY).encode()
    assert made.http.put("/jobs/bom", content=body, headers=JSON).status_code == 201


@pytest.mark.parametrize("path", ["/metrics", "/docs", "/openapi.json"])
@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_without_keys_no_page_reads_what_needs_no_key(
    path: str, headers: dict[str, str], made: LoneService
) -> None:
    assert made.http.get(path, headers=headers).status_code == 403
    assert made.http.get(path).status_code == 200


def keyed(service: LoneService, server: RedisServer) -> dict[str, str]:
    token, _ = KeyStore(server.client()).make("ann", 1.0, Limits())
    service.publish()
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LoneService, str]]:
    """A service with a key that pages of PAGE may call, and the key."""
    folder = tmp_path_factory.mktemp("mounted")
    short = Path(f"/tmp/pathar-{folder.name}-{id(folder)}")
    short.mkdir()
    server = RedisServer(short)
    try:
        server.start()
        service = LoneService(server, folder / "log", PATHAR_CORS_ORIGINS=f"{PAGE}, http://a:1")
        try:
            key = keyed(service, server)["Authorization"]
            sent = {"Authorization": key}
            assert service.http.put("/jobs/a", json=BODY, headers=sent).status_code == 201
            service.work()
            yield service, key
        finally:
            service.close()
    finally:
        server.kill()


WAYS = {
    "told by the proxy": (
        "location /pathar/ {{ proxy_pass {url}/; proxy_set_header X-Forwarded-Prefix /pathar; }}"
    ),
    "told, and left on": (
        "location /pathar/ {{ proxy_pass {url}; proxy_set_header X-Forwarded-Prefix /pathar; }}"
    ),
}


@pytest.mark.system
@pytest.mark.parametrize("way", WAYS)
def test_behind_a_path_every_link_leads_somewhere(
    way: str, mounted: tuple[LoneService, str], tmp_path: Path
) -> None:
    service, key = mounted
    with (
        nginx(tmp_path, WAYS[way].format(url=service.url)) as url,
        httpx.Client(headers={"Authorization": key}) as http,
    ):
        base = f"{url}/pathar"
        made = http.post(f"{base}/generate?wait=0", json=BODY)
        assert made.status_code == 202
        found = urljoin(f"{base}/generate", made.headers["location"])
        assert http.get(found).json()["job_id"] == made.json()["job_id"]
        job = http.get(f"{base}/jobs/a").json()
        for link in (job["zip"], *job["images"][1]["links"].values()):
            assert http.get(urljoin(f"{base}/jobs/a", link)).status_code == 200, link
        page = http.get(f"{base}/docs").text
        assert 'fetch("openapi.json")' in page
        document = http.get(urljoin(f"{base}/docs", "openapi.json")).json()
        assert document["servers"] == [{"url": "/pathar"}]
        wrong = http.get(f"{base}/generate")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "OPTIONS, POST")
        with Client(base, key.removeprefix("Bearer ")) as client:
            assert client.job("a").ended
            assert len(list(client.pairs("a"))) == BODY["n"]


def test_a_path_is_told_by_a_setting_and_not_by_strangers(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    settings = {"PATHAR_ROOT_PATH": "/pathar/", "PATHAR_TRUSTED_PROXIES": "10.0.0.0/8"}
    lone = LoneService(redis_server, tmp_path / "log", **settings)
    try:
        sent = keyed(lone, redis_server)
        told = {**sent, "X-Forwarded-Prefix": "/elsewhere"}
        answer = lone.http.put("/jobs/a", json=BODY, headers=told)
        assert answer.json()["zip"] == "/pathar/jobs/a/pairs.zip"
        assert lone.http.get("/pathar/jobs/a", headers=sent).status_code == 200
    finally:
        lone.close()


@pytest.mark.parametrize("prefix", ["//evil.example", "/a/../b", "http://evil", "/a b", "/a,/b"])
def test_what_is_no_path_is_passed_over(prefix: str, mounted: tuple[LoneService, str]) -> None:
    service, key = mounted
    headers = {"Authorization": key, "X-Forwarded-Prefix": prefix}
    assert service.http.get("/jobs/a", headers=headers).json()["zip"] == "/jobs/a/pairs.zip"


def test_a_page_of_a_named_origin_may_call_it(mounted: tuple[LoneService, str]) -> None:
    service, key = mounted
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    allowed = service.http.options("/generate", headers=asked)
    assert allowed.is_success
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert "Authorization" in allowed.headers["access-control-allow-headers"]
    sent = {"Origin": PAGE, "Authorization": key}
    made = service.http.post("/generate?wait=0", json=BODY, headers=sent)
    exposed = made.headers["access-control-expose-headers"]
    assert {"Location", "Retry-After", "ETag"} <= set(exposed.split(", "))
    refused = service.http.get("/labels", headers={"Origin": PAGE})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == PAGE
    other = service.http.get("/labels", headers={**sent, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_ticket_opens_one_job_to_read_and_nothing_else(
    mounted: tuple[LoneService, str],
) -> None:
    service, key = mounted
    sent = {"Authorization": key}
    assert service.http.put("/jobs/other", json=BODY, headers=sent).status_code == 201
    service.work()
    made = service.http.post("/jobs/a/tickets", headers=sent)
    query = f"?ticket={made.json()['ticket']}"
    for path in ("", "/events", "/pairs.zip", "/images/1", "/images/1/image.png"):
        assert service.http.get(f"/jobs/a{path}{query}").status_code == 200, path
    assert service.http.get(f"/jobs/a/images/1/image.png{query}").content == FILES["image.png"]
    for method, path in (
        *(("GET", each) for each in ("/jobs/other", "/jobs/other/events", "/jobs", "/labels")),
        *(("DELETE", "/jobs/a"), ("POST", "/jobs/a/tickets"), ("POST", "/generate")),
    ):
        refused = service.http.request(method, path + query, json=BODY)
        assert refused.status_code == 401, (method, path)
    assert service.http.get(f"/jobs/a{query[:-1]}x").status_code == 401
    short = service.http.post("/jobs/a/tickets?seconds=1", headers=sent).json()
    late = f"/jobs/a?ticket={short['ticket']}"
    wait_until(lambda: service.http.get(late).status_code == 401)
    assert service.http.post("/jobs/nobody/tickets", headers=sent).status_code == 404


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ('Bearer "{key}"', "quotes"),
        ("Bearer '{key}'", "quotes"),
        ("Bearer Bearer {key}", "twice"),
        ("Bearer {key}\\n", "backslash"),
        ("Bearer {key}x", "is unknown"),
    ],
)
def test_a_key_that_was_copied_wrongly_is_told_how(
    sent: str, told: str, mounted: tuple[LoneService, str]
) -> None:
    service, key = mounted
    headers = {"Authorization": sent.format(key=key.removeprefix("Bearer "))}
    answer = service.http.get("/labels", headers=headers)
    assert answer.status_code == 401
    assert told in answer.json()["detail"]


@pytest.mark.system
def test_a_request_without_a_wait_is_answered_before_a_proxy_gives_up(
    lone: LoneService, tmp_path: Path
) -> None:
    """Load balancers give up after 30 s, which is less than nginx's own default."""
    lone.publish()
    with nginx(tmp_path, f"location / {{ proxy_pass {lone.url}; proxy_read_timeout 30s; }}") as url:
        answer = httpx.post(f"{url}/generate", json=BODY, timeout=60)
    assert answer.status_code == 202
    job = answer.json()["job_id"]
    assert lone.http.get(f"/jobs/{job}").json()["status"] == "queued"
