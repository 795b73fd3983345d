"""Alertmanager as docker-compose.yml starts it: alerts of Prometheus reach one webhook, or are only
shown.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import DEADLINE_S
from tests.deploy.files import ROOT, compose
from tests.deploy.prometheus import Prometheus
from tests.deploy.promql import PROMETHEUS
from tests.deploy.test_containers import free_port
from tests.running import wait_until
from tests.system import program

pytestmark = pytest.mark.system

RUNBOOK = "https://pages.example/docs/runbook.md"


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pathar-") as name:
        yield Path(name)


def start(folder: Path, binary: str, *words: str, webhook: str) -> subprocess.Popen[str]:
    """The command of docker-compose.yml, with a program of another place and name."""
    service = compose()["services"]["alertmanager"]
    assert service["environment"] == {"PATHAR_ALERT_WEBHOOK": "${PATHAR_ALERT_WEBHOOK:-}"}
    script = service["entrypoint"][1].replace("/etc/pathar", str(ROOT / "deploy/alertmanager"))
    (folder / "alertmanager").unlink(missing_ok=True)
    (folder / "alertmanager").symlink_to(binary)
    path = f"{folder}:{os.environ['PATH']}"
    env = {"PATH": path, "TMPDIR": str(folder), "PATHAR_ALERT_WEBHOOK": webhook}
    return subprocess.Popen(["/bin/sh", script, *words], env=env, stdout=subprocess.PIPE, text=True)


@contextmanager
def alertmanager(folder: Path, webhook: str) -> Iterator[str]:
    """Its address."""
    address = f"127.0.0.1:{free_port()}"
    words = [f"--web.listen-address={address}", f"--storage.path={folder / 'kept'}"]
    process = start(folder, program("prometheus-alertmanager"), *words, webhook=webhook)

    def ready() -> bool:
        assert process.poll() is None
        try:
            return httpx.get(f"http://{address}/-/ready").is_success
        except httpx.HTTPError:
            return False

    try:
        wait_until(ready, "Alertmanager")
        yield address
    finally:
        process.kill()
        process.communicate()


@contextmanager
def receiver(got: SimpleQueue[Any]) -> Iterator[str]:
    """The URL of a webhook, and what it is told."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/alerts?key=a"
        finally:
            server.shutdown()


@contextmanager
def prometheus(folder: Path, address: str) -> Iterator[Prometheus]:
    """Without any target, and so with an alert; it waits for a second where ours wait longer."""
    (folder / "rules").mkdir()
    text = (PROMETHEUS / "rules" / "pathar.yml").read_text()
    (folder / "rules" / "pathar.yml").write_text(re.sub(r"for: \d+m", "for: 1s", text))
    none: dict[str, list[str]] = {"pathar-api": [], "pathar-worker": []}
    found = Prometheus(
        program("prometheus"),
        folder,
        free_port(),
        alertmanager=address,
        runbook=RUNBOOK,
        rules=folder,
        **none,
    )
    try:
        yield found
    finally:
        found.close()


def test_an_alert_reaches_the_webhook_with_an_absolute_link_to_the_runbook(folder: Path) -> None:
    got: SimpleQueue[Any] = SimpleQueue()
    with ExitStack() as running:
        address = running.enter_context(alertmanager(folder, running.enter_context(receiver(got))))
        running.enter_context(prometheus(folder, address))
        told = got.get(timeout=DEADLINE_S)
    [alert] = told["alerts"]
    assert alert["labels"] == {"alertname": "PatharApiUnseen", "severity": "critical"}
    assert alert["annotations"]["runbook_url"] == f"{RUNBOOK}#patharapiunseen"


def test_without_a_webhook_alerts_are_only_shown(folder: Path) -> None:
    with alertmanager(folder, "") as address, prometheus(folder, address):
        alerts = f"http://{address}/api/v2/alerts"
        wait_until(lambda: httpx.get(alerts).json(), "an alert")
        [alert] = httpx.get(alerts).json()
    assert alert["labels"]["alertname"] == "PatharApiUnseen"
    [receiver] = yaml.safe_load((folder / "alertmanager.yml").read_text())["receivers"]
    assert list(receiver) == ["name"]


@pytest.mark.parametrize("webhook", ["", "https://chat.example/hooks/a?b=c&d=%27#e"])
def test_amtool_takes_the_configuration(webhook: str, folder: Path) -> None:
    check = folder / "check"
    amtool = program("amtool")
    check.write_text(f'#!/bin/sh\nexec {amtool} check-config "${{1#--config.file=}}"\n')
    check.chmod(0o755)
    process = start(folder, str(check), webhook=webhook)
    said, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, "SUCCESS" in said) == (0, True), said
