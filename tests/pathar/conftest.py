"""Clients of a running service, and a service that a test may harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pathar import Client
from tests.running import Up
from tests.service.conftest import lone as lone


@pytest.fixture
def client(stack: Up) -> Iterator[Client]:
    with Client(stack.run()["url"]) as opened:
        yield opened


@pytest.fixture
def up(test_checkpoint: Path) -> Iterator[Up]:
    """A service that a test may harm."""
    running = Up(test_checkpoint, PATHAR_MAX_WAITING="24", PATHAR_SLOTS="2")
    try:
        yield running.ready()
    finally:
        running.close()
