import json
import subprocess
import sys

import pytest

from tests.conftest import DEADLINE_S

pytestmark = pytest.mark.processes


def test_the_trace_shows_a_start_at_the_next_step() -> None:
    command = [sys.executable, "-m", "benchmarks.admission", "--size", "test"]
    command += ["--rounds", "1", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["admitted_after_step"], result["started_at_step"]) == (32, 33)
    assert [(row["step"], row["images"], row["sequences"]) for row in result["trace"]] == [
        *((step, 15, 30) for step in range(28, 33)),
        *((step, 16, 32) for step in range(33, 37)),
    ]
    assert result["share"] == 15 / 16
    assert result["holds"] == (result["rate_kept"] >= result["share"])
    for runs in ("joined", "control"):
        assert result["steps_per_s"][runs]["before"] > 0
    assert result["rate_after_over_before"] > 0
