"""The rules of tests/conftest.py that keep processes out of `make check`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import RedisServer


def test_a_test_without_the_mark_fails_where_it_starts_a_process() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"without @pytest\.mark\.processes"):
        subprocess.run([sys.executable, "--version"], check=True)


@pytest.mark.processes
def test_a_test_with_the_mark_starts_what_it_needs() -> None:
    subprocess.run([sys.executable, "--version"], check=True)


def test_a_fixture_that_starts_a_process_brings_the_mark(
    redis_server: RedisServer, request: pytest.FixtureRequest
) -> None:
    assert request.node.get_closest_marker("processes")
    with redis_server.client() as client:
        assert client.ping()
