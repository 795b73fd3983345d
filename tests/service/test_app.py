"""Starting the service: its settings, its port, its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.settings import SettingsError
from service.__main__ import _listen
from service.app import create_app
from service.settings import read_settings
from tests.conftest import DEADLINE_S, RedisServer
from tests.service.conftest import LoneService

pytestmark = pytest.mark.processes


def run_service(**settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PATHAR_PORT", "http"),
        ("PATHAR_PORT", "65536"),
        ("PATHAR_MAX_N", "0"),
        ("PATHAR_MAX_N", "1001"),
        ("PATHAR_RESULT_TTL", "-1"),
        ("PATHAR_REDIS_URL", "localhost:6379"),
    ],
)
def test_a_bad_setting_names_its_key_and_value(key: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{key}='{value}': expected "):
        create_app({key: value})


def test_settings_have_the_promised_defaults() -> None:
    settings = read_settings({})
    assert (settings.host, settings.port, settings.max_n) == ("127.0.0.1", 8000, 1000)
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.result_ttl == 86400


def test_a_bad_setting_ends_the_process_with_code_2() -> None:
    done = run_service(PATHAR_PORT="http")
    assert done.returncode == 2
    assert "PATHAR_PORT='http'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "url", ["redis://:s3cr#et@redis:6379/0", "redis://s3cret:abc/0", "redis://h:6379/0?s3cret=1"]
)
def test_a_bad_url_of_redis_ends_the_process_with_code_2_and_stays_unseen(url: str) -> None:
    done = run_service(PATHAR_REDIS_URL=url)
    assert done.returncode == 2
    assert "PATHAR_REDIS_URL" in done.stderr
    assert "s3cr" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_said_clearly() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_service(PATHAR_PORT=port)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_exit_code_says_how_it_was_stopped(
    number: signal.Signals, code: int, lone: LoneService
) -> None:
    lone.process.send_signal(number)
    assert lone.process.wait(DEADLINE_S) == code
    assert "Traceback" not in lone.log()


def test_the_limit_on_n_can_be_lowered(redis_server: RedisServer, tmp_path: Path) -> None:
    service = LoneService(redis_server, tmp_path / "log", PATHAR_MAX_N="3")
    try:
        service.publish()
        answers = [
            service.http.post("/generate?wait=0", json={"label": "blood", "n": n}) for n in (3, 4)
        ]
    finally:
        service.close()
    assert [answer.status_code for answer in answers] == [202, 422]
    assert answers[1].json()["errors"][0]["expected"] == "an integer from 1 to 3"


def test_small_packets_are_sent_at_once() -> None:
    """asyncio sets TCP_NODELAY only on sockets that name their protocol."""
    with _listen(read_settings({"PATHAR_PORT": "0"})) as listener:
        assert listener.proto == socket.IPPROTO_TCP
