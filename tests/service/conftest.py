"""The service alone: a real process on a real Redis, with a model that the test publishes."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.request import Label, ModelInfo, SamplingSettings
from pathar.contract import RECORD_KEY
from store.jobs import JobStore
from store.keys import queue_name
from store.parts import PartStore, read_part
from store.registry import Registry
from tests.conftest import DEADLINE_S, RedisServer
from tests.forked import Forked, start
from tests.running import wait_until

MODEL = ModelInfo(
    name="stub",
    version="ab" * 32,
    numerics="0123456789ab",
    labels=(Label("histology", "modality"), Label("blood", "organ")),
    defaults=SamplingSettings(cfg_scale=2.0, temperature=0.9, top_k=16, top_p=0.95),
    codebook_size=64,
    grid_size=2,
    image_size=8,
    segments=True,
)


def with_record(record: dict[str, Any]) -> bytes:
    """The beginning of a PNG that says this of itself."""
    text = f"{RECORD_KEY}\0\0\0\0\0{json.dumps(record)}".encode()
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", len(text), b"iTXt") + text + bytes(4)


FILES = {
    "image.png": with_record(
        {"nuclei": 3, "agreement": 0.75, "log_likelihood": {"structure": -9.5, "appearance": -20.0}}
    ),
    "mask.png": b"mask",
    "instances.png": b"ids",
    "tokens.json": b'{"appearance_tokens":[[1,2],[3,4]],"structure_tokens":[[5,6],[7,8]]}',
}


class LoneService:
    """`python -m service`, `before` it what sets it up, without any worker; the test plays the
    worker through the store.
    """

    def __init__(self, redis_server: RedisServer, log: Path, *before: str, **settings: str) -> None:
        env = {**os.environ, "PATHAR_REDIS_URL": redis_server.url, "PATHAR_PORT": "0", **settings}
        self.redis_server, self._log = redis_server, log
        self.process: Forked | subprocess.Popen[bytes]
        if before:
            with log.open("wb") as output:
                command = [*before, sys.executable, "-W", "error", "-m", "service"]
                self.process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
        else:
            self.process = start("service", env, log, warnings_as_errors=True)
        wait_until(lambda: "startup complete" in self.log() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log()
        self.url = self.log().partition("serving ")[2].split()[0]
        self.http = httpx.Client(base_url=self.url, timeout=DEADLINE_S)
        client = redis_server.client()
        self.jobs = JobStore(client, result_ttl=600)
        self.registry = Registry(client)
        queue = queue_name(MODEL.version, MODEL.numerics)
        self._parts = PartStore(client, queue, "test-worker", result_ttl=600)

    def log(self) -> str:
        return self._log.read_text()

    def publish(self) -> None:
        """Make the model known; without a worker it stays ready for a few seconds only."""
        self.registry.publish(MODEL, "test-worker", 4)

    def work(self, failure: str | None = None, files: Mapping[str, bytes] = FILES) -> int:
        """Finish, or fail, every part that waits; how many there were."""
        claims = self._parts.claim(10_000)
        for claim in claims:
            held = self._parts.start(claim, read_part(claim))
            if held is not None and failure is None:
                self._parts.finish(held, files, 0.5)
            elif held is not None and failure is not None:
                self._parts.fail(held, failure, "engine")
        return len(claims)

    def close(self) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def lone(redis_server: RedisServer, tmp_path: Path) -> Iterator[LoneService]:
    service = LoneService(redis_server, tmp_path / "service.log")
    try:
        yield service
    finally:
        service.close()


@contextmanager
def lone_service(place: Path, **settings: str) -> Iterator[LoneService]:
    """A service with a Redis of its own, for all tests of a file."""
    folder = Path(tempfile.mkdtemp(prefix="pathar-"))
    server = RedisServer(folder)
    try:
        server.start()
        service = LoneService(server, place / "service.log", **settings)
        try:
            yield service
        finally:
            service.close()
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoneService]:
    """One for all tests of a file, which do it no harm; each takes job ids of its own."""
    with lone_service(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def emptied(shared: LoneService) -> LoneService:
    """The same for one test after the other, each with a Redis that has forgotten all."""
    with shared.redis_server.client() as client:
        client.flushall()
    return shared
