"""Clients of a running service, and a service that a test may harm."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pathar import Client
from tests.running import Up, alive, wait_until
from tests.service.conftest import lone as lone


@pytest.fixture
def client(stack: Up) -> Iterator[Client]:
    with Client(stack.run()["url"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def harmed(test_checkpoint: Path) -> Iterator[Up]:
    started = Up(test_checkpoint, PATHAR_MAX_WAITING="24", PATHAR_SLOTS="2")
    try:
        yield started.ready()
    finally:
        started.close()


@pytest.fixture
def up(harmed: Up) -> Iterator[Up]:
    """A service of which a test may stop or kill what `pathar up` starts again."""
    yield harmed
    for pid in harmed.run()["pids"].values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: all(map(alive, harmed.run()["pids"].values())), "a restart")
    wait_until(harmed.serves, "readiness")
