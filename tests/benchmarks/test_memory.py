import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEADLINE_S

pytestmark = pytest.mark.processes


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_a_worker_is_measured_by_slots(test_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.memory", "--checkpoint", str(test_checkpoint)]
    command += ["--slots", "2", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["slots"].keys() == {"2"}
    assert 50e6 < result["slots"]["2"]["ready_bytes"] <= result["slots"]["2"]["most_bytes"]
