from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import redis

from tests.conftest import DEADLINE_S
from worker import heartbeat
from worker.heartbeat import Heartbeat

HANGING = """
from worker import heartbeat
heartbeat.BEAT_S, heartbeat.HANG_S = 0.01, 0.1
beats = heartbeat.Heartbeat(lambda: None)
beats.start()
import time
time.sleep(600)
"""


@pytest.mark.parametrize("error", [redis.ConnectionError("away"), KeyError("a bug")])
def test_an_error_does_not_stop_the_heart(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    third, beats = threading.Event(), []

    def beat() -> None:
        beats.append(1)
        if len(beats) == 3:
            third.set()
        raise error

    heart = Heartbeat(beat)
    heart.start()
    assert third.wait(DEADLINE_S)
    heart.stop()


@pytest.mark.processes
def test_a_loop_that_hangs_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], timeout=DEADLINE_S, capture_output=True)
    assert done.returncode == 1
