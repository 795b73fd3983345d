"""The containers' commands as the images run them: a user without rights, a read-only root."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import redis

from pathar.embedded_redis import find_redis_server
from tests.conftest import DEADLINE_S
from tests.deploy.container import ROOT, Container
from tests.deploy.files import compose, dockerfile
from tests.running import wait_until

pytestmark = pytest.mark.system
PASSWORD = "a1b2c3d4"
ELSEWHERE = "127.0.0.2"
"""Who listens at 127.0.0.1 alone is not found here; nor would a probe or Prometheus find it."""


def free_port(count: int = 1) -> int:
    """The first of some free ports in a row, below those that systems give to connections: one
    that a system chose has often been given away before it is used.
    """
    while True:
        first = random.randrange(15_000, 30_000)
        with ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return first


@pytest.fixture
def redis_url() -> Iterator[str]:
    """A Redis as docker-compose.yml starts it: over TCP, with a password and its options."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pathar-") as folder:
        told = compose()["services"]["redis"]["command"]
        options = dict(zip(told[::2], told[1::2], strict=True))
        options |= {"--requirepass": PASSWORD, "--dir": folder, "--port": str(port)}
        options |= {"--bind": "127.0.0.1"}
        command = [find_redis_server(), *(word for pair in options.items() for word in pair)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
        try:
            wait_until(lambda: answers(url), "Redis")
            yield url
        finally:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.fixture
def volume() -> Iterator[Path]:
    """A folder that the images' user owns, outside /tmp as a container sees it."""
    user, group = (int(each) for each in dockerfile()["service"].last("USER").split(":"))
    folder = Path(tempfile.mkdtemp(prefix="pathar-volume-", dir="/var/tmp"))
    shutil.chown(folder, user, group)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def checkpoint(test_checkpoint: Path) -> Iterator[Path]:
    """The test checkpoint where others may read it."""
    folder = Path(tempfile.mkdtemp(prefix="pathar-checkpoint-", dir="/var/tmp"))
    shutil.copytree(test_checkpoint, folder, dirs_exist_ok=True)
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def running(container: Container, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = container.start(command)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def healthy(container: Container, check: list[str], process: subprocess.Popen[str]) -> None:
    """Wait until the image's own health check passes."""
    deadline = time.monotonic() + DEADLINE_S
    while container.run(check)[0] != 0:
        if process.poll() is not None:
            pytest.fail(f"it ended with {process.returncode}:\n{process.communicate()[0]}")
        assert time.monotonic() < deadline, "it did not become healthy"


def test_a_container_can_write_nowhere_but_to_tmp(volume: Path) -> None:
    places = [
        ROOT,
        ROOT / "checkpoints" / "small",
        Path("/"),
        Path("/var/tmp"),
        Path.home(),
        volume,
    ]
    check = (
        "import os, sys, tempfile\n"
        "def writes(place):\n"
        "    try:\n"
        "        tempfile.TemporaryFile(dir=place).close()\n"
        "    except OSError:\n"
        "        return False\n"
        "    return True\n"
        "print(os.getuid(), os.getgroups(), [place for place in sys.argv[1:] if writes(place)])\n"
        "print([line for line in open('/proc/self/status') if line.startswith('CapBnd')])\n"
    )
    container = Container(dockerfile()["worker"], writable=[volume])
    code, output = container.run(["python", "-c", check, *map(str, places), "/tmp"])
    user = dockerfile()["worker"].last("USER").split(":")[0]
    assert code == 0, output
    assert output.splitlines()[0] == f"{user} [] {[str(volume), '/tmp']}"
    assert "0000000000000000" in output.splitlines()[1]


def test_the_images_commands_serve_as_a_user_without_rights_on_a_read_only_root(
    redis_url: str, checkpoint: Path, volume: Path
) -> None:
    service, worker = dockerfile()["service"], dockerfile()["worker"]
    port, metrics = free_port(), free_port()
    api = Container(service, writable=[volume], PATHAR_REDIS_URL=redis_url, PATHAR_PORT=str(port))
    drawing = Container(
        worker,
        needed=[checkpoint],
        PATHAR_REDIS_URL=redis_url,
        PATHAR_CHECKPOINT=str(checkpoint),
        PATHAR_DEVICE="cpu",
        PATHAR_SLOTS="2",
        PATHAR_THREADS="1",
        PATHAR_WORKER_METRICS_PORT=str(metrics),
    )
    base = f"http://{ELSEWHERE}:{port}"
    with ExitStack() as cleanup:
        serving = cleanup.enter_context(running(api, service.command()))
        loop = cleanup.enter_context(running(drawing, worker.command()))
        healthy(api, service.health_check(), serving)
        healthy(drawing, worker.health_check(), loop)
        wait_until(lambda: httpx.get(f"{base}/readyz").status_code == 200, "readiness")

        # Nobody is let in before there is a key; it is made as docker-compose.yml makes it.
        assert httpx.get(f"{base}/labels").status_code == 401
        first = compose()["services"]["first-key"]["command"]
        words = [word.replace("/keys", str(volume)) for word in first]
        for _ in range(2):
            code, output = api.run(["python", "-m", *words])
            assert code == 0, output
        key = (volume / "first").read_text().strip()
        drawn = httpx.post(
            f"{base}/generate?wait=60",
            json={"label": "histology", "n": 3, "seed": 7},
            headers={"Authorization": f"Bearer {key}"},
            timeout=DEADLINE_S,
        )
        assert drawn.status_code == 200, drawn.text
        assert len(drawn.json()["images"]) == 3

        told = f"http://{ELSEWHERE}:{metrics}/metrics"
        wait_until(lambda: 'stage="total"' in httpx.get(told).text, "the count of an image")
        for process in (loop, serving):
            process.terminate()
            output, _ = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0, output
            assert "Traceback" not in output
