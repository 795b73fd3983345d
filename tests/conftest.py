"""Shared fixtures: a real Redis of one's own, and a tiny checkpoint with random weights."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from model.request import Label
from pathar.embedded_redis import find_redis_server
from runtime.connection import connect

if TYPE_CHECKING:
    from model.config import PriorConfig, TokenizerConfig
    from tests.running import Up
    from tests.s3 import Folder, S3Server

# What is imported to collect the tests stays; looking through it for garbage takes seconds.
gc.disable()
# Read when torch is loaded. Test processes share the cores; threads that wait for each other spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Started in the background, a shell's job ignores Ctrl-C, and so would the processes of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

LEARNED = {
    "nuclei_a_patch": 12.5,
    "audit": {
        **{"date": "2026-01-02", "samples": 40},
        **{"nearest": 0.9, "nearest_of_real": 0.8, "copies": 0.025},
    },
}
"""What the tests' checkpoints know of the patches of histology, and of no other label."""
DEADLINE_S = 300.0
"""How long a test waits for something that must happen; generous, as machines differ."""

PROCESS_FIXTURES = {"harmed", "redis_server", "s3_server", "shared", "stack", "up"}
"""Fixtures that start a process. A test that asks for one, or for one that asks for it, is marked
`processes`; every other test that starts a process carries the mark itself.
"""
PROCESS_EVENTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
"""What Python's audit hooks call the start of a process."""
ALLOWED_PROGRAMS = {"lscpu", "uname"}
"""What libraries ask about the machine, whichever test is the first to need it."""

LONG_FILES = (
    *("test_wheel.py", "training/test_training_document.py", "model/test_replay.py"),
    *("model/test_triton_decoder.py", "pathar/test_pull.py", "pathar/test_up.py"),
    *("deploy/test_prometheus.py", "pathar/test_client_in_trouble.py", "test_api_contract.py"),
    *("test_datasets.py", "training/test_stages.py", "deploy/test_build.py"),
    *("worker/test_batch_worker.py", "test_without_affinity.py", "training/test_compute.py"),
    *("deploy/test_rolling.py", "pathar/test_pull_killed.py", "training/test_killed_stages.py"),
    *("training/test_evaluate.py", "training/test_sweep.py", "training/test_train.py"),
    *("test_sharing.py", "model/test_other_processors.py", "test_golden.py"),
    *("training/test_segmenter.py", "training/evaluation/test_audit_overfitted.py"),
    *("training/test_large.py", "store/test_histories.py", "pathar/test_client.py"),
)
"""Files that take longest, which start first: then no process works alone at the end."""

_without_processes: list[pytest.Item] = []
"""The test that runs now, if it is not marked `processes`."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by fixtures and by `system`, before `-m` selects; put LONG_FILES first."""
    order = {Path(__file__).parent / name: n for n, name in enumerate(LONG_FILES)}
    assert all(path.exists() for path in order), "LONG_FILES names a file that is not there"
    items.sort(key=lambda item: order.get(item.path, len(order)))
    for item in items:
        fixtures = PROCESS_FIXTURES.intersection(getattr(item, "fixturenames", ()))
        if fixtures or item.get_closest_marker("system"):
            item.add_marker("processes")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test without the mark fails where it starts a process, so `make check` stays short."""
    if item.get_closest_marker("processes") is None:
        _without_processes.append(item)
    try:
        return (yield)
    finally:
        _without_processes.clear()


def _refuse_processes(event: str, args: tuple[object, ...]) -> None:
    if (
        event in PROCESS_EVENTS
        and _without_processes
        and not ALLOWED_PROGRAMS.intersection(map(str, args[:1]))
    ):
        pytest.fail(f"starts a process without @pytest.mark.processes: {event} {args[:2]}")


sys.addaudithook(_refuse_processes)


class RedisServer:
    """A private redis-server on a unix socket, with its append-only file in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder / 'redis.sock'}"
        self._process: subprocess.Popen[bytes] | None = None

    def client(self) -> redis.Redis:
        """A new client with the product's timeouts."""
        return connect(self.url)

    def start(self) -> None:
        command = [
            find_redis_server(),
            "--port",
            "0",
            "--unixsocket",
            str(self.folder / "redis.sock"),
        ]
        command += ["--dir", str(self.folder), "--save", "", "--appendonly", "yes"]
        command += ["--appendfsync", "always"]  # else a kill may lose what was answered
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.RedisError:
                assert time.monotonic() < deadline, "redis-server did not start"
                time.sleep(0.02)

    def kill(self) -> None:
        """As a crash would: no farewell, no last write."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A running Redis that only this test uses."""
    folder = Path(tempfile.mkdtemp(prefix="pathar-"))
    server = RedisServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A server that speaks S3, which this process and those that it starts can reach; whoever stops
    it starts it again.
    """
    from tests.s3 import S3Server

    server = S3Server()
    try:
        with pytest.MonkeyPatch.context() as environment:
            for key, value in server.access.items():
                environment.setenv(key, value)
            yield server
    finally:
        server.close()


@pytest.fixture
def s3_folder(s3_server: S3Server) -> Folder:
    """An empty folder there."""
    from tests.s3 import Folder

    return Folder(s3_server)


@pytest.fixture(scope="session")
def test_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of size `test` with random weights and a segmenter, the same in every run."""
    from model.config import NAMED_SIZES

    return random_checkpoint(tmp_path_factory.mktemp("test"), NAMED_SIZES["test"])


@pytest.fixture(scope="session")
def organ_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another of size `test`, other weights, without a segmenter: its histology is a label of
    `test_checkpoint` too."""
    from model.checkpoint import create_random_checkpoint
    from model.config import NAMED_SIZES

    labels = [Label("histology", "modality"), Label("kidney", "organ")]
    path = tmp_path_factory.mktemp("organs")
    return create_random_checkpoint(path, "organs", NAMED_SIZES["test"], labels=labels, seed=1)


@pytest.fixture(scope="session")
def slow_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with four times as many steps and a wider prior: for tests that do something to a
    worker in the middle of a batch.
    """
    from model.config import NAMED_SIZES

    tokenizer, prior = NAMED_SIZES["test"]
    sizes = (replace(tokenizer, image_size=128), replace(prior, layers=4, heads=4, width=128))
    return random_checkpoint(tmp_path_factory.mktemp("slow"), sizes)


def random_checkpoint(path: Path, sizes: tuple[TokenizerConfig, PriorConfig]) -> Path:
    """Random weights for three modalities and two organs, a segmenter, and what is known of the
    patches of one label.
    """
    from model.checkpoint import FACTS, create_random_checkpoint
    from tests.segmenters import write_segmenter

    write_segmenter(path)
    (path / FACTS).write_text(json.dumps({"labels": {"histology": LEARNED}}))

    labels = [Label(name, "modality") for name in ("cytology", "fluorescence")]
    labels += [Label("histology", "modality", 0.25)]
    labels += [Label(name, "organ") for name in ("blood", "cervix")]
    return create_random_checkpoint(path, "test", sizes, labels=labels)


@pytest.fixture(scope="session")
def stack(test_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`pathar up`, ready, shared by the tests that do it no harm. It was started in a folder of
    modules that have the names of ours."""
    from tests.running import Up

    folder = tmp_path_factory.mktemp("of-somebody")
    for name in ("pathar", "service", "worker", "model", "store", "runtime"):
        (folder / f"{name}.py").write_text("raise SystemExit('not ours')\n")
    running = Up(test_checkpoint, folder=folder)
    try:
        yield running.ready()
    finally:
        running.close()
