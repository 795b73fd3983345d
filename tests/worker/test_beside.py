from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import redis

from tests.conftest import DEADLINE_S
from worker.beside import Beside

HANGING = """
from worker import beside
beside.HANG_S = 0.1
beside.Beside("heartbeat", beside.Watchdog().check, 0.01).start()
import time
time.sleep(600)
"""


@pytest.mark.parametrize("error", [redis.ConnectionError("away"), KeyError("a bug")])
def test_an_error_does_not_stop_the_heart(error: Exception) -> None:
    third, beats = threading.Event(), []

    def beat() -> None:
        beats.append(1)
        if len(beats) == 3:
            third.set()
        raise error

    heart = Beside("heartbeat", beat, 0.01)
    heart.start()
    assert third.wait(DEADLINE_S)
    heart.stop()


@pytest.mark.processes
def test_a_loop_that_hangs_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], timeout=DEADLINE_S, capture_output=True)
    assert done.returncode == 1
