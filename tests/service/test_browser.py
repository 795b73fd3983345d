"""A page in a real browser calls the API of another origin: with a key, and with a ticket where a
browser can send none."""

from __future__ import annotations

import io
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from store.access import KeyStore, Limits
from tests.conftest import DEADLINE_S, RedisServer
from tests.running import wait_until
from tests.service.conftest import FILES, LoneService
from tests.system import program

pytestmark = pytest.mark.system

SIZE = (32, 16)
PAGE = """<!doctype html><meta charset="utf-8"><script>
const api = {api}, sent = {{Authorization: "Bearer " + {key}}}, told = {{}};
const tell = (path, text) => fetch(path, {{method: "POST", body: text}});

async function draw() {{
  const body = JSON.stringify({{label: "histology", n: 2, seed: 7}});
  const headers = {{...sent, "Content-Type": "application/json"}};
  const made = await fetch(api + "/generate?wait=0", {{method: "POST", headers, body}});
  told.made = [made.status, made.headers.get("Location")];
  const job = `${{api}}/jobs/${{(await made.json()).job_id}}`;
  const made_out = await fetch(job + "/tickets", {{method: "POST", headers: sent}});
  const ticket = (await made_out.json()).ticket;
  await tell("/made", job);
  told.events = await new Promise((done) => {{
    const kinds = [], source = new EventSource(`${{job}}/events?ticket=${{ticket}}`);
    for (const kind of ["queued", "started", "image", "finished"])
      source.addEventListener(kind, () => {{
        kinds.push(kind);
        if (kind === "finished") {{ source.close(); done(kinds); }}
      }});
  }});
  const url = `${{job}}/images/1/image.png?ticket=${{ticket}}`;
  told.image = await new Promise((done) => {{
    const image = new Image();
    image.onload = () => done([image.naturalWidth, image.naturalHeight]);
    image.onerror = () => done(null);
    image.src = url;
  }});
  const file = await fetch(url);
  told.etag = file.headers.get("ETag");
}}

draw()
  .catch((error) => {{ told.error = String(error); }})
  .then(() => tell("/told", JSON.stringify(told)));
</script>"""


class Pages:
    """A web server with one page, and what the page tells it."""

    def __init__(self) -> None:
        self.page = ""
        self.got: dict[str, str] = {}
        pages = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(pages.page if self.path == "/" else "")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                pages.got[self.path] = body
                self._answer("")

            def _answer(self, text: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def pages() -> Iterator[Pages]:
    made = Pages()
    yield made
    made.close()


@pytest.fixture
def service(redis_server: RedisServer, pages: Pages, tmp_path: Path) -> Iterator[LoneService]:
    """An API that the page may call, with one key."""
    origin = f"http://127.0.0.1:{pages.port}"
    made = LoneService(redis_server, tmp_path / "log", PATHAR_CORS_ORIGINS=origin)
    made.publish()
    token, _ = KeyStore(redis_server.client()).make("ann", 1.0, Limits())
    pages.page = PAGE.format(api=json.dumps(made.url), key=json.dumps(token))
    yield made
    made.close()


def browse(url: str, pages: Pages, folder: Path, service: LoneService) -> dict[str, Any]:
    """What the page told in the end; its job is drawn as soon as it has told of it."""
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += ["--no-proxy-server", f"--user-data-dir={folder}", "--remote-debugging-port=0"]
    with (folder / "browser.log").open("wb") as log:
        browser = subprocess.Popen(
            [program("chromium-headless-shell"), *flags, url],
            env={**os.environ, "HOME": str(folder)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: "/made" in pages.got or "/told" in pages.got, "a job")
        png = io.BytesIO()
        Image.new("RGB", SIZE, "pink").save(png, "png")
        if "/made" in pages.got:
            assert service.work(files={**FILES, "image.png": png.getvalue()}) == 2
        wait_until(lambda: "/told" in pages.got, "the end of the page")
    finally:
        browser.terminate()
        browser.wait(DEADLINE_S)
    told: dict[str, Any] = json.loads(pages.got["/told"])
    return told


def test_a_page_of_a_named_origin_draws_follows_and_shows(
    service: LoneService, pages: Pages, tmp_path: Path
) -> None:
    told = browse(f"http://127.0.0.1:{pages.port}/", pages, tmp_path, service)
    job = pages.got["/made"].removeprefix(service.url)
    assert told["made"] == [202, job.removeprefix("/")], "relative to /generate"
    assert told["events"] == ["queued", "started", "image", "started", "image", "finished"]
    assert told["image"] == list(SIZE)
    assert told["etag"].startswith('"')
    assert "error" not in told


def test_a_page_of_another_origin_learns_nothing(
    service: LoneService, pages: Pages, tmp_path: Path
) -> None:
    told = browse(f"http://localhost:{pages.port}/", pages, tmp_path, service)
    assert told == {"error": "TypeError: Failed to fetch"}
    assert service.http.get("/healthz").status_code == 200
